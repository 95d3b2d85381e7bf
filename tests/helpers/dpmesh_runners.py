"""How each recorded case of DPMesh is computed: RUNNERS, name of the part -> outputs by their recorded names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from stages.evaluation import metrics
from stages.geometry import crops
from stages.geometry.heatmaps import dpmesh_keypoints, gaussian_heatmaps, joints_in_crop
from stages.geometry.rotations import about, axis_angle_to_matrix
from stages.keypoints.joint_sets import SETS, index
from stages.models.dpmesh.checkpoint_names import body_arrays
from stages.models.dpmesh.cpu_inference import prepare
from stages.models.dpmesh.inputs import HEAT, SIGMA, crop_images
from stages.models.dpmesh.network import DPMesh, camera_translation, focal_of
from stages.models.dpmesh.outputs import JointRegressor, body_outputs, reference_outputs
from stages.models.dpmesh.pose_decoder import PoseCodebook, gram_schmidt, matrix_to_axis_angle
from stages.models.dpmesh.regressor import sine_position
from stages.smpl.body import Body
from stages.training.dpmesh import losses
from tests.helpers.dpmesh_parity import Case, evaluate, sibling_of
from tests.helpers.fixtures import Fixtures

BODY = "human_model_layer."


def heatmap(case: Case) -> dict[str, Any]:
    xy, mask = case("joints")[..., :2], case("joints_mask")[..., 0]
    every = torch.ones_like(mask, dtype=torch.bool)
    return {
        "heatmap": gaussian_heatmaps(xy, every, (HEAT, HEAT), SIGMA),
        "masked_heatmap": gaussian_heatmaps(xy, mask > 0, (HEAT, HEAT), SIGMA),
    }


def prompt(case: Case) -> dict[str, Any]:
    model, _ = case.network("kp_lifting.")
    return {"context": model.context(case("joints")[..., :2])}


def vae(case: Case) -> dict[str, Any]:
    model, _ = case.network("backbone.sd_model.first_stage_model.")
    mean, logvar = model.vae.moments(case("image"))
    return {"latent_mean": mean, "latent_logvar": logvar}


def controlnet(case: Case) -> dict[str, Any]:
    model, _ = case.network("backbone.sd_model.control_model.")
    return control_outputs(model.control(case("latent"), case("context"), case("hint")))


def control_outputs(control: Any) -> dict[str, Any]:
    return {f"control{i}": value for i, value in enumerate(control)}


def unet(case: Case) -> dict[str, Any]:
    model, _ = case.network("backbone.sd_model.model.")
    control = None
    if described := case.spec["inputs"]["control"]:
        prefix = re.findall(r"array ([\w.]+)\{i\}", described)[0]
        shapes = control_shapes(model, case("latent"), case("context"))
        control = [torch.from_numpy(case.named(f"{prefix}{i}", shape)) for i, shape in enumerate(shapes)]
    return model.maps(case("latent"), case("context"), control)


def control_shapes(model: DPMesh, latent: torch.Tensor, context: torch.Tensor) -> list[tuple[int, ...]]:
    n, w = len(latent), model.config.width
    levels = [(w, 32), (w, 32), (w, 32), (w, 16), (2 * w, 16), (2 * w, 16), (2 * w, 8), (4 * w, 8), (4 * w, 8)]
    return [(n, c, s, s) for c, s in [*levels, *[(4 * w, 4)] * 4]]


def merge(case: Case) -> dict[str, Any]:
    model, _ = case.network("backbone.outmodules.")
    return {"merged": model.merge(*(case(f"map{side}") for side in (32, 16, 8, 4)))}


def regressor(case: Case) -> dict[str, Any]:
    parts = {n.removeprefix("module.").split(".")[0] for n in case.manifest} - {"backbone", "kp_lifting"}
    model, arrays = case.network(*parts)
    out = model.regress(case("features"), batch_of_three_quirk=True)
    return {
        "dense_feat": out["volume"],
        "img_pos": sine_position(),
        **reference_outputs(out, body_of(arrays), joint_regressor(case, arrays), focal_length(case)),
    }


def focal_length(case: Case) -> torch.Tensor:
    """The reference uses the first picture's for every sample of the batch."""
    return case("focal").float().reshape(-1)[0]


def body_of(arrays: dict[str, torch.Tensor]) -> Body:
    return Body.from_arrays(**body_arrays(arrays))


def joint_regressor(case: Case, arrays: dict[str, torch.Tensor]) -> JointRegressor:
    extra = case.side("J_regressor_extra.npy", "J_regressor_extra", (9, 6890))
    return JointRegressor(arrays["th_J_regressor"], torch.from_numpy(extra[3]))


def rot6d(case: Case) -> dict[str, Any]:
    def axis_angle(x: torch.Tensor, quirk: bool = False) -> torch.Tensor:
        return matrix_to_axis_angle(gram_schmidt(x, batch_of_three_quirk=quirk))

    return {
        "aa8": axis_angle(case("x8")),
        "aa3_one_by_one": axis_angle(case("x3")),
        "aa3_batch_of_three_quirk": axis_angle(case("x3"), quirk=True),
    }


def vposer(case: Case) -> dict[str, Any]:
    model, _ = case.network("vposer.")
    matrices = model.pose_head.matrices(case("z"))
    return {"matrot": matrices.flatten(2), "body_pose": model.pose_head(case("z"))}


def camera(case: Case) -> dict[str, Any]:
    in_crop = camera_translation(case("cam_param"), focal_length(case))
    xywh = case("bbox")
    full = in_crop.clone()
    full[:, 2] *= 256 / (xywh[:, 2] * xywh[:, 3]).sqrt()
    return {"trans": in_crop, "trans_render": full}


def smpl(case: Case) -> dict[str, Any]:
    _, arrays = case.network(BODY)
    joints, given = joint_regressor(case, arrays), (case(name) for name in ("pose", "shape", "trans"))
    return body_outputs(body_of(arrays), joints, *given, focal_length(case))


def metrics_case(case: Case) -> dict[str, Any]:
    text = case.spec["inputs"]
    gt = case.numbered(text["gt"]) if case.described("gt") else case("gt").numpy()
    pred = predictions(case, text["pred"], gt) if case.described("pred") else case("pred").numpy()
    h36m = case.side("J_regressor_h36m_correct.npy", "J_regressor_h36m_correct", (17, 6890))
    smpl24 = case.fixtures.weights.tensor("module.human_model_layer.th_J_regressor", (24, gt.shape[1]))
    meshes = pred, gt
    names = [n for i, n in enumerate(SETS["h36m17"]) if i not in (0, 7, 9)]
    kept = index(SETS["h36m17"], names)
    p, g = (metrics.centred(h36m @ m, (h36m @ m)[:, 0])[:, kept] for m in meshes)
    seen = case("joints_mask").numpy()[:, index(SETS["dpmesh30"], names), 0] > 0
    vertices = [metrics.centred(m, (smpl24 @ m)[:, 0]) for m in meshes]
    return {
        "mpjpe": metrics.mpjpe(p, g),
        "pa_mpjpe": metrics.pa_mpjpe(p, g),
        "mpvpe": metrics.mpjpe(*vertices),
        "mpjpe_visable": metrics.mpjpe(p, g, seen),
        "mpjpe_invisable": metrics.mpjpe(p, g, ~seen),
        "pa_mpjpe_visable": metrics.pa_mpjpe(p, g, seen),
        "pa_mpjpe_invisable": metrics.pa_mpjpe(p, g, ~seen),
        "h36m14_gt": g,
        "h36m14_pred": p,
    }


def predictions(case: Case, text: str, gt: np.ndarray) -> np.ndarray:
    """The sentence "p = array NAME{i} (6890,3) times 0.4; pred0 = p; pred1 = gt1 * [-1,1,1] + 0.05 p; pred2 = (gt2 R^T)
    * 0.9, R the rotation by 0.7 rad about y": one clause for each row of gt."""
    first, *clauses = text.split(";")
    noise = case.numbered(first, len(gt))
    turn = np.eye(3)
    if found := re.search(r"R the rotation by (-?[\d.]+) rad about ([xyz])", text):
        turn = about(found[2], torch.tensor(float(found[1]), dtype=torch.float64)).numpy()
    known = {f"gt{i}": mesh for i, mesh in enumerate(gt)} | {"R": turn}
    made = np.empty_like(gt)
    for clause in clauses:
        if found := re.match(r"\s*pred(\d+) = (.*?)(, R the .*)?$", clause):
            made[int(found[1])] = evaluate(found[2], known | {"p": noise[int(found[1])]})
    return made


def losses_case(case: Case) -> dict[str, Any]:
    parts = {n.removeprefix("module.").split(".")[0] for n in case.manifest} - {"backbone", "kp_lifting"}
    model, arrays = case.network(*parts)
    focal = case.array("stored: in.cliff_focal_length").reshape(-1)[0]
    regressed = model.regress(case("features"), batch_of_three_quirk=True)
    out = reference_outputs(regressed, body_of(arrays), joint_regressor(case, arrays), focal)
    arrays_of = ("orig_joint_img", "fit_joint_img", "orig_joint_cam", "pose_param", "shape_param")
    stored = {n.removeprefix("in."): torch.from_numpy(case.stored[n]) for n in case.stored.files if n.startswith("in.")}
    raw = losses.terms(out, {n: case(n) for n in arrays_of} | stored)
    learned = case("awl_params_p")
    weighting = losses.LearnedWeights(len(learned))
    results = {f"raw.{n}": v for n, v in raw.items()}
    for name, p in (("awl_ones", torch.ones_like(learned)), ("awl_p", learned)):
        weighting.p.data = p
        weighted = weighting(raw)
        results |= {f"{name}.{n}": v.detach() for n, v in weighted.items()} | {
            f"{name}.total": sum(weighted.values()).detach()
        }
    views = case.assigned(case.spec["inputs"]["simclr"])
    student, teacher = (torch.from_numpy(views[name]) for name in ("student", "teacher"))
    return results | {"simclr": losses.nt_xent(student, teacher), "mse": losses.distillation(student, teacher)}


def vqvae(case: Case) -> dict[str, Any]:
    tensors = {n.removeprefix("vqvae."): case.tensor(n) for n in case.manifest}
    model = PoseCodebook(len(tensors["token_mlp.weight"]), *tensors["codebook"].shape)
    model.load_state_dict(tensors)
    axis_angle = case("pose_for_encoding").reshape(-1, 23, 3)
    matrices = axis_angle_to_matrix(axis_angle).flatten(2)
    return {
        "decoded_from_logits": model.decode_weights(case("logits")),
        "decoded_from_indices": model.decode_indices(case("indices")),
        "encoded_indices": model.indices(matrices),
    }


def prep(case: Case) -> dict[str, Any]:
    openpose, size = case.stored["openpose"], case.stored["image_hw"][:, ::-1]
    own = dpmesh_keypoints(openpose, SETS["openpose18"])
    crowd = own.copy()
    hhrnet = case.stored["hhrnet_coco"]
    said = re.search(r"annotations? ([\d, and]+)", case.spec["inputs"].get("hhrnet_coco", ""))
    which = [int(n) for n in re.findall(r"\d+", said[1])] if said else range(len(hhrnet))
    crowd[which] = dpmesh_keypoints(hhrnet, SETS["coco17"])
    made, crowd_made = joints_in_crop(own, size), joints_in_crop(crowd, size)
    affine = crops.scaled(made.affine, 256 / HEAT)
    images = [case.stored[f"image{i}"] for i in range(len(size))]
    crop = crop_images(images, np.arange(len(size)), affine)

    def joints(made: Any, keypoints: np.ndarray) -> np.ndarray:
        return np.concatenate([made.xy, keypoints[..., 2:]], -1)

    def xywh(keypoints: np.ndarray) -> np.ndarray:
        box = crops.dpmesh_boxes(keypoints, size)
        return np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], 1)

    return {
        "joints": joints(made, own),
        "joints_mask": made.visible[..., None],
        "bbox": xywh(own),
        "img2bb_trans": affine,
        "bb2img_trans": crops.invert(affine),
        "cliff_focal_length": focal_of(torch.from_numpy(size.copy())),
        "crowd_joints": joints(crowd_made, crowd),
        "crowd_joints_mask": crowd_made.visible[..., None],
        "crowd_bbox": xywh(crowd),
        "crowd_joints_as_eval_script": joints(made, own),
        # One OpenCV samples on one grid: 4 on 1/32 pixel, 5 exactly.
        "crop_cv4" if cv2.__version__ < "5" else "crop_exact": crop,
        "gt_mesh": np.stack([ground_truth_mesh(case, i) for i in range(len(size))]),
    }


def ground_truth_mesh(case: Case, i: int) -> torch.Tensor:
    described = case.spec["inputs"]["gt_smpl"]
    gender = described["gender"].split(" for ")[0].split(", ")[i]
    neutral = case.fixtures.index("manifest.json")
    prefix = f"module.{BODY}" if gender == "neutral" else f"smpl_{gender}."
    fill = case.fixtures.weights.tensor
    arrays = {
        n.removeprefix(f"module.{BODY}"): torch.from_numpy(
            np.array(fill(prefix + n.removeprefix(f"module.{BODY}"), tuple(e["shape"]), e["dtype"]))
        )
        for n, e in neutral.items()
        if n.startswith(f"module.{BODY}")
    }
    pose, betas = (torch.from_numpy(case.numbered(described[n], i + 1)[i:]) for n in ("pose", "shape"))
    transl = torch.from_numpy(np.float32(evaluate(described["trans"], {"i": i})))[None]
    rotations = axis_angle_to_matrix(pose.reshape(1, 24, 3))
    return body_of(arrays).forward_rotmat(rotations, betas, transl).vertices[0]


def full(case: Case) -> dict[str, Any]:
    model, arrays = case.network("")
    prepare(model)  # as `hmr recover` runs it on a CPU; the cases of the parts run the plain modules
    xy, mask = case("joints")[..., :2], case("joints_mask")[..., 0] > 0
    latent, context = model.latent(case("image")), model.context(xy)
    control = model.control(latent, context, model.condition(xy, mask))
    maps = model.maps(latent, context, control)
    merged = model.merge(maps["map32"], maps["map16"], maps["map8"], maps["map4"])
    out = model.regress(merged, batch_of_three_quirk=True)
    reported = reference_outputs(out, body_of(arrays), joint_regressor(case, arrays), focal_length(case))
    return {"latent": latent, **control_outputs(control), **maps, "merged": merged, **reported}


RUNNERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "prep": prep, "heatmap": heatmap, "prompt": prompt, "camera": camera, "rot6d": rot6d, "vposer": vposer, "vae": vae,
    "controlnet": controlnet, "unet": unet, "merge": merge, "regressor": regressor, "smpl": smpl, "full": full,
    "metrics": metrics_case, "losses": losses_case, "vqvae": vqvae,
}  # fmt: skip


def runner_of(name: str) -> str:
    fitting = [runner for runner in RUNNERS if name.startswith(runner)]
    assert fitting, f"no runner for case {name}; runners: {', '.join(RUNNERS)}"
    return max(fitting, key=len)


def cases_of(fixtures: Fixtures) -> dict[str, dict[str, Any]]:
    """The cases of the folder's index, and files there that continue the name of a known case (full_small_2.npz)."""
    if not fixtures.held:
        return {}
    known = fixtures.index("fixtures.json")["cases"]
    own = known if (fixtures.folder / "fixtures.json").exists() else {}
    listed = {spec["file"] for spec in own.values()}
    names = {p.stem: sibling_of(p.stem, known) for p in sorted(fixtures.folder.glob("*.npz")) if p.name not in listed}
    return own | {stem: known[name] for stem, name in names.items() if name}
