"""ScoreHMR against values recorded from the released program with stand-in weights (tests/fixtures/parity/scorehmr)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.files.checkpoints import Checkpoint
from stages.geometry import cameras, crops, rotations
from stages.models.base import PersonBatch
from stages.models.pare import extractors
from stages.models.scorehmr.body25 import OPENPOSE25_MIX, OPENPOSE25_VERTICES
from stages.models.scorehmr.denoiser import Denoiser, noise_loss, sinusoid
from stages.models.scorehmr.feature_statistics import Statistics
from stages.models.scorehmr.guidance import Guidance, SmoothTerm, ViewTerm
from stages.models.scorehmr.keypoint_term import Adam, KeypointTerm, Observed
from stages.models.scorehmr.kinematic_chain import KinematicChain
from stages.models.scorehmr.sampler import Codec, SamplingPlan, guided_sampling, sample
from stages.models.scorehmr.schedule import Schedule, down, tables
from tests.helpers.fixtures import Fixtures, fixtures_of
from tests.helpers.parity_limits import limit as widened

DENOISERS = {"denoiser_pare": (3072, 0), "denoiser_pare_betas": (3072, 1536), "denoiser_prohmr": (2048, 0)}


def base(stem: str) -> str:
    """A case's family: model_2 is another case of model."""
    return re.sub(r"_\d+$", "", stem)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    fixtures = fixtures_of(metafunc.config, "scorehmr")
    stem = metafunc.function.__name__.removeprefix("test_")
    many = stem in ("guided", "denoiser")
    paths = sorted(fixtures.folder.glob(f"{stem}_*.npz")) if many else fixtures.cases(stem)
    none = pytest.param(None, id="none", marks=pytest.mark.skip(f"{fixtures.folder} has no {stem} case"))
    metafunc.parametrize("case", [pytest.param((fixtures, path), id=path.stem) for path in paths] or [none])


class Case:
    """One .npz file with its tolerances."""

    def __init__(self, case: tuple[Fixtures, Path]) -> None:
        self.fixtures, self.path = case
        self.stem = self.path.stem
        self.data = dict(np.load(self.path))
        limits = self.fixtures.index("tolerances.json")
        fallback = limits["guided_kp_fit"] if self.stem.startswith("guided") else {}
        self.limits: dict[str, Any] = limits.get(self.stem, limits.get(base(self.stem), fallback))

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.data[name]))

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def check(self, name: str, got: Any, expected: Any = None, where: Any = None) -> None:
        want = np.asarray(self.data[name] if expected is None else expected, dtype=np.float64)
        have = np.asarray(got, dtype=np.float64)
        assert have.shape == want.shape, f"{name}: {have.shape} for {want.shape}"
        if where is not None:
            have, want = have[where], want[where]
        limit = self.limits.get(name, self.limits.get("*"))
        assert limit, f"no tolerance for {name}"
        error = np.abs(have - want)
        if "rel" in limit:
            error, allowed = error / np.maximum(np.abs(want), limit.get("floor", 1e-30)), limit["rel"]
        elif "rel_to_std" in limit:
            error, allowed = error / want.std(), limit["rel_to_std"]
        else:
            allowed = limit["abs"]
        allowed = widened("scorehmr", self.stem, name, allowed)
        assert not np.isnan(have).any(), f"{name} is not finite"
        assert error.max(initial=0) <= allowed, f"{self.stem} {name}: {error.max():.3g} over {allowed:.3g}"


@lru_cache(maxsize=1)
def denoiser(fixtures: Fixtures, name: str) -> Denoiser:
    manifest = json.loads(fixtures.find(f"manifest_{name}.json").read_text())
    state = {
        k.removeprefix("ema_model.model."): torch.from_numpy(v)
        for k, v in fixtures.weights.state_dict(manifest).items()
    }
    net = Denoiser(*DENOISERS[name]).eval()
    net.load_state_dict(state)
    return net


@lru_cache(maxsize=1)
def arrays(fixtures: Fixtures) -> dict[str, torch.Tensor]:
    data = np.load(fixtures.find("body_standin.npz"))
    return {
        k: torch.from_numpy(data[k].astype(np.int64 if data[k].dtype.kind in "iu" else np.float32)) for k in data.files
    }


@lru_cache(maxsize=2)
def chain(fixtures: Fixtures, every: bool = False) -> KinematicChain:
    """The 25 points that the loss reads; with `every`, all 44 joints and then every 50th vertex."""
    body = arrays(fixtures)
    parents = body["kintree_table"][0].clone()
    parents[0] = -1
    mix, ids = OPENPOSE25_MIX, torch.tensor(OPENPOSE25_VERTICES)
    if every:
        ids = torch.arange(6890)
        vertices = torch.zeros(25, 6890)
        for row, source in enumerate(OPENPOSE25_MIX):
            if source >= 24:
                vertices[row, OPENPOSE25_VERTICES[source - 24]] = 1
        joints = torch.zeros(25, 24)
        joints[[i for i, s in enumerate(mix) if s < 24], [s for s in mix if s < 24]] = 1
        top = torch.cat([joints, vertices], 1)
        extra = torch.cat([torch.zeros(19, 24), body["J_regressor_extra"]], 1)
        some = torch.cat([torch.zeros(138, 24), torch.eye(6890)[::50]], 1)
        points = torch.cat([top, extra, some])
    else:
        points = torch.eye(24 + len(ids))[mix]
    return KinematicChain(
        parents,
        body["J_regressor"] @ body["v_template"],
        torch.einsum("jv,vkb->jkb", body["J_regressor"], body["shapedirs"]),
        body["v_template"][ids],
        body["shapedirs"][ids],
        body["weights"][ids],
        points,
        body["posedirs"][ids],
    )


def test_schedule(case: tuple[Fixtures, Path]) -> None:
    c, made = Case(case), tables()
    for name in c.data:
        c.check(name, made[name])


@torch.no_grad()
def test_denoiser(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    net = denoiser(c.fixtures, base(c.stem))
    x, cond, times = c["x"], c["cond"], c["timesteps"]
    rows = [net(x, t.expand(len(x)), cond) for t in times]
    c.check("eps", torch.stack(rows))
    fast = net.condition(cond, times.tolist())
    c.check("eps", torch.stack([fast(x, t) for t in times.tolist()]))
    c.check("eps_mixed", net(x, c["mixed_timesteps"], cond))
    c.check("sinusoid", sinusoid(times, 144))
    c.check("time_features", net.time_mlp(sinusoid(times, 144)))
    h, at = net.init_mlp(x[:, :144]), net.time_mlp(sinusoid(torch.tensor([50]), 144))
    same = torch.zeros(len(x), dtype=torch.long)
    for i, block in enumerate(net.blocks):
        h = block(h, at, same, cond[:, : net.condition_size])
        c.check(f"block{i}_t50", h)


@torch.no_grad()
def test_ddim(case: tuple[Fixtures, Path]) -> None:
    c, schedule = Case(case), Schedule.cosine()
    net = denoiser(c.fixtures, "denoiser_pare")
    x = c["pred_pose"][..., :2].transpose(-1, -2).reshape(-1, 144)
    c.check("inv_latents", x, c["x_start"], None)
    up = c["inv_timesteps"].tolist()
    step = up[1] - up[0]
    eps = net.condition(c["cond"], [*up, up[-1] + step])
    latents, noises = [], []
    for t in up:
        noise = eps(x, t)
        latents.append(x)
        noises.append(noise)
        x = schedule.move(schedule.x0(x, noise, t), noise, t + step)
    c.check("inv_latents", torch.stack(latents))
    c.check("inv_eps", torch.stack(noises))
    latents, estimates = [], []
    for t in c["samp_timesteps"].tolist():
        noise = eps(x, t)
        latents.append(x)
        estimates.append(schedule.x0(x, noise, t))
        x = schedule.move(estimates[-1], noise, t - step)
    c.check("samp_latents", torch.stack(latents))
    c.check("samp_x0", torch.stack(estimates))
    c.check("out_x_0", estimates[-1])

    seen: dict[str, list[torch.Tensor]] = {"latents": [], "x0": []}
    times = c["vanilla_timesteps"].tolist()
    last = sample(
        net.condition(c["cond"], times), schedule, c["vanilla_x_T"], times[0], times[0] - times[1],
        lambda name, value: seen[name].append(value),
    )  # fmt: skip
    c.check("vanilla_latents", torch.stack(seen["latents"]))
    c.check("vanilla_x0", torch.stack(seen["x0"]))
    c.check("vanilla_out_x_0", last)
    assert times == down(times[0], times[0] - times[1])


def run_guided(c: Case) -> tuple[dict[str, torch.Tensor], Any, Any, Codec]:
    settings = c.fixtures.index("cases.json")
    s = settings.get(c.stem) or settings[base(c.stem)]
    n = len(c["in_pred_pose"])
    size = c["in_img_size"].float()
    terms = s["terms"]
    guidance = Guidance(
        w_keypoints=s["w_keypoints"], w_views=s["w_multiview"], w_smooth=s["w_smooth"], replace=len(terms) > 1
    )
    betas = c["in_pred_betas"]
    if "multiview" in terms:
        guidance.views = ViewTerm(torch.zeros(n, dtype=torch.long), 1)
        betas = betas.mean(0, keepdim=True).expand(n, -1)
    if "smoothness" in terms:
        guidance.smooth = SmoothTerm(torch.arange(n) > 0)
    if "keypoints" in terms:
        confidence = c["in_keypoints_2d"][:, :25, 2].clone()
        if not s["use_hips"]:
            confidence[:, [8, 9, 12]] = 0
        observed = Observed(
            xy=c["in_keypoints_2d"][:, :25, :2].float(),
            confidence=confidence.float(),
            focal=torch.full((n, 2), float(s["focal_length"])),
            center=size / 2,
            sigma=torch.full((n,), float(s["gmof_sigma"])),
            weight=1000 / size.amax(1),
        )
        adam = Adam(s["camera_adam"]["lr"], *s["camera_adam"]["betas"], s["camera_adam"]["eps"])
        guidance.keypoints = KeypointTerm(chain(c.fixtures), observed, betas, c["in_init_cam_t"], adam=adam)
    codec = Codec(betas_low=c["in_betas_min"], betas_high=c["in_betas_max"]) if s["use_betas"] else Codec()
    plan = SamplingPlan(s["outer_loops"], s["start"], s["step"], s["early_stopping"], s["early_tolerance"])
    pose = c["in_pred_pose"][..., :2].transpose(-1, -2).reshape(n, 144)
    seen: dict[str, list[torch.Tensor]] = {}
    eps = denoiser(c.fixtures, s["denoiser"]).condition(c["in_cond_feats"], plan.times)
    out = guided_sampling(
        eps, Schedule.cosine(), codec.encode(pose, c["in_pred_betas"]), guidance, plan, codec,
        lambda name, value: seen.setdefault(name, []).append(value.clone()),
    )  # fmt: skip
    return {name: torch.stack(values) for name, values in seen.items()}, out, betas, codec


def test_guided(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    seen, out, betas, codec = run_guided(c)
    pose, shape = codec.decode(out.x0)
    betas = betas if shape is None else shape
    assert seen["timesteps"].tolist() == c["timesteps"].tolist()
    steps = len(seen["timesteps"])
    running = np.ones((steps, len(out.x0)), bool)  # a stopped row's records after its stop are not part of the result
    if "stop_step" in c:
        c.check("stop_step", out.stop_step)
        for row, stop in enumerate(c["stop_step"].tolist()):
            running[stop + 1 if stop >= 0 else steps :, row] = False
    c.check("x_start", seen["x_start"][0])
    c.check("latent_after_inversion", seen["latent_after_inversion"])
    c.check("latent_after_sampling", seen["latent_after_sampling"][:-1])
    c.check("x0_end_of_loop", seen["x0_end_of_loop"])
    c.check("x0_first_loop", seen["x0"][: len(c["x0_first_loop"])])
    c.check("grad_norm", seen["grad_norm"], where=running)
    if "loss_kp" in c:
        c.check("loss_kp", seen["loss_keypoints"], where=running)
        c.check("cam_steps", seen["cam_steps"], where=running)
        c.check("out_camera_translation", out.transl)
    if "loss_mv" in c:
        c.check("loss_mv", seen["loss_views"].sum(1))
    if "loss_sm" in c:
        c.check("loss_sm", seen["loss_smooth"])
    c.check("out_x_0", out.x0)
    every = chain(c.fixtures, every=True)
    posed = every.forward(pose, every.rest(betas))
    c.check("out_rotmat", posed.local.permute(3, 0, 1, 2))
    c.check("out_joints44", posed.points[:44].permute(2, 0, 1))


def test_geometry(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    every = chain(c.fixtures, every=True)
    posed = every.forward(c["x6"], every.rest(c["betas"]))
    points = posed.points.permute(2, 0, 1)
    c.check("rotmat", posed.local.permute(3, 0, 1, 2))
    c.check("rotmat", rotations.rot6d_columns_to_matrix(c["x6"].view(-1, 24, 6)))
    c.check("aa_rotmat", rotations.axis_angle_to_matrix(c["aa"]))
    c.check("joints44", points[:, :44])
    c.check("vertices_every_50th", points[:, 44:])

    focal, center = c["focal"], c["center"]
    K = cameras.make_K(focal[:, 0], focal[:, 1], center[:, 0], center[:, 1])
    c.check("projected", cameras.project(c["points"] + c["trans"][:, None], K))
    size = c["img_size"]
    K = cameras.make_K(*[torch.full((len(size),), 5000.0)] * 2, size[:, 0] / 2, size[:, 1] / 2)
    c.check("cam_full", cameras.weak_to_transl(c["cam_bbox"], c["box_center"], c["box_size"], K))

    n = len(size)
    observed = Observed(
        c["kp_target"], c["kp_conf"][..., 0], focal, center, torch.full((n,), 100.0), 1000 / size.amax(1)
    )
    term = KeypointTerm(chain(c.fixtures), observed, torch.zeros(n, 10), c["trans"])
    posed.points = c["points"].permute(1, 2, 0)
    c.check("kp_loss", term.residual(posed)[0])
    x = c["x6"]
    c.check("smoothness_loss", SmoothTerm(torch.arange(len(x)) > 0).evaluate(x)[0])
    c.check("multiview_loss", ViewTerm(torch.zeros(len(x), dtype=torch.long), 1).evaluate(x)[0].sum())

    codec = Codec(betas_low=c["betas_min"], betas_high=c["betas_max"])
    c.check("betas_normalized", codec.encode(x, c["betas"])[:, 144:])
    pare = torch.cat([c["pose_feats"].flatten(1), c["cam_shape_feats"].flatten(1)], 1)
    stats = Statistics.from_arrays({k.removeprefix("stats_"): c[k] for k in c.data if k.startswith("stats_")})
    c.check("cond_pose_only", stats["pare"](pare)[:, :3072])
    c.check("cond_with_betas", stats["pare"](pare))
    c.check("cond_prohmr", stats["prohmr"](c["prohmr_feats"]))


def test_train_loss(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    pose = torch.cat([c["global_orient"][:, None], c["body_pose"].view(-1, 23, 3)], 1)
    x = rotations.matrix_to_rot6d_columns(rotations.axis_angle_to_matrix(pose)).flatten(1)
    codec = Codec(betas_low=c["betas_min"], betas_high=c["betas_max"])
    for kind, name in (("pose", "denoiser_pare"), ("betas", "denoiser_pare_betas")):
        net = denoiser(c.fixtures, name)
        net.zero_grad()
        target = x if kind == "pose" else codec.encode(x, c["betas"])
        loss = noise_loss(net, target, c["timesteps"], c[f"{kind}_noise"], c[f"{kind}_cond"])
        c.check(f"{kind}_loss", loss.detach())
        total = loss[:, :144].mean() + (loss[:, 144:].mean() if kind == "betas" else 0)
        c.check(f"{kind}_total", total.detach())
        total.backward()
        c.check(f"{kind}_grad_norm", torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0))
        net.zero_grad(set_to_none=True)


def test_crop(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    boxes = c.data["boxes"].astype(np.float64)
    half = boxes[:, 2:] / 2
    box = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
    center, side = crops.square_boxes(box)
    c.check("affine", crops.square_affine(center, side, 224))
    n = len(box)
    image = np.ascontiguousarray(c.data["image_bgr"][:, :, ::-1])
    none = np.zeros((n, 0, 3))
    people = PersonBatch(box, none, (), np.zeros((n, 3, 3)), np.zeros((n, 2)), np.zeros(n, int), np.arange(n), [image])
    patch = extractors.prepare(people)
    c.check("patch_every_4th", patch[:, :, ::4, ::4])
    c.check("patch_mean", patch.mean((2, 3)))
    assert tuple(patch.shape) == tuple(c.data["patch_shape"])


def stand_in(fixtures: Fixtures, manifest: str, scale: float = 1.0) -> Checkpoint:
    state = fixtures.weights.state_dict(json.loads(fixtures.find(manifest).read_text()))
    for name in ("model.head.keypoint_final_layer.weight", "model.head.keypoint_final_layer.bias"):
        if name in state:
            state[name] = state[name] * np.float32(scale)
    return Checkpoint(
        Path(manifest), {f"state_dict.{k}": torch.from_numpy(np.asarray(v)) for k, v in state.items()}, {}
    )


@torch.no_grad()
def test_pare(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    images = torch.from_numpy(c.fixtures.weights.array(str(c.data["img_name"]), tuple(c.data["img_shape"])))
    for prefix, scale in (("", 1.0), ("soft_", 1 / 64)):
        extractor = extractors.PareExtractor.load(stand_in(c.fixtures, "manifest_pare.json", scale))
        features = extractor.features(images)
        c.check(f"{prefix}pose_feats", features[:, :3072].view(-1, 128, 24))
        c.check(f"{prefix}cam_shape_feats", features[:, 3072:].view(-1, 64, 24))
    maps = extractor.network.backbone(images)
    c.check("backbone_every_8th", maps[:, ::8, ::8, ::8])
    c.check("backbone_channel_mean", maps.mean((2, 3)))
    with np.load(c.fixtures.find("geometry.npz")) as geometry:
        stats = Statistics.from_arrays(
            {k.removeprefix("stats_"): v for k, v in geometry.items() if k.startswith("stats_")}
        )
    c.check("soft_cond_pose_only", stats["pare"](features)[:, :3072])


@torch.no_grad()
def test_prohmr_backbone(case: tuple[Fixtures, Path]) -> None:
    c = Case(case)
    images = torch.from_numpy(c.fixtures.weights.array(str(c.data["img_name"]), tuple(c.data["img_shape"])))
    features = extractors.ProHmrExtractor.load(stand_in(c.fixtures, "manifest_prohmr_backbone.json")).features(images)
    c.check("feats", features)
    with np.load(c.fixtures.find("geometry.npz")) as geometry:
        stats = Statistics.from_arrays(
            {k.removeprefix("stats_"): v for k, v in geometry.items() if k.startswith("stats_")}
        )
    c.check("cond", stats["prohmr"](features))
