"""How exact the embedded recoverer is: motion capture that it never saw, seen by known cameras, and annotated photos.

    python -m benchmarks.accuracy [--shared ../shared] [--ckpt FILE] [--json]      (make accuracy)

Motion capture (../shared/testdata/mocap): CMU subject 14 and all of HDM05 (another laboratory), an even choice of
frames. Camera, noise and shapes: yaw even, pitch 7 +- 14 and roll +- 5 degrees (normal), 2 to 12 m (even), the person
within 10 degrees of the optical axis; betas normal; noise normal, 3 px per axis in a crop of 256 px whose side is 1.2
times the longer side of the box of all 17 keypoints, scores left at 1; missing: 32 % of the keypoints, each by itself
("scattered") or whole limbs, halves and what lies beyond a line ("grouped"). Errors in mm: 14 joints (ankles, knees,
hips, wrists, elbows, shoulders, neck, head), middle of the hips aligned; MPJPE / PA-MPJPE, mean over people.

Photos (tests/fixtures/photos/free), the annotated keypoints: distance between the drawn body's keypoints and the
annotated ones. No number here takes part in any choice during training.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks import detectors
from stages.evaluation import metrics
from stages.files.checkpoints import read_checkpoint
from stages.geometry import cameras
from stages.geometry.rotations import about, axis_angle_to_matrix
from stages.keypoints import joint_sets
from stages.models.base import PersonBatch
from stages.models.embedded import EmbeddedRecoverer
from stages.smpl.body import Body, load_body

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "tests" / "fixtures" / "photos" / "free"
COCO = joint_sets.get("coco17")
SCORED = [
    f"{side}_{part}" for part in ("ankle", "knee", "hip", "wrist", "elbow", "shoulder") for side in ("left", "right")
] + ["neck", "head"]
FOURTEEN = joint_sets.index(joint_sets.get("smpl24"), SCORED)
HIPS = joint_sets.index(joint_sets.get("smpl24"), ["left_hip", "right_hip"])
CROP, MARGIN, NOISE, MISSING = 256.0, 1.2, 3.0, 0.32
TARGETS = {
    "CMU subject 14": {"clean": (50, 28), "3 px": (68, 40), "3 px, 32 % scattered missing": (90, 56)},
    "HDM05": {"clean": (68, 44), "3 px": (82, 52), "3 px, 32 % scattered missing": (118, 76)},
}


def frames(folder: Path, source: str, subject: str, n: int) -> np.ndarray:
    """n poses (n, 24, 3), evenly chosen from both motion files; fewer if there are fewer."""
    found = []
    for name in ("mocap_smpl24.npz", "mocap_smpl24_test.npz"):
        with np.load(folder / name) as file:
            keep = np.char.startswith(file["seq_source"].astype(str), source)
            keep &= np.char.startswith(file["seq_subject"].astype(str), subject)
            found.append(file["poses"][keep[file["seq"].astype(int)]].astype(np.float32))
    poses = np.concatenate(found)
    return poses[np.linspace(0, len(poses) - 1, min(n, len(poses))).astype(int)]


def scene(poses: np.ndarray, body: Body, seed: int) -> dict[str, np.ndarray]:
    """People in front of cameras: truth (n, 24, 3) camera frame, keypoints (n, 17, 2) px, K, size."""
    n, draw = len(poses), torch.Generator().manual_seed(seed)
    pitch = 7 + 14 * torch.randn(n, generator=draw)
    roll, yaw = 5 * torch.randn(n, generator=draw), 360 * torch.rand(n, generator=draw)
    down = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    world = about("z", roll, degrees=True) @ about("x", pitch, degrees=True) @ down @ about("y", yaw, degrees=True)
    rotation = axis_angle_to_matrix(torch.from_numpy(poses))
    rotation[:, 0] = world @ rotation[:, 0]
    betas = torch.randn(n, 10, generator=draw)
    off = torch.tan(torch.deg2rad(20 * torch.rand(n, 2, generator=draw) - 10))
    depth = 2 + 10 * torch.rand(n, 1, generator=draw)
    with torch.no_grad():
        at_origin = body.joints(rotation, betas, torch.zeros(n, 3), "smpl24")
        depth = torch.maximum(depth, 0.5 + (at_origin[:, :1, 2] - at_origin[:, :, 2]).amax(1, keepdim=True))
        transl = torch.cat([off * depth, depth], 1) - at_origin[:, 0]
        truth = body.joints(rotation, betas, transl, "smpl24")
        seen = body.joints(rotation, betas, transl, "coco17")
    K = torch.tensor([[1500.0, 0, 499.5], [0, 1500, 499.5], [0, 0, 1]]).expand(n, 3, 3)
    xy = cameras.project(seen, K)
    return {"truth": truth.numpy(), "xy": xy.numpy(), "K": K.numpy(), "size": np.full((n, 2), 1000)}


def spoilt(xy: np.ndarray, case: str, seed: int) -> np.ndarray:
    """Keypoints (n, 17, 3) of a case: clean, 3 px, 3 px with 32 % missing (scattered or grouped)."""
    rng = np.random.default_rng(seed)
    n = len(xy)
    pixel = (np.ptp(xy, axis=1).max(1) * MARGIN / CROP)[:, None, None]
    score = np.ones((n, 17))
    if "3 px" in case:
        xy = xy + NOISE * pixel * rng.standard_normal(xy.shape)
    if "scattered" in case:
        score = enough(rng.random((n, 17)) >= MISSING, rng)
    if "grouped" in case:
        score = enough(~grouped(xy, rng), rng)
    return np.concatenate([xy, score[..., None]], -1)


def enough(seen: np.ndarray, rng: np.random.Generator, fewest: int = 5) -> np.ndarray:
    """At least five keypoints stay."""
    order = (rng.random(seen.shape) + ~seen).argsort(1).argsort(1)
    return (seen | (order < fewest)).astype(float)


def grouped(xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Missing keypoints (n, 17): two limbs, or all beyond a line (mostly: the lower part); 32 % in the mean."""
    parts = [("eye", "ear", "nose"), ("left_elbow", "left_wrist", "left_shoulder"), ("left_knee", "left_ankle")]
    parts += [("right_elbow", "right_wrist", "right_shoulder"), ("right_knee", "right_ankle"), ("knee", "ankle", "hip")]
    table = np.array([[any(name.endswith(p) for p in part) for name in COCO] for part in parts])
    n = len(xy)
    limbs = table[rng.integers(len(parts), size=n)] | table[rng.integers(len(parts), size=n)]
    angle = np.where(rng.random(n) < 0.7, np.pi / 2, rng.random(n) * 2 * np.pi)
    along = xy[..., 0] * np.cos(angle)[:, None] + xy[..., 1] * np.sin(angle)[:, None]
    low, high = along.min(1, keepdims=True), along.max(1, keepdims=True)
    beyond = along > low + (high - low) * rng.uniform(0.35, 0.8, (n, 1))
    return np.where(rng.random((n, 1)) < 0.5, limbs, beyond)


def people_of(keypoints: np.ndarray, K: np.ndarray, size: np.ndarray) -> PersonBatch:
    n = len(keypoints)
    return PersonBatch(np.zeros((n, 4)), keypoints, COCO, K, size, np.zeros(n, int), np.arange(n))


def mocap(model: EmbeddedRecoverer, folder: Path, n: int = 2000) -> list[dict[str, Any]]:
    """One row of the table per set and case."""
    body, rows = load_body("embedded"), []
    for seed, (name, source, subject) in enumerate((("CMU subject 14", "cmu", "cmu14"), ("HDM05", "hdm05", ""))):
        made = scene(frames(folder, source, subject, n), body, seed)
        truth = made["truth"]
        for case in ("clean", "3 px", "3 px, 32 % scattered missing", "3 px, 32 % grouped missing"):
            given = spoilt(made["xy"], case, 10 + seed)
            result = model(people_of(given, made["K"], made["size"]))
            assert not any(result["error"])
            found = result["joints/xyz"].numpy()
            a = metrics.centred(found, found[:, HIPS].mean(1))
            b = metrics.centred(truth, truth[:, HIPS].mean(1))
            off = metrics.per_joint_error(a, b)
            sure = result["joints/confidence"].numpy()
            rows.append(
                {
                    "set": name,
                    "case": case,
                    "people": len(given),
                    "missing": round(float((given[..., 2] == 0).mean()), 3),
                    "mpjpe": round(float(off[:, FOURTEEN].mean()), 1),
                    "pa_mpjpe": round(float(metrics.pa_mpjpe(a[:, FOURTEEN], b[:, FOURTEEN]).mean()), 1),
                    "target": TARGETS[name].get(case),
                    "within_10cm": round(float((off < 100).mean()), 3),
                    "said_within_10cm": round(float(sure.mean()), 3),
                }
            )
    return rows


def annotated(folder: Path) -> dict[str, np.ndarray]:
    """The annotated people of the free photos with any keypoint: keypoints (n, 17, 3), size (n, 2), box (n, 4) xyxy."""
    data = json.loads((folder / "person_keypoints.json").read_text())
    size = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    chosen = [a for a in data["annotations"] if a.get("num_keypoints", 0) and not a.get("iscrowd")]
    keypoints = np.array([a["keypoints"] for a in chosen], float).reshape(-1, 17, 3)
    keypoints[..., 2] /= 2  # 1 visible, 0.5 labelled but occluded, as `hmr import coco` has it
    x, y, w, h = np.array([a["bbox"] for a in chosen]).T
    return {
        "keypoints": keypoints,
        "size": np.array([size[a["image_id"]] for a in chosen]),
        "box": np.stack([x, y, x + w, y + h], 1),
    }


def photos(model: EmbeddedRecoverer, folder: Path) -> dict[str, Any]:
    """PCK@0.2 of the half box for 9 or more keypoints; mean reprojection error per longer side for 8 or more."""
    given = annotated(folder)
    K = cameras.default_K(given["size"])
    result = model(people_of(given["keypoints"], K, given["size"]))
    count = (given["keypoints"][..., 2] > 0).sum(1)
    works = np.array([not e for e in result["error"]])
    pose = torch.cat([result["smpl/global_orient"][:, None], result["smpl/body_pose"]], 1)
    with torch.no_grad():
        points = load_body("embedded").joints(
            axis_angle_to_matrix(pose), result["smpl/betas"], result["smpl/transl"], "coco17"
        )
    drawn = cameras.project(points.numpy(), K)
    off = np.linalg.norm(drawn - given["keypoints"][..., :2], axis=-1)
    labelled, visible = given["keypoints"][..., 2] > 0, given["keypoints"][..., 2] == 1
    spread = np.where(labelled[..., None], given["keypoints"][..., :2], np.nan)
    with np.errstate(invalid="ignore"):
        own = (np.nanmax(spread, 1, initial=-1e9) - np.nanmin(spread, 1, initial=1e9)).max(1).clip(1)
    side = (given["box"][:, 2:] - given["box"][:, :2]).max(1)
    nine, eight = works & (count >= 9), works & (count >= 8)
    half = own[:, None] / 2
    return {
        "people with 9 or more keypoints": int(nine.sum()),
        "PCK@0.2 of the half box": round(float((off < 0.2 * half)[nine][labelled[nine]].mean()), 4),
        "PCK@0.1 of the half box": round(float((off < 0.1 * half)[nine][labelled[nine]].mean()), 4),
        "keypoint error / half box, mean": round(float((off / half)[nine][labelled[nine]].mean()), 4),
        "people with 8 or more keypoints": int(eight.sum()),
        "reprojection / box's longer side": round(float((off / side[:, None])[eight][visible[eight]].mean()), 4),
        "reprojection / keypoints' longer side": round(float((off / own[:, None])[eight][visible[eight]].mean()), 4),
        "people with 5 or more keypoints": int((count >= 5).sum()),
        "recovered of these": int((works & (count >= 5)).sum()),
    }


def speed(model: EmbeddedRecoverer, n: int = 512) -> dict[str, float]:
    """Milliseconds a person on one thread: many at once, and one alone."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    keypoints = np.concatenate([rng.uniform(100, 800, (n, 17, 2)), np.ones((n, 17, 1))], -1)
    K, size = np.tile([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]], (n, 1, 1)), np.full((n, 2), 1000)
    many, one = people_of(keypoints, K, size), people_of(keypoints[:1], K[:1], size[:1])
    model(many)

    def best(people: PersonBatch, times: int) -> float:
        spent = []
        for _ in range(times):
            start = time.thread_time()
            model(people)
            spent.append(time.thread_time() - start)
        return 1000 * float(np.median(spent)) / len(people)

    return {"ms a person, 512 at once": round(best(many, 5), 3), "ms, one alone": round(best(one, 20), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="holds testdata/mocap")
    parser.add_argument("--ckpt", type=Path, help="weights; without: the packaged ones")
    parser.add_argument("--people", type=int, default=2000, help="of each motion capture set")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    motion = args.shared / "testdata" / "mocap"
    if not motion.is_dir():
        raise SystemExit(f"no motion capture at {motion}: give --shared FOLDER")
    model = EmbeddedRecoverer.load(read_checkpoint(args.ckpt) if args.ckpt else None)
    table = {"mocap": mocap(model, motion, args.people), "photos": photos(model, PHOTOS)}
    table |= {"speed": speed(model), "weights": {"sha256": model.sha256, **model.about}}
    if args.json:
        print(json.dumps(table))
        return
    print("| set | keypoints | people | MPJPE / PA-MPJPE, mm | target | joints within 10 cm | said |")
    print("|---|---|---|---|---|---|---|")
    for r in table["mocap"]:
        goal = f"{r['target'][0]} / {r['target'][1]}" if r["target"] else ""
        print(
            f"| {r['set']} | {r['case']} | {r['people']} | {r['mpjpe']} / {r['pa_mpjpe']} | {goal} "
            f"| {r['within_10cm']:.0%} | {r['said_within_10cm']:.0%} |"
        )
    for part in ("photos", "speed"):
        print("\n| | |\n|---|---|")
        for name, value in table[part].items():
            print(f"| {name} | {value} |")
    detectors.report(detectors.photos_folder(args.shared), ("movenet", "blazepose"))


if __name__ == "__main__":
    main()
