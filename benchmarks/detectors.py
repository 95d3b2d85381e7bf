"""How many people the detectors find in annotated photos, how well, and how long it takes.

    python -m benchmarks.detectors [--shared ../shared] [--detector movenet,blazepose] [--noise] [--json]

Photos: COCO's in photos/free and photos/non_commercial, CrowdPose's and OCHuman's in photos/research_only; without
../shared the free ones in tests/fixtures. Groups: "easy" (four photos of mmpose's tests), "crowded" (the other COCO
photos), "research". A person counts when at least one joint is annotated. Detections, best first, each take the
annotated person most similar to them (OKS >= 0.5, COCO's areas, CrowdPose's 0.53 of the box) that is not taken yet.
"false": none left, not the box of a person annotated without joints (IoU >= 0.5), not mostly in a COCO crowd region;
of these "people" are real people whom nobody annotated, seen by us (UNANNOTATED). "error": the distance of the
annotated joints to ours, mean over a person's joints, per longer side of its box, median over found people.

The threshold is a detector's own (`min_score`). Below the table it is chosen on one half of the photos, by the F1 of
found and false but for those real people, and what it gives on the other half is printed, and the other way round. The
first half is every second photo in the order of their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from stages.keypoints import joint_sets, noise
from stages.keypoints.oks import iou, oks, sigmas
from stages.media.frames import open_frame
from stages.models import find
from stages.models.detectors.base import DetectedPeople
from stages.models.detectors.choice import files_of
from stages.models.tables import DETECTORS

COCO = joint_sets.get("coco17")
SIGMA = sigmas(COCO)
FOLDERS = {
    "free": "person_keypoints.json",
    "non_commercial": "person_keypoints.json",
    "research_only/crowdpose": "annotations.json",
    "research_only/ochuman": "annotations.json",
}
EASY = ("000000000785", "000000196141", "000000197388", "000000040083")
GROUPS = ("easy", "crowded", "research", "all")
SAME = 0.5
# Boxes (xyxy px) of people in the photos whom nobody annotated with joints, looked at one by one.
UNANNOTATED: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "000817": ((442, 178, 651, 846), (1, 229, 131, 764)),
    "003799": ((69, 159, 258, 700), (640, 171, 845, 589), (387, 158, 712, 752)),
    "000000433998": ((437, 98, 455, 134), (65, 95, 89, 130)),
    "000000370162": ((216, 123, 250, 174),),
}
FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "photos"


@dataclasses.dataclass
class Photo:
    """keypoints (n, 17, 3) x, y px, visibility (0: none) · box (n, 4) xyxy px · area (n,) px^2 · crowd (H, W) mask."""

    name: str
    path: Path
    group: str
    keypoints: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    @property
    def annotated(self) -> np.ndarray:
        """Which people (n,) have joints."""
        return (self.keypoints[..., 2] > 0).any(1)


@dataclasses.dataclass
class Matches:
    """Pairs (person, detection) with their OKS and error, and the detections that are nobody annotated."""

    pairs: list[tuple[int, int]]
    similarity: list[float]
    error: list[float]
    false: list[int]


def photos_of(root: Path) -> list[Photo]:
    """All annotated photos below a folder like ../shared/testdata/photos, by name."""
    found = []
    for folder, file in FOLDERS.items():
        if not (root / folder / file).is_file():
            continue
        data = json.loads((root / folder / file).read_text())
        names = data["categories"][0]["keypoints"] if "categories" in data else list(COCO)
        for image in data["images"]:
            people = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            found.append(_photo(root / folder / image["file_name"], image, people, names, folder))
    return sorted(found, key=lambda photo: photo.name)


def _photo(path: Path, image: Any, people: list[Any], names: Sequence[str], folder: str) -> Photo:
    crowd = np.zeros((image["height"], image["width"]), bool)
    for region in (a for a in people if a["iscrowd"]):
        counts = region["segmentation"]["counts"]  # lengths of runs, down the columns, the first one outside
        inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        crowd |= inside.reshape(image["width"], image["height"]).T
    people = [a for a in people if not a["iscrowd"]]
    given = np.array([a["keypoints"] for a in people], float).reshape(len(people), len(names), 3)
    keypoints = np.zeros((len(people), len(COCO), 3))
    for k, name in enumerate(names):
        if name in COCO:
            keypoints[:, COCO.index(name)] = given[:, k]
    corner, size = np.split(np.array([a["bbox"] for a in people], float).reshape(-1, 4), 2, 1)
    area = np.array([a.get("area", 0.53 * w * h) for a, (w, h) in zip(people, size, strict=True)])
    easy = "easy" if path.stem in EASY else "crowded"
    group = "research" if folder.startswith("research") else easy
    return Photo(path.stem, path, group, keypoints, np.concatenate([corner, corner + size], 1), area, crowd)


def match(photo: Photo, found: DetectedPeople, threshold: float) -> Matches:
    """Detections with at least `threshold`, best first, and the annotated people they take."""
    order = np.argsort(-found.score, kind="stable")
    people = np.flatnonzero(photo.annotated)
    truth = np.where(photo.keypoints[..., 2:] > 0, photo.keypoints[..., :2], np.nan)[people]
    similarity = oks(truth, found.keypoints[..., :2], photo.area[people, None], SIGMA)
    result = Matches([], [], [], [])
    free = np.ones(len(people), bool)
    for k in order[found.score[order] >= threshold]:
        like = np.where(free, similarity[:, k], -1)
        if len(people) and like.max() >= SAME:
            best = int(like.argmax())
            free[best] = False
            distance = np.linalg.norm(truth[best] - found.keypoints[k, :, :2], axis=-1)
            side = (photo.box[people[best], 2:] - photo.box[people[best], :2]).max()
            result.pairs.append((int(people[best]), int(k)))
            result.similarity.append(float(like.max()))
            result.error.append(float(np.nanmean(distance) / side))
        elif not _excused(photo, found.box[k]):
            result.false.append(int(k))
    return result


def _excused(photo: Photo, box: np.ndarray) -> bool:
    """Whether a detection that took nobody may be somebody: annotated without joints, or in a crowd region."""
    others = photo.box[~photo.annotated]
    if len(others) and iou(others, box[None]).max() >= SAME:
        return True
    left, top, right, bottom = np.clip(np.round(box), 0, None).astype(int)
    inside = photo.crowd[top : bottom + 1, left : right + 1]
    return bool(inside.size and inside.mean() > 0.5)


def is_person(photo: Photo, box: np.ndarray) -> bool:
    """Whether a false detection is one of the people that we saw and nobody annotated."""
    places = np.array(UNANNOTATED.get(photo.name, ()), float).reshape(-1, 4)
    return bool(len(places)) and bool(iou(places, box[None]).max() >= SAME)


def run_detector(detector: Any, photos: Iterable[Photo]) -> tuple[dict[str, DetectedPeople], float]:
    """Everybody whom the detector finds, whatever the score, and the CPU seconds a photo, opening it left out."""
    torch.set_num_threads(1)
    found, seconds = {}, []
    detector([np.zeros((64, 64, 3), np.uint8)])  # loads the networks
    for photo in photos:
        image = open_frame(photo.path)
        start = time.process_time()
        found[photo.name] = detector([image])[0]
        seconds.append(time.process_time() - start)
    return found, float(np.mean(seconds)) if seconds else 0.0


def summary(photos: Iterable[Photo], found: dict[str, DetectedPeople], threshold: float) -> dict[str, Any]:
    """One row of the table."""
    people = hits = false = seen = 0
    similarity: list[float] = []
    error: list[float] = []
    for photo in photos:
        result = match(photo, found[photo.name], threshold)
        people, hits = people + int(photo.annotated.sum()), hits + len(result.pairs)
        false += len(result.false)
        seen += sum(is_person(photo, found[photo.name].box[k]) for k in result.false)
        similarity, error = similarity + result.similarity, error + result.error
    return {
        "people": people,
        "found": hits,
        "false": false,
        "of these people": seen,
        "mean OKS": round(float(np.mean(similarity)), 3) if similarity else None,
        "error": round(100 * float(np.median(error)), 2) if error else None,
    }


def choose_threshold(photos: Sequence[Photo], found: dict[str, DetectedPeople]) -> float:
    """The lowest person score with the best F1: 2 found / (people + found + false, real people left out)."""
    scores = sorted({float(s) for photo in photos for s in found[photo.name].score})

    def f1(threshold: float) -> float:
        row = summary(photos, found, threshold)
        return 2 * row["found"] / max(row["people"] + row["found"] + row["false"] - row["of these people"], 1)

    return max(scores, key=f1, default=1.0)


def halves(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Every second photo in the order of names, and the others."""
    return list(photos[::2]), list(photos[1::2])


def table(detector: Any, photos: list[Photo]) -> dict[str, Any]:
    """The groups at the detector's own threshold, and both halves at the threshold of the other half."""
    found, seconds = run_detector(detector, photos)
    rows = {}
    for group in GROUPS:
        members = [photo for photo in photos if group in ("all", photo.group)]
        rows[group] = summary(members, found, detector.min_score) | {"photos": len(members)}
    first, second = halves(photos)
    crossed = {}
    for name, chosen_on, reported in (("second half", first, second), ("first half", second, first)):
        threshold = choose_threshold(chosen_on, found)
        crossed[name] = summary(reported, found, threshold) | {
            "threshold": round(threshold, 3),
            "photos": len(reported),
        }
    return {
        "detector": detector.name,
        "threshold": detector.min_score,
        "seconds a photo": round(seconds, 2),
        "groups": rows,
        "halves": crossed,
        "first half": [photo.name for photo in first],
    }


# ---- the errors of keypoints, by PoseFix's types (stages/keypoints/noise.py)

TYPES = ("good", "jitter", "inversion", "swap", "miss")


def error_types(photo: Photo, found: DetectedPeople) -> list[tuple[int, str, float, float]]:
    """(joint, type, error per longer side, score) of every annotated joint of people whom a box finds (IoU >= 0.5).

    By keypoint similarity: good >= 0.85, jitter >= 0.5; else inversion: on the own mirrored joint, swap: on somebody
    else's joint or its mirror (both >= 0.5), else miss.
    """
    people = np.flatnonzero((photo.keypoints[..., 2] > 0).sum(1) >= 5)
    truth = np.where(photo.keypoints[..., 2:] > 0, photo.keypoints[..., :2], np.nan)
    overlap = iou(photo.box[people], found.box)
    mirror = joint_sets.flip(COCO)
    result = []
    for row, person in enumerate(people):
        if not len(found) or overlap[row].max() < SAME:
            continue
        ours = found.keypoints[overlap[row].argmax()]
        spread = 2 * (2 * SIGMA) ** 2 * photo.area[person]
        near = np.exp(-((truth - ours[None, :, :2]) ** 2).sum(-1) / spread)  # (everybody, joint)
        crossed = np.exp(-((truth[:, mirror] - ours[None, :, :2]) ** 2).sum(-1) / spread)
        side = (photo.box[person, 2:] - photo.box[person, :2]).max()
        others = np.delete(np.fmax(near, crossed), person, 0)
        for joint in np.flatnonzero(np.isfinite(near[person])):
            distance = float(np.linalg.norm(truth[person, joint] - ours[joint, :2]) / side)
            similar, swapped = near[person, joint], np.nanmax(others[:, joint], initial=0)
            kind = "good" if similar >= 0.85 else "jitter" if similar >= SAME else "miss"
            if kind == "miss" and swapped >= SAME:
                kind = "swap"
            if kind in ("miss", "swap") and crossed[person, joint] >= SAME and mirror[joint] != joint:
                kind = "inversion"
            result.append((int(joint), kind, distance, float(ours[joint, 2])))
    return result


def noise_table(photos: list[Photo], found: dict[str, DetectedPeople], threshold: float) -> list[dict[str, Any]]:
    """Share of each type by kind of joint, beside the noise model's (people with 11 or more joints, not crowded)."""
    chances = noise._chances(np.array([17]), False)[:, 0]  # (good, jitter, miss, inversion, swap), joint
    model = dict(zip(("good", "jitter", "miss", "inversion", "swap"), chances, strict=True))
    errors = []
    for photo in photos:
        people = found[photo.name]
        errors += error_types(photo, people.take(np.flatnonzero(people.score >= threshold)))
    rows = []
    kinds = dict.fromkeys(name.removeprefix("left_").removeprefix("right_") for name in COCO)
    for kind in (*kinds, "all"):
        joints = [k for k, name in enumerate(COCO) if kind == "all" or name.endswith(kind)]
        own = [e for e in errors if e[0] in joints]
        row: dict[str, Any] = {"joint": kind, "n": len(own)}
        for each in TYPES:
            row[each] = round(sum(e[1] == each for e in own) / max(len(own), 1), 3)
            row[f"{each}, model"] = round(float(model[each][joints].mean()), 3)
        row["median error"] = round(100 * float(np.median([e[2] for e in own])), 2) if own else None
        row["p90 error"] = round(100 * float(np.percentile([e[2] for e in own], 90)), 1) if own else None
        rows.append(row)
    return rows


def load(name: str) -> Any | None:
    """The detector on the CPU, None where its files are not here."""
    kind: Any = find(DETECTORS, name)
    return None if kind.missing(files_of(name)) else kind.load(files_of(name), device="cpu")


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{result['detector']}, threshold {result['threshold']}, {result['seconds a photo']} CPU s a photo\n")
    columns = ("photos", "people", "found", "false", "of these people", "mean OKS", "error")
    print(f"| | {' | '.join(columns)}, % of box |\n|---|{'---:|' * len(columns)}")
    for group, row in result["groups"].items():
        print(f"| {group} | {' | '.join(str(row[c]) for c in columns)} |")
    for half, row in result["halves"].items():
        print(f"| {half}, threshold {row['threshold']} of the other | {' | '.join(str(row[c]) for c in columns)} |")


def report(root: Path, names: Sequence[str], *, as_json: bool = False, with_noise: bool = False) -> None:
    """Print the table of each detector that is ready."""
    photos, results = photos_of(root), []
    for name in names:
        detector = load(name)
        if detector is None:
            print(f"\n{name}: not here (hmr assets get {name})")
            continue
        results.append(table(detector, photos))
        if with_noise:
            found, _ = run_detector(detector, photos)
            results[-1]["noise"] = noise_table(photos, found, detector.min_score)
    if as_json:
        print(json.dumps(results))
        return
    for result in results:
        print_table(result)
        for k, row in enumerate(result.get("noise", [])):
            head = f"\n| {' | '.join(row)} |\n|{'---|' * len(row)}\n" if k == 0 else ""
            print(f"{head}| {' | '.join(map(str, row.values()))} |")
    if results:
        print(f"\nFirst half: {', '.join(results[0]['first half'])}; the second half is the rest.")


def photos_folder(shared: Path) -> Path:
    """The photos of ../shared, else the free ones of the repository."""
    return shared / "testdata/photos" if (shared / "testdata/photos").is_dir() else FIXTURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--detector", default="movenet,blazepose", help="names, with commas")
    parser.add_argument("--noise", action="store_true", help="also the types of keypoint errors")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report(photos_folder(args.shared), args.detector.split(","), as_json=args.json, with_noise=args.noise)


if __name__ == "__main__":
    main()
