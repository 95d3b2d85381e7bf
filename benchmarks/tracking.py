"""How well people are followed: IDF1, identity switches and fragments on the synthetic videos with exact truth.

    python -m benchmarks.tracking [--set synth-crowd-video] [--detector NAME] [--against] [--json]

Without a detector the tracker gets the true boxes and the disturbed keypoints of the set (`hmr synth`), in all frames
and in every second one; with `--detector` what that detector finds in the rendered pictures, at a person score of
--min-score. Then a person counts from COUNTS visible joints on; whoever is found where somebody shows fewer is neither
right nor wrong (as with the ignored people of MOTChallenge), and two boxes are the same person at an IoU of 0.5, with
the box of the whole body or of what can be seen of it. `bound` is the IDF1 that perfect numbers would have with these
detections. `--against` measures the trackers of the packages `trackers` and `norfair` (norfair-enough) as well, where
they are installed; each gets the same rows, and starts a track with the first one.

The constants of the tracker were chosen on other scenes of the same generator (numbers 100 to 123), never on the set.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stages import detect
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import RunOptions
from stages.evaluation.tracking import Moment, TrackingScores, score
from stages.files.cache import cache_dir
from stages.keypoints.oks import iou, sigmas
from stages.keypoints.tracking import Tracker
from stages.loaders.tracks import takes
from stages.params import MAX_GAP, DetectParams
from stages.pipeline import open_dataset

SETS = ("synth-video", "synth-crowd-video")
COUNTS = 8  # joints of 17
Step = Callable[[float, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def films(truth: Artefact, every: int = 1) -> Iterator[np.ndarray]:
    """The frames of each take, or each n-th of them."""
    take = takes(truth.frames)
    for number in range(take.max() + 1):
        yield np.flatnonzero(take == number)[::every]


def follow(truth: Artefact, found: Artefact, same: bool, make: Callable[[float, Artefact], Step], every: int) -> Any:
    """Scores of a tracker over all takes. same: `found` has the very rows of `truth`."""
    xy, joint_score = found.read("keypoints/xy"), found.read("keypoints/score")
    keypoints = np.concatenate([np.nan_to_num(xy), joint_score[..., None]], -1).astype(float)
    seen = truth.read("extra/seen").astype(bool)
    visible, total, spent = visible_boxes(truth, seen), TrackingScores(), 0.0
    for frames in films(truth, every):
        step, moments = make(1 / np.median(np.diff(truth.frames["time"][frames])), found), []
        for frame in frames:
            own = np.flatnonzero(truth.rows["frame"] == frame)
            rows = np.flatnonzero(found.rows["frame"] == frame)
            box, begun = found.rows["box"][rows].astype(float), time.perf_counter()
            ids = np.asarray(step(float(truth.frames["time"][frame]), box, keypoints[rows], found.rows["score"][rows]))
            spent += time.perf_counter() - begun
            if same:
                similar, counts = np.eye(len(rows)), np.ones(len(own), bool)
            else:
                similar = np.maximum(iou(truth.rows["box"][own].astype(float), box), iou(visible[own], box))
                counts = seen[own].sum(1) >= COUNTS
            named = ids >= 0
            moments.append(Moment(truth.rows["track"][own], ids[named], similar[:, named], counts))
        total += score(moments)
    return total, spent / max(len(found.rows["frame"]) / every, 1)


def visible_boxes(truth: Artefact, seen: np.ndarray) -> np.ndarray:
    """Boxes (R, 4) around the visible joints, with a tenth of their longer side on each."""
    xy = np.where(seen[..., None], truth.read("extra/keypoints"), np.nan)
    low, high = np.nanmin(xy, 1), np.nanmax(xy, 1)
    pad = 0.1 * (high - low).max(1, keepdims=True)
    return np.concatenate([low - pad, high + pad], 1)


def detected(truth: Artefact, detector: str, min_score: float | None) -> Artefact:
    """What a detector finds in the pictures of a set, in the set's frames. Kept in the cache."""
    assert truth.path is not None
    pictures = truth.path.parent / Path(str(truth.frames["name"][0])).parent
    out = cache_dir() / "tracking" / f"{pictures.name}-{detector}-{min_score}.detections.h5"
    out.parent.mkdir(parents=True, exist_ok=True)
    params = DetectParams(detector=detector, min_score=min_score, tracks="none")
    detect.run([pictures], out, params, RunOptions())
    with open_artefact(out) as made:
        place = {Path(str(n)).name: k for k, n in enumerate(truth.frames["name"])}
        frame = np.array([place[Path(str(n)).name] for n in made.frames["name"]])[made.rows["frame"]]
        order = np.argsort(frame, kind="stable")
        rows = {"frame": frame[order], "box": made.rows["box"][order], "score": made.rows["score"][order]}
        columns = {c: made.read(f"keypoints/{c}")[order] for c in ("xy", "score")}
        groups = {"keypoints": made.group_attrs("keypoints")}
    columns = {f"keypoints/{c}": values for c, values in columns.items()}
    return in_memory("detections", frames=truth.frames, rows=rows, columns=columns, group_attrs=groups)


def ours(rate: float, found: Artefact) -> Step:
    tracker = Tracker(sigmas(found.group_attrs("keypoints")["joints"]), max_gap=MAX_GAP)
    size = tuple(found.frames["size"][0].tolist())
    return lambda at, box, keypoints, _: tracker.step(at, box, keypoints, size)


def of_trackers(kind: str) -> Callable[[float, Artefact], Step]:
    """A tracker of the package `trackers`, which forgets after MAX_GAP."""
    import supervision
    import trackers

    options: dict[str, Any] = {"minimum_consecutive_frames": 1}
    options |= {} if kind.startswith("OC") else {"track_activation_threshold": 0.0}
    options |= {} if kind.startswith("SORT") else {"high_conf_det_threshold": 0.0}
    options |= {"enable_cmc": False} if kind.startswith("BoT") else {}

    def make(rate: float, _: Artefact) -> Step:
        made = getattr(trackers, kind)(lost_track_buffer=round(30 * MAX_GAP), frame_rate=rate, **options)

        def step(at: float, box: np.ndarray, keypoints: np.ndarray, person: np.ndarray) -> np.ndarray:
            data = {"row": np.arange(len(box))}
            given = supervision.Detections(
                box.astype(np.float32).reshape(-1, 4), confidence=person.astype(np.float32), data=data
            )
            named, ids = made.update(given), np.full(len(box), -1)
            if len(named):
                ids[named.data["row"]] = named.tracker_id
            return ids

        return step

    return make


def of_norfair(by: str) -> Callable[[float, Artefact], Step]:
    """norfair by boxes, or by keypoints with the mean distance in units of the person."""
    import norfair

    def distance(detection: Any, person: Any) -> float:
        good = detection.scores > 0
        if not good.any():
            return 9.0
        points = detection.points[good]
        return float(np.linalg.norm(points - person.estimate[good], axis=1).mean() / max(np.ptp(points, 0).max(), 1))

    def make(rate: float, _: Artefact) -> Step:
        made = norfair.Tracker(
            distance_function="iou" if by == "boxes" else distance,
            distance_threshold=0.8 if by == "boxes" else 0.5,
            initialization_delay=0,
            hit_counter_max=round(rate * MAX_GAP),
        )

        def step(at: float, box: np.ndarray, keypoints: np.ndarray, person: np.ndarray) -> np.ndarray:
            if by == "boxes":
                given = [norfair.Detection(b.reshape(2, 2), data=(at, i)) for i, b in enumerate(box)]
            else:
                given = [norfair.Detection(k[:, :2], scores=k[:, 2], data=(at, i)) for i, k in enumerate(keypoints)]
            ids = np.full(len(box), -1)
            made.update(detections=given)
            for one in made.tracked_objects:
                if one.last_detection.data[0] == at:
                    ids[one.last_detection.data[1]] = one.global_id
            return ids

        return step

    return make


def others() -> dict[str, Callable[[float, Artefact], Step]]:
    """The trackers of other packages that are installed here."""
    found: dict[str, Callable[[float, Artefact], Step]] = {}
    kinds = ("SORTTracker", "ByteTrackTracker", "OCSORTTracker", "CBIoUTracker", "BoTSORTTracker")
    for names, make in ((kinds, of_trackers), (("boxes", "keypoints"), of_norfair)):
        for name in names:
            try:
                found[name if make is of_trackers else f"norfair, {name}"] = make(name)
            except ImportError as error:
                print(f"left out: {name} ({error})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", help=f"or a file made by hmr synth; default: {' and '.join(SETS)}")
    parser.add_argument("--detector")
    parser.add_argument("--min-score", type=float)
    parser.add_argument("--against", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for name in args.set or SETS:
        truth, name = open_dataset(name).detections, Path(name).name.removesuffix(".detections.h5")
        found = detected(truth, args.detector, args.min_score) if args.detector else truth
        for tracker, make in {"hmr": ours, **(others() if args.against else {})}.items():
            for every in (1, 2):
                total, seconds = follow(truth, found, args.detector is None, make, every)
                rows.append(
                    {
                        "set": name if every == 1 else f"{name}, every 2nd", "tracker": tracker,
                        "idf1": round(total.idf1, 3), "switches": total.switches, "fragments": total.fragments,
                        "tracks": total.tracks, "true": total.true_tracks, "recall": round(total.recall, 3),
                        "bound": round(2 * total.matched / max(total.true + total.found, 1), 3),
                        "ms_a_row": round(1000 * seconds, 2),
                    }
                )  # fmt: skip
    if args.json:
        print(json.dumps(rows))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
