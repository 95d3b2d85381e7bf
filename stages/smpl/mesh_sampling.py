"""Coarser versions of a body's mesh and the fixed maps between them, which mesh networks are built on.

Two levels below the body's mesh (SMPL: 6890, 1723, 431 vertices), each keeping a quarter of the vertices by quadric
edge collapse (Garland and Heckbert, SIGGRAPH 1997) restricted to existing vertices, as in CoMA (Ranjan et al., ECCV
2018). Derived here from template and faces; on SMPL's own template this gives the published selections, faces and maps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import io
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from stages.errors import AssetError
from stages.files.atomic import replacing
from stages.files.folders import cache_dir
from stages.files.pickles import load_content
from stages.smpl.body_files import listed, read_arrays

if TYPE_CHECKING:
    from stages.smpl.body import Body

REDUCTION = 4
LEVELS = 2
MAX_BYTES = 1 << 29  # of the published file, unpacked: 30 MB
PUBLISHED = "mesh_downsampling.npz"
# Of the vertices that the first published level keeps, as little-endian int32.
PUBLISHED_SHA256 = "567073a400828963b0ac95a37e03be7812e2fef1d9acdb3b0db67e3648500913"


@dataclasses.dataclass(frozen=True)
class MeshSampling:
    """faces: per level (F, 3) · keep: per step the kept vertices of the finer level, ascending · columns, weights: per
    step (V_finer, 3): a finer vertex is the weighted sum of three coarser ones (unused weights are 0)."""

    faces: tuple[np.ndarray, ...]
    keep: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Vertices per level, finest first."""
        return (len(self.columns[0]), *(len(k) for k in self.keep))

    def edges(self, level: int) -> np.ndarray:
        """The edges (E, 2) of a level: sorted pairs, sorted rows."""
        pairs = np.concatenate(
            [self.faces[level][:, [0, 1]], self.faces[level][:, [1, 2]], self.faces[level][:, [2, 0]]]
        )
        return np.unique(np.sort(pairs, axis=1), axis=0)

    def adjacency(self, level: int) -> np.ndarray:
        """(V, V) bool: joined by an edge, or equal."""
        adjacent = np.eye(self.counts[level], dtype=bool)
        a, b = self.edges(level).T
        adjacent[a, b] = adjacent[b, a] = True
        return adjacent

    def upsampling(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """(V, 3) int64 columns and (V, 3) float64 weights that make `level` from the next coarser one."""
        return self.columns[level], self.weights[level]

    def down(self, vertices: np.ndarray, level: int) -> np.ndarray:
        """The body's vertices (..., V, 3) that `level` keeps."""
        for keep in self.keep[:level]:
            vertices = vertices[..., keep, :]
        return vertices


def build(vertices: np.ndarray, faces: np.ndarray, counts: tuple[int, ...] = ()) -> MeshSampling:
    """The levels of a closed mesh: template vertices (V, 3) in metres, faces (F, 3).

    `counts`: vertices of each coarser level; by default a quarter of the one before, as published.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    all_faces, keeps, columns, weights = [faces], [], [], []
    for k in range(LEVELS):
        keep, coarse = decimate(vertices, faces, counts[k] if counts else -(-len(vertices) // REDUCTION))
        cols, vals = interpolation(vertices, vertices[keep], coarse)
        all_faces.append(coarse)
        keeps.append(keep)
        columns.append(cols)
        weights.append(vals)
        vertices, faces = vertices[keep], coarse
    return MeshSampling(tuple(all_faces), tuple(keeps), tuple(columns), tuple(weights))


def of_body(body: Body, counts: tuple[int, ...] = (), *, derive: bool = False) -> MeshSampling:
    """The levels of a body: stored in the cache folder ($HMR_CACHE), or derived. `counts` as in `build`.

    Published weights know only one selection of SMPL's vertices, and another template (gender, version) gives another
    one. For SMPL's topology, unless `derive`, the levels are therefore those of the authors' `mesh_downsampling.npz`
    where a user has put it there, into `mesh_levels`; else of this template if it gives the published selection; else
    of the first added SMPL body that does; else of this template.
    """
    folder = cache_dir() / "mesh_levels"
    published = body.topology == "smpl" and not derive and not counts
    if published and (folder / PUBLISHED).is_file():
        return read_published(folder / PUBLISHED)
    levels = load(*_mesh(body), folder, counts)
    if not published or is_published(levels):
        return levels
    return next(filter(is_published, _of_added_bodies(folder)), levels)


def _of_added_bodies(folder: Path) -> Iterator[MeshSampling]:
    """The levels of every SMPL body that `hmr body-model add` has stored."""
    for row in listed():
        if row["topology"] == "smpl" and not row["error"]:
            arrays = read_arrays(Path(row["path"]))
            template = np.asarray(arrays["v_template"], np.float64)
            yield load(template - template.mean(0), arrays["f"], folder)


def selection(levels: MeshSampling) -> str:
    """A fingerprint of which vertices are kept: what a network's weights are tied to."""
    return hashlib.sha256(b"".join(keep.astype("<i4").tobytes() for keep in levels.keep)).hexdigest()[:16]


def is_published(levels: MeshSampling) -> bool:
    """Whether these are the levels that METRO, FastMETRO and PostoMETRO were trained on (by fingerprint)."""
    return hashlib.sha256(levels.keep[0].astype("<i4").tobytes()).hexdigest() == PUBLISHED_SHA256


def read_published(path: Path) -> MeshSampling:
    """The authors' pickled file, without its meshes and without running what is in it. Raises AssetError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(archive.getinfo(f"{name}.npy").file_size for name in "UDF") > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MB")
            up, down, faces = (_objects(archive.read(f"{name}.npy")) for name in "UDF")
        matrices = [np.asarray(m.toarray()) for m in (*down[:LEVELS], *up[:LEVELS])]
        keep = tuple(m.argmax(1) for m in matrices[:LEVELS])
        columns = tuple(np.argsort(m == 0, axis=1, kind="stable")[:, :3] for m in matrices[LEVELS:])
        weights = tuple(np.take_along_axis(m, c, 1) for m, c in zip(matrices[LEVELS:], columns, strict=True))
        if any((m != 0).sum(1).max() > 3 for m in matrices[LEVELS:]):
            raise ValueError("a row of U has more than three entries")
        triangles = tuple(np.asarray(f, np.int64).reshape(-1, 3) for f in faces[: LEVELS + 1])
        return MeshSampling(triangles, keep, columns, weights)
    except Exception as error:  # a foreign file fails in many ways, all of them meaning the same
        raise AssetError(
            f"{path} is not the mesh_downsampling.npz of METRO or FastMETRO: {error or type(error).__name__}",
            "download it again, or remove it",
        ) from error


def _objects(npy: bytes) -> list[Any]:
    """The entries of an .npy file of objects."""
    stream = io.BytesIO(npy)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read(stream)
    if not dtype.hasobject:
        return list(np.load(io.BytesIO(npy), allow_pickle=False))
    return list(load_content(stream.read()))


def load(vertices: np.ndarray, faces: np.ndarray, folder: Path, counts: tuple[int, ...] = ()) -> MeshSampling:
    """The levels stored in `folder` under the mesh's hash or, without them, `build`, kept for the process (seconds).

    A network that is being loaded calls this, so it writes nothing: `store` does.
    """
    path = _path(vertices, faces, folder, counts)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return MeshSampling(*(tuple(stored[f"{f}{k}"] for k in range(n)) for f, n in FIELDS))
    except (OSError, KeyError, ValueError):
        if path.stem not in _BUILT:
            _BUILT[path.stem] = build(vertices, faces, counts)
        return _BUILT[path.stem]


def store(body: Body) -> None:
    """Derive the levels of a body and keep them in the cache folder, so that networks need not derive them again."""
    folder = cache_dir() / "mesh_levels"
    template, faces = _mesh(body)
    levels = load(template, faces, folder)
    path = _path(template, faces, folder, ())
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
            np.savez(file, **{f"{f}{k}": getattr(levels, f)[k] for f, n in FIELDS for k in range(n)})


def _mesh(body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Template and faces; SMPL's topology is centred, as the published template is."""
    template, faces = body.v_template.double().cpu().numpy(), body.faces.cpu().numpy()
    return (template - template.mean(0) if body.topology == "smpl" else template), faces


def _path(vertices: np.ndarray, faces: np.ndarray, folder: Path, counts: tuple[int, ...]) -> Path:
    content = np.ascontiguousarray(vertices, "<f8").tobytes() + np.ascontiguousarray(faces, "<i8").tobytes()
    return folder / f"{'-'.join(['levels', hashlib.sha256(content).hexdigest()[:16], *map(str, counts)])}.npz"


FIELDS = (("faces", LEVELS + 1), ("keep", LEVELS), ("columns", LEVELS), ("weights", LEVELS))
_BUILT: dict[str, MeshSampling] = {}


# ---- selection


def decimate(vertices: np.ndarray, faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Collapse edges until `count` vertices are left: their indices (count,), ascending, and the faces between them.

    The cost of an edge is the smaller error of its two ends under the sum of their quadrics; the cheaper end survives.
    A stored cost may be out of date when it comes up: it is then renewed and put back.
    """
    quadric = quadrics(vertices, faces)
    homogeneous = np.concatenate([vertices, np.ones((len(vertices), 1))], axis=1)

    def errors(a: int, b: int) -> tuple[float, float]:
        both = quadric[a] + quadric[b]
        return float(homogeneous[a] @ both @ homogeneous[a]), float(homogeneous[b] @ both @ homogeneous[b])

    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    heap: list[list[float]] = []
    named: list[list[list[float]]] = [[] for _ in vertices]  # the heap's entries in which a vertex occurs
    # Pushed with the larger index varying slowest: equal costs come up in an order that depends on it.
    for b, a in sorted({(int(max(p)), int(min(p))) for p in pairs}):
        entry = [min(errors(a, b)), a, b]
        heapq.heappush(heap, entry)
        named[a].append(entry)
        named[b].append(entry)

    corners = faces.copy()
    around: list[set[int]] = [set() for _ in vertices]  # the faces of a vertex
    for f, face in enumerate(faces):
        for v in face:
            around[v].add(f)
    left = sum(bool(s) for s in around)
    while left > count:
        entry = heapq.heappop(heap)
        a, b = int(entry[1]), int(entry[2])
        if a == b:
            continue
        at_a, at_b = errors(a, b)
        if min(at_a, at_b) > entry[0]:
            entry[0] = min(at_a, at_b)
            heapq.heappush(heap, entry)
            continue
        kept, removed = (a, b) if at_a < at_b else (b, a)
        quadric[kept] = quadric[a] + quadric[b]
        # Renaming in place leaves the costs, hence the heap's order, as they are.
        for other in named[removed]:
            other[1:] = [kept if v == removed else v for v in other[1:]]
        named[kept] += named[removed]
        touched = {v for v in (kept, removed) if around[v]}
        for f in around[removed]:
            corners[f][corners[f] == removed] = kept
            if len(set(corners[f].tolist())) < 3:
                for v in corners[f]:
                    around[v].discard(f)
                    touched.add(int(v))
                corners[f] = -1
            else:
                around[kept].add(f)
        around[removed] = set()
        left -= sum(not around[v] for v in touched)
    corners = corners[corners[:, 0] >= 0]
    keep, renamed = np.unique(corners, return_inverse=True)
    return keep, renamed.reshape(-1, 3)


def quadrics(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 4, 4): at each vertex the sum of the squared unit plane equations of its faces, whatever their area."""
    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    plane = np.concatenate([normal, -(normal * corner.mean(1)).sum(1, keepdims=True)], axis=1)
    result = np.zeros((len(vertices), 4, 4))
    for k in range(3):
        np.add.at(result, faces[:, k], plane[:, :, None] * plane[:, None])
    return result


# ---- interpolation


def interpolation(fine: np.ndarray, coarse: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns (V, 3) and weights (V, 3) that make fine vertices (V, 3) from the coarse mesh.

    The corners of the nearest face. Nearest point inside it: its barycentric coordinates; at a corner: that corner;
    on an edge: the least-squares combination of the edge's ends to the vertex itself, not to the nearest point, so
    these rows do not sum to 1 and the map depends on the template's origin. That is what was published and trained on.
    """
    owner, triangle = candidates(fine, coarse, faces)
    corner = coarse[faces[triangle]]
    weights = closest(fine[owner], corner)
    distance = np.linalg.norm((weights[..., None] * corner).sum(1) - fine[owner], axis=1)
    order = np.lexsort((triangle, distance, owner))
    first = order[np.searchsorted(owner[order], np.arange(len(fine)))]
    columns, weights, corner = faces[triangle[first]], weights[first], corner[first]
    on_edge = (weights > 0).sum(1) == 2
    if on_edge.any():
        ends = np.argsort(weights[on_edge] <= 0, axis=1, kind="stable")[:, :2]
        pair = np.take_along_axis(corner[on_edge], ends[..., None], axis=1)  # n, 2, 3
        gram = pair @ pair.swapaxes(1, 2)
        solved = np.linalg.solve(gram, pair @ fine[on_edge][..., None])[..., 0]
        fitted = np.zeros((len(ends), 3))
        np.put_along_axis(fitted, ends, solved, axis=1)
        weights[on_edge] = fitted
    return columns, weights


def candidates(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (point, face) among which each point's nearest face is: no face is farther than the nearest vertex."""
    corner = vertices[faces]
    centre = corner.mean(1)
    radius = np.linalg.norm(corner - centre[:, None], axis=2).max(1)
    bound, _ = cKDTree(vertices[np.unique(faces)]).query(points)
    near = cKDTree(centre).query_ball_point(points, bound + radius.max() + 1e-9)
    owner = np.repeat(np.arange(len(points)), [len(f) for f in near])
    face = np.fromiter(itertools.chain.from_iterable(near), np.int64, len(owner))
    possible = np.linalg.norm(centre[face] - points[owner], axis=1) <= bound[owner] + radius[face] + 1e-9
    return owner[possible], face[possible]


def closest(point: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Barycentric coordinates (n, 3) of the point of each triangle (n, 3, 3) nearest to `point` (n, 3).

    Exact zeros say that it lies on an edge or at a corner (Ericson, "Real-Time Collision Detection", 5.1.5).
    """
    a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
    ab, ac = b - a, c - a
    d1, d2 = dot(ab, point - a), dot(ac, point - a)
    d3, d4 = dot(ab, point - b), dot(ac, point - b)
    d5, d6 = dot(ab, point - c), dot(ac, point - c)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    zero, one = np.zeros_like(d1), np.ones_like(d1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ab_t, ac_t, bc_t = d1 / (d1 - d3), d2 / (d2 - d6), (d4 - d3) / ((d4 - d3) + (d5 - d6))
        inside = np.stack([va, vb, vc], 1) / (va + vb + vc)[:, None]
    regions = [
        ((d1 <= 0) & (d2 <= 0), (one, zero, zero)),
        ((d3 >= 0) & (d4 <= d3), (zero, one, zero)),
        ((vc <= 0) & (d1 >= 0) & (d3 <= 0), (1 - ab_t, ab_t, zero)),
        ((d6 >= 0) & (d5 <= d6), (zero, zero, one)),
        ((vb <= 0) & (d2 >= 0) & (d6 <= 0), (1 - ac_t, zero, ac_t)),
        ((va <= 0) & (d4 >= d3) & (d5 >= d6), (zero, 1 - bc_t, bc_t)),
    ]
    result = inside
    for region, value in reversed(regions):
        result = np.where(region[:, None], np.stack(value, 1), result)
    return result


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1)
