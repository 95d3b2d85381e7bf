"""One small tree per data set and layout: `LAYOUTS[name](folder) -> Tree`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.dataset_world import SIZE, K, World, add_regressors, dump, dump_json, picture, pixels


@dataclasses.dataclass
class Tree:
    """name for hmr eval · data for --data · world · frame name -> number in the world · rows that must be found ·
    files whose loss must be noticed · the file to damage · annotated: joints that are scored, all without."""

    name: str
    data: Path
    world: World
    frames: dict[str, int]
    rows: int
    files: list[Path]
    damage: Path
    partial: bool = True
    annotated: tuple[str, ...] = ()


def _pose_file(world: World, start: int = 0) -> dict[str, Any]:
    """A pickle of 3DPW whose frames `start` on are the world's; the frames before are nobody's."""
    F, P = world.pose.shape[:2]
    n = start + F
    openpose = world.keypoints("openpose18").transpose(0, 1, 3, 2)

    def late(values: np.ndarray, like: float = 0.0) -> np.ndarray:
        return np.concatenate([np.full((start, *values.shape[1:]), like), values])

    valid = np.ones((P, n))
    valid[:, :start] = 0
    return {
        "sequence": "test",
        "betas": [np.concatenate([world.betas[0, p], np.zeros(290)]) for p in range(P)],
        "poses": [late(world.pose[:, p]) for p in range(P)],
        "trans": [late(world.trans[:, p]) for p in range(P)],
        "poses2d": [late(openpose[:, p]) for p in range(P)],
        "jointPositions": [late(world.joints_world[:, p].reshape(F, 72)) for p in range(P)],
        "genders": [g[0] for g in world.genders],
        "cam_poses": np.concatenate([np.tile(np.eye(4), (start, 1, 1)), world.camera]),
        "campose_valid": list(valid),
        "cam_intrinsics": K,
        "img_frame_ids": np.arange(n),
    }


def _threedpw(name: str, sequence: str, split: str, start: int = 0) -> Callable[[Path], Tree]:
    def make(folder: Path) -> Tree:
        world = World(4, 2, ("male", "female"), seed=len(name))
        root = folder / "3DPW"
        content = _pose_file(world, start)
        content["campose_valid"][0][start + 1] = 0  # one row less
        if name == "3dpw-pc":
            content["poses2d"][1][start + 2] = 0  # not found by OpenPose: left out by ROMP's rule only
        path = dump(root / "sequenceFiles" / split / f"{sequence}.pkl", content)
        images = [root / "imageFiles" / sequence / f"image_{i:05d}.jpg" for i in range(start, start + 4)]
        for i in range(0 if name != "3dpw-pc" else start, start):
            picture(root / "imageFiles" / sequence / f"image_{i:05d}.jpg")
        for image in images:
            picture(image)
        frames = {image.relative_to(root).as_posix(): f for f, image in enumerate(images)}
        add_regressors(folder)
        return Tree(name, folder, world, frames, 6 if name == "3dpw-pc" else 7, [images[2]], path)

    return make


def _annotations(name: str, file: str, sequence: str) -> Callable[[Path], Tree]:
    def make(folder: Path) -> Tree:
        world = World(3, 2, ("female", "male"), seed=11)
        root = folder / "data" / "3DPW"
        openpose = world.keypoints("openpose18")
        images, annotations, poses = [], [], {}
        for f in range(3):
            camera = {"focal": [K[0, 0], K[1, 1]], "princpt": [K[0, 2], K[1, 2]]}
            images.append({"id": f + 7, "file_name": f"image_{f:05d}.jpg", "sequence": sequence, "frame_idx": f})
            images[-1] |= {"width": SIZE[0], "height": SIZE[1], "cam_param": camera}
            picture(root / "imageFiles" / sequence / f"image_{f:05d}.jpg")
            for p in range(2):
                low, high = openpose[f, p, :, :2].min(0), openpose[f, p, :, :2].max(0)
                smpl = {"shape": world.betas[f, p], "pose": world.turned_pose(f, p), "trans": np.zeros(3)}
                smpl["gender"] = world.genders[p]
                each = {"id": 10 * f + p, "image_id": f + 7, "person_id": p, "smpl_param": smpl}
                each |= {"bbox": np.concatenate([low, high - low]), "openpose_result": openpose[f, p]}
                annotations.append(each)
                if f:
                    poses[str(each["id"])] = {"coco_joints": world.keypoints("coco17")[f, p]}
        path = dump_json(root / file, {"images": images, "annotations": annotations})
        files = [root / "imageFiles" / sequence / "image_00001.jpg"]
        if name == "3dpw-crowd":
            files += [dump_json(root / "3DPW_validation_crowd_hhrnet_result.json", poses)]
        frames = {f"imageFiles/{sequence}/image_{f:05d}.jpg": f for f in range(3)}
        add_regressors(root)
        return Tree(name, root, world, frames, 6, files, path)

    return make


def _prohmr_item(world: World, f: list[int], p: int, names: list[str], j19: np.ndarray) -> dict[str, Any]:
    keypoints = world.keypoints("body25")[f, p]
    low, high = keypoints[..., :2].min(1), keypoints[..., :2].max(1)
    joints = j19 @ world.vertices[f, p]
    return {
        "imgname": np.array(names),
        "center": (low + high) / 2,
        "scale": 1.2 * (high - low).max(1),
        "body_keypoints_2d": keypoints,
        "extra_keypoints_3d": np.concatenate([joints, np.ones((len(f), 19, 1))], -1),
    }


def _prohmr(name: str, file: str, pattern: str) -> Callable[[Path], Tree]:
    def make(folder: Path) -> Tree:
        from tests.helpers.dataset_world import matrix

        world = World(4, 2, ("male", "female"), seed=5)
        add_regressors(folder)
        j19 = matrix(folder, "j19")
        names = [pattern.format(f) for f in range(4)]
        base = folder / {"mannequin": "frames"}.get(name, ".")
        for each in names:
            picture(base / each)
        items = [_prohmr_item(world, [0, 1, 2, 3], p, names, j19) for p in range(2)]
        if name == "h36m-multiview":
            items = [items[0]]
        if file.endswith(".npz"):
            np.savez(folder / file, **{k: np.concatenate([i[k] for i in items]) for k in items[0]})
        else:
            dump(folder / file, items, protocol=4)
        data = folder / file if name == "3dpw" else folder
        rows = 4 * len(items)
        lost = [base / names[1]] + [folder / file] * (name == "mannequin")
        return Tree(name, data, world, {n: f for f, n in enumerate(names)}, rows, lost, folder / file, name == "3dpw")

    return make


def _threedoh(folder: Path) -> Tree:
    world = World(3, 1, ("neutral",), seed=3)
    entries = {}
    lsp = world.keypoints("coco17")[:, 0, :14, :2]
    for f in range(3):
        entries[f"{f:05d}"] = {
            "img_path": f"images\\{f:05d}.jpg",
            "bbox": [[40, 20], [280, 230]],
            "intri": K,
            "extri": world.camera[f],
            "pose": world.pose[f],
            "betas": world.betas[f],
            "trans": world.trans[f],
            "scale": [7.0],
            "lsp_joints_2d": lsp[f],
        }
        picture(folder / "testset" / "images" / f"{f:05d}.jpg")
    path = dump_json(folder / "testset" / "annots.json", entries)
    add_regressors(folder)
    frames = {f"images/{f:05d}.jpg": f for f in range(3)}
    return Tree("3doh", folder, world, frames, 3, [folder / "testset" / "images" / "00001.jpg"], path)


def _threedoh_jotr(folder: Path) -> Tree:
    world = World(3, 1, ("neutral",), seed=4)
    coco = world.keypoints("coco17")[:, 0]
    entries = {
        f"{f:05d}.jpg": {"pose": world.turned_pose(f, 0), "shape": world.betas[f, 0], "trans": [0, 0, 0], "scale": 1}
        | {"bbox": [40, 20, 280, 230], "hrnet_results": coco[f]}
        for f in range(3)
    }
    for f in range(3):
        picture(folder / "testset" / "images" / f"{f:05d}.jpg")
    path = dump_json(folder / "3doh_test_annots_scale_1.json", entries)
    add_regressors(folder)
    frames = {f"images/{f:05d}.jpg": f for f in range(3)}
    return Tree("3doh", folder, world, frames, 3, [folder / "testset" / "images" / "00002.jpg"], path)


def _emdb(folder: Path) -> Tree:
    world = World(4, 1, ("female",), seed=6)
    where = folder / "EMDB" / "P8" / "69_outdoor_cartwheel"
    keypoints = world.keypoints("smpl24")[:, 0, :, :2]
    good = np.array([True, True, False, True])
    content = {
        "gender": "female", "name": "P8_69_outdoor_cartwheel", "emdb1": True, "emdb2": False, "n_frames": 4,
        "good_frames_mask": good,
        "camera": {"intrinsics": K, "extrinsics": world.camera, "width": SIZE[0], "height": SIZE[1]},
        "smpl": {"poses_root": world.pose[:, 0, :3], "poses_body": world.pose[:, 0, 3:], "trans": world.trans[:, 0],
                 "betas": world.betas[0, 0]},
        "kp2d": keypoints,
        "bboxes": {"bboxes": np.concatenate([keypoints.min(1), keypoints.max(1)], 1), "invalid_idxs": np.zeros(0, int)},
    }  # fmt: skip
    path = dump(where / "P8_69_outdoor_cartwheel_data.pkl", content, protocol=4)
    for f in range(4):
        picture(where / "images" / f"{f:05d}.jpg")
    frames = {f"P8/69_outdoor_cartwheel/images/{f:05d}.jpg": f for f in range(4)}
    return Tree("emdb", folder, world, frames, 3, [where / "images" / "00001.jpg"], path)


def _panoptic(folder: Path) -> Tree:
    from stages.datasets.panoptic import COCO19

    world, sequence = World(3, 2, ("male", "female"), seed=8), "160906_pizza1"
    root = folder / sequence
    add_regressors(folder)
    coco19 = _coco19(world, folder)
    # One camera for all frames: the world is turned so that the first frame's camera sees it.
    R, t = world.R[0], world.t[0] * 100
    camera = {"name": "00_16", "K": K, "distCoef": [0, 0, 0, 0, 0], "R": R, "t": t[:, None]}
    files = [dump_json(root / f"calibration_{sequence}.json", {"cameras": [camera]})]
    for f in range(3):
        back = np.einsum("ji,pkj->pki", R, coco19[f] * 100 - t)
        flat = np.concatenate([back, np.ones((2, 19, 1))], -1)
        flat[:, 5, 3] = 0  # a wrist that is not annotated
        bodies = [{"id": p, "joints19": flat[p].ravel()} for p in range(2)]
        files.append(dump_json(root / "hdPose3d_stage1_coco19" / f"body3DScene_{f:08d}.json", {"bodies": bodies}))
        picture(root / "hdImgs" / "00_16" / f"00_16_{f:08d}.jpg")
    (root / "frames.txt").write_text("".join(f"00_16_{f:08d}\n" for f in range(3)))
    frames = {f"{sequence}/hdImgs/00_16/00_16_{f:08d}.jpg": f for f in range(3)}
    lost = [root / "frames.txt", files[2], root / "hdImgs" / "00_16" / "00_16_00000001.jpg"]
    scored = tuple(n for n in COCO19 if n != "left_wrist")
    return Tree("panoptic-pizza", folder, world, frames, 6, lost, files[1], partial=False, annotated=scored)


def _coco19(world: World, folder: Path) -> np.ndarray:
    """Panoptic's joints (F, P, 19, 3), camera frame: by name from H36M's points, the face from the nose."""
    from stages.datasets.panoptic import COCO19
    from stages.keypoints import joint_sets
    from tests.helpers.dataset_world import matrix

    h36m = matrix(folder, "h36m17") @ world.vertices
    at = joint_sets.index(joint_sets.get("h36m17"), COCO19)
    return h36m[:, :, np.where(at < 0, 9, at)]


def _panoptic_packed(folder: Path) -> Tree:
    from stages.datasets.panoptic import CRMH24
    from stages.keypoints import joint_sets
    from tests.helpers.dataset_world import matrix

    world, root = World(3, 2, ("male", "female"), seed=9), folder / "160422_mafia2"
    add_regressors(folder)
    h36m = matrix(folder, "h36m17") @ world.vertices
    at = joint_sets.index(joint_sets.get("h36m17"), CRMH24)
    truth = np.concatenate(
        [h36m[:, :, at.clip(0)], np.repeat(at[:, None] >= 0, 1, 1)[None, None].repeat(3, 0).repeat(2, 1)], -1
    )
    small = (pixels(truth[..., :3]) + 0.5) / max(SIZE[0] / 832, SIZE[1] / 512) - 0.5
    items = []
    for f in range(3):
        picture(root / f"{f}.jpg")
        two = np.concatenate([small[f], truth[f, ..., 3:]], -1)
        items.append({"filename": f"{f}.jpg", "width": 832, "height": 512, "bboxes": np.zeros((2, 4))})
        items[-1] |= {"kpts2d": two, "kpts3d": truth[f]}
    path = dump(root / "160422_mafia2.pkl", items, protocol=4)
    frames = {f"160422_mafia2/{f}.jpg": f for f in range(3)}
    return Tree("panoptic-mafia", path, world, frames, 6, [root / "1.jpg"], path, partial=False)


def _h36m(name: str) -> Callable[[Path], Tree]:
    def make(folder: Path) -> Tree:
        import cdflib

        from stages.datasets.h36m import NAMES
        from stages.datasets.subsets import facts
        from stages.keypoints import joint_sets
        from stages.media.video import write_video
        from tests.helpers.dataset_world import matrix

        fact = facts()["h36m"]
        cameras = [fact["p2"]] if name == "h36m-p2" else fact["cameras"]
        world = World(4 * len(cameras), 1, ("male",), seed=10)
        add_regressors(folder)
        h36m = matrix(folder, "h36m17") @ world.vertices[:, 0]
        named = h36m[:, joint_sets.index(joint_sets.get("h36m17"), NAMES)]
        frames, files, number = {}, [], 0
        for subject in fact["subjects"]:
            for camera in cameras:
                xyz = np.zeros((10, 32, 3))
                xyz[::5][:, fact["joints17_of_32"]] = named[number : number + 2]
                xyz[..., 2] = np.where(xyz[..., 2] == 0, 4, xyz[..., 2])
                stem = f"Eating 1.{camera}"
                for kind, values in (("D3_Positions_mono", xyz * 1000), ("D2_Positions", pixels(xyz))):
                    path = folder / subject / "MyPoseFeatures" / kind / f"{stem}.cdf"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with_cdf(cdflib, path, values.reshape(1, 10, -1))
                    files.append(path)
                video = folder / subject / "Videos" / f"{stem}.mp4"
                video.parent.mkdir(parents=True, exist_ok=True)
                write_video(video, [np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)] * 10, fps=50)
                files.append(video)
                frames |= {f"{subject}/Videos/{stem}.mp4#{5 * k}": number + k for k in range(2)}
                number += 2
        return Tree(name, folder, world, frames, number, [files[2], files[1]], files[0], partial=False)

    return make


def with_cdf(cdflib: Any, path: Path, values: np.ndarray) -> None:
    file = cdflib.cdfwrite.CDF(path, cdf_spec={"Majority": "row_major"})
    spec = {"Variable": "Pose", "Data_Type": 45, "Num_Elements": 1, "Rec_Vary": True, "Dim_Sizes": values.shape[1:]}
    file.write_var(spec, var_data=values)
    file.close()


def _labelled(name: str, file: str) -> Callable[[Path], Tree]:
    def make(folder: Path) -> Tree:
        from stages.datasets.ochuman_crowdpose import CROWDPOSE, OCHUMAN
        from stages.geometry.cameras import default_K
        from stages.smpl.body import load_body

        world = World(3, 2, ("neutral", "neutral"), seed=12)
        k = default_K(np.array([SIZE]))[0]
        body = load_body("smpl", "neutral")
        names = OCHUMAN if name == "ochuman" else CROWDPOSE
        have = {n: r.numpy() for n, r in zip(("neck", *_coco()), _rows(body), strict=True)}
        rows = np.stack([have.get(n, have["neck"]) for n in names]).astype(float)
        points = pixels(rows @ world.vertices, k) + np.array([3, 4])
        flags = np.ones((*points.shape[:3], 1)) * (1 if file == "ochuman.json" else 2)
        flags[:, :, names.index("head_top")] = 0
        flat = np.concatenate([points, flags], -1).reshape(3, 2, -1)
        images, annotations = [], []
        for f in range(3):
            picture(folder / "images" / f"{f:06d}.jpg")
            each = {"file_name": f"{f:06d}.jpg", "width": SIZE[0], "height": SIZE[1]}
            people = []
            for p in range(2):
                low, high = points[f, p].min(0), points[f, p].max(0)
                people.append({"keypoints": flat[f, p], "id": 2 * f + p, "image_id": f})
                people[-1]["bbox"] = np.concatenate([low, high if file == "ochuman.json" else high - low])
            if file == "ochuman.json":
                images.append(each | {"image_id": f, "annotations": people})
            else:
                images.append(each | {"id": f})
                annotations += people
        content = {"images": images} | ({} if file == "ochuman.json" else {"annotations": annotations})
        path = dump_json(folder / file, content)
        frames = {f"{f:06d}.jpg": f for f in range(3)}
        return Tree(name, folder, world, frames, 6, [folder / "images" / "000001.jpg"], path, partial=False)

    return make


def _coco() -> tuple[str, ...]:
    from stages.keypoints import joint_sets

    return joint_sets.get("coco17")


def _rows(body: Any) -> list[Any]:
    return [body.regressor("smpl24")[12], *body.regressor("coco17")]


LAYOUTS: dict[str, Callable[[Path], Tree]] = {
    "3dpw": _threedpw("3dpw", "downtown_bar_00", "test"),
    "3dpw-oc": _threedpw("3dpw-oc", "courtyard_basketball_00", "train"),
    "3dpw-pc": _threedpw("3dpw-pc", "downtown_bus_00", "test", 1620),
    "3dpw-crowd": _threedpw("3dpw-crowd", "courtyard_hug_00", "validation"),
    "3dpw json": _annotations("3dpw", "3DPW_latest_test.json", "downtown_bar_00"),
    "3dpw-oc json": _annotations("3dpw-oc", "3DPW_oc.json", "courtyard_box_00"),
    "3dpw-pc json": _annotations("3dpw-pc", "3DPW_pc.json", "downtown_bus_00"),
    "3dpw-crowd json": _annotations("3dpw-crowd", "3DPW_latest_validation.json", "courtyard_hug_00"),
    "3dpw npz": _prohmr("3dpw", "3dpw_test.npz", "imageFiles/downtown_bar_00/image_{:05d}.jpg"),
    "3dpw video": _prohmr("3dpw", "3dpw_test_video.pkl", "imageFiles/downtown_bar_00/image_{:05d}.jpg"),
    "3doh": _threedoh,
    "3doh json": _threedoh_jotr,
    "emdb": _emdb,
    "panoptic": _panoptic,
    "panoptic pickle": _panoptic_packed,
    "h36m": _h36m("h36m"),
    "h36m-p2": _h36m("h36m-p2"),
    "h36m-multiview": _h36m("h36m-multiview"),
    "h36m-multiview pkl": _prohmr("h36m-multiview", "h36m_val_multiview.pkl", "images/S9_Eating.5413896{}_000001.jpg"),
    "mannequin": _prohmr("mannequin", "mannequin.pkl", "clip_1/{:06d}.jpg"),
    "ochuman": _labelled("ochuman", "ochuman.json"),
    "ochuman coco": _labelled("ochuman", "ochuman_coco_format_test_range_0.00_1.00.json"),
    "crowdpose": _labelled("crowdpose", "crowdpose_test.json"),
}
