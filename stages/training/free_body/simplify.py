"""Mirror-symmetric decimation of a closed mesh by half-edge collapse (quadric error, Garland and Heckbert 1997).

Every remaining vertex is one of the original ones, at its position, so blend shapes, skinning weights and regressors
are picked, not resampled. A vertex and its mirror image are removed together: the mesh stays symmetric to the bit.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy.spatial import cKDTree

_MIN_COSINE = 0.2  # a face may not rotate by more than this in one collapse
_MIN_SHAPE = 0.02  # nor become a needle: 4 sqrt(3) area / sum of squared sides


def mirror_of(vertices: np.ndarray, tolerance: float = 1e-7) -> np.ndarray:
    """For each vertex (V, 3) the index of its image under x -> -x. Raises ValueError if there is none."""
    distance, index = cKDTree(vertices).query(vertices * (-1, 1, 1))
    if distance.max() > tolerance or (index[index] != np.arange(len(index))).any():
        raise ValueError(f"the mesh is not its own mirror image: largest gap {distance.max():.2e}")
    return index


def _quadrics(vertices: np.ndarray, faces: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(V, 4, 4): the sum over a vertex's faces of area * p p^T for the face's plane p, times scale (V,)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    double_area = np.maximum(np.linalg.norm(normal, axis=1), 1e-18)
    normal = normal / double_area[:, None]
    plane = np.concatenate([normal, -(normal * a).sum(1, keepdims=True)], 1)
    face_quadric = plane[:, :, None] * plane[:, None, :] * (double_area / 2)[:, None, None]
    out = np.zeros((len(vertices), 4, 4))
    for corner in range(3):
        np.add.at(out, faces[:, corner], face_quadric)
    return out * scale[:, None, None]


class _Mesh:
    """Faces by vertex, changed in place; each change can be undone."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        self.x = vertices
        self.face = [tuple(int(i) for i in f) for f in faces]
        self.around: list[set[int]] = [set() for _ in range(len(vertices))]
        for k, f in enumerate(self.face):
            for i in f:
                self.around[i].add(k)

    def ring(self, u: int) -> set[int]:
        return {i for k in self.around[u] for i in self.face[k]} - {u}

    def _shape(self, f: tuple[int, ...]) -> tuple[np.ndarray, float]:
        a, b, c = self.x[f[0]], self.x[f[1]], self.x[f[2]]
        ab, ac, bc = b - a, c - a, c - b
        n = np.array(
            (ab[1] * ac[2] - ab[2] * ac[1], ab[2] * ac[0] - ab[0] * ac[2], ab[0] * ac[1] - ab[1] * ac[0]), dtype=float
        )
        length = float(np.sqrt(n @ n))
        return n / max(length, 1e-18), 3.4641 * length / max(float(ab @ ab + ac @ ac + bc @ bc), 1e-18)

    def allowed(self, u: int, v: int, strict: bool) -> bool:
        """u may be moved onto v: the surface stays a manifold, and (strict) no face flips or becomes a needle."""
        shared = self.around[u] & self.around[v]
        if len(shared) != 2 or len(self.ring(u) & self.ring(v)) != 2:
            return False
        if not strict:
            return True
        for k in self.around[u] - shared:
            before, shape_before = self._shape(self.face[k])
            after, shape = self._shape(tuple(v if i == u else i for i in self.face[k]))
            if before @ after < _MIN_COSINE or shape < min(_MIN_SHAPE, shape_before):
                return False
        return True

    def collapse(self, u: int, v: int) -> list[tuple[int, tuple[int, ...]]]:
        """Move u onto v. Returns what `undo` needs."""
        log = [(k, self.face[k]) for k in self.around[u]]
        for k, f in log:
            if v in f:
                for i in f:
                    self.around[i].discard(k)
                self.face[k] = ()
            else:
                self.face[k] = tuple(v if i == u else i for i in f)
                self.around[v].add(k)
        self.around[u] = set()
        return log

    def undo(self, log: list[tuple[int, tuple[int, ...]]]) -> None:
        for k, _ in log:
            for i in self.face[k]:
                self.around[i].discard(k)
        for k, f in log:
            self.face[k] = f
            for i in f:
                self.around[i].add(k)


def decimate(
    vertices: np.ndarray, faces: np.ndarray, targets: list[int], weight: np.ndarray, *, free: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nested reductions of a closed, mirror-symmetric mesh.

    vertices (V, 3) · faces (F, 3) · targets: numbers of vertices, falling · weight (V,): above 1 keeps more detail
    there · free (V,) bool: these (inner cavities) go first and, away from their rim, faces may flip.
    Returns for each target (kept (n,) ascending indices into vertices, faces (f, 3) as indices into kept).
    """
    mirror = mirror_of(vertices)
    middle = mirror == np.arange(len(vertices))
    free = np.zeros(len(vertices), bool) if free is None else free
    quadric = _quadrics(vertices, faces, weight)
    mesh = _Mesh(vertices.astype(float), faces)
    homogeneous = np.concatenate([mesh.x, np.ones((len(vertices), 1))], 1)
    stamp = np.zeros(len(vertices), dtype=np.int64)
    heap: list[tuple[float, int, int, int, int]] = []

    def cost(u: int, v: int) -> float:
        q, h = quadric[u] + quadric[v], homogeneous[v]
        gap = mesh.x[u] - mesh.x[v]
        # The length term orders flat regions and keeps edges even.
        value = float(h @ q @ h) + 1e-4 * float(weight[u]) * float(gap @ gap) ** 2
        return value * (1e-6 if free[u] else 1.0)

    def push(u: int) -> None:
        stamp[u] += 1
        for v in sorted(mesh.ring(u)):
            leaves_plane = middle[u] and not middle[v]
            if not leaves_plane and v != mirror[u]:
                heapq.heappush(heap, (cost(u, v), min(u, int(mirror[u])), u, v, int(stamp[u])))

    def attempt(u: int, v: int) -> bool:
        strict = not free[u] or any(not free[i] for i in mesh.ring(u))
        if not mesh.allowed(u, v, strict):
            return False
        log = mesh.collapse(u, v)
        if not middle[u]:
            if not mesh.allowed(int(mirror[u]), int(mirror[v]), strict):
                mesh.undo(log)
                return False
            mesh.collapse(int(mirror[u]), int(mirror[v]))
        return True

    alive = len(vertices)
    for u in range(len(vertices)):
        if u <= mirror[u]:
            push(u)
    out = []
    for target in targets:
        while alive > target:
            if not heap:
                raise ValueError(f"no collapse is left at {alive} vertices")
            _, _, u, v, mark = heapq.heappop(heap)
            step = 1 if middle[u] else 2
            if mark != stamp[u] or alive - step < target or not attempt(u, v):
                continue
            alive -= step
            pairs = [(u, v)] if middle[u] else [(u, v), (int(mirror[u]), int(mirror[v]))]
            for removed, kept in pairs:
                quadric[kept] += quadric[removed]
                stamp[removed] += 1
            touched = set().union(*({b} | mesh.ring(b) for _, b in pairs))
            for i in sorted({min(i, int(mirror[i])) for i in touched}):
                push(i)
        remaining = np.array([i for i in range(len(vertices)) if mesh.around[i]])
        index = np.full(len(vertices), -1)
        index[remaining] = np.arange(len(remaining))
        out.append((remaining, index[np.array([f for f in mesh.face if f])]))
    return out
