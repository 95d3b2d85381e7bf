"""What is drawn of an artefact's frames: overlays, side views, turning views, and the files they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.geometry.cameras import project, scaled_K
from stages.keypoints import joint_sets
from stages.loaders.bodies import BodyLoader, body_rows, stems
from stages.media.frames import FrameSource, write_image, write_video
from stages.params import ViewParams
from stages.visualization import draw


@dataclasses.dataclass
class FrameView:
    """One frame ready to be drawn: photo (H, W, 3) as shown, K (3, 3) of it, factor = shown / original size, rows,
    colours (n, 3), vertices (n, V, 3), stick figures (xy (n, J, 2) shown px, seen (n, J), bones, left)."""

    frame: int
    photo: np.ndarray
    K: np.ndarray
    factor: float
    rows: np.ndarray
    colour: np.ndarray
    vertices: torch.Tensor | None
    sticks: tuple[np.ndarray, np.ndarray, list[tuple[int, int]], np.ndarray] | None

    @property
    def size(self) -> tuple[int, int]:
        return self.photo.shape[1], self.photo.shape[0]


class Viewer:
    """Makes scenes and pictures of an artefact's frames. `meshes` and `detections`: at least one."""

    def __init__(
        self, meshes: Artefact | None, detections: Artefact | None, params: ViewParams, device: str = "cpu"
    ) -> None:
        self.meshes, self.detections, self.params = meshes, detections, params
        table = meshes or detections
        assert table is not None
        self.table = table
        self.bodies = BodyLoader(meshes, params.body, device) if meshes is not None else None
        self.source = FrameSource(self.table, params.root)
        self.of_frame = body_rows(self.table)
        track, number = self.table.rows["track"], np.arange(self.table.n_rows)
        # Photos: colours by place in the picture. Video: the same person keeps the colour.
        place = np.concatenate([np.zeros(0, int), *(np.arange(len(r)) for r in self.of_frame.values())])
        order = np.concatenate([np.zeros(0, int), *self.of_frame.values()]).astype(int)
        keys = np.zeros(self.table.n_rows, int)
        keys[order] = place
        self.colour = draw.colours(np.where(track >= 0, track, keys))
        self.label = [f"#{t}" if t >= 0 else str(n) for t, n in zip(track, number, strict=True)]

    def scene(self, frame: int) -> FrameView:
        """Frame `frame` with its people. Raises InputError when the photo cannot be found or has changed."""
        width, height = (int(v) for v in self.table.frames["size"][frame])
        factor = min(1.0, self.params.max_side / max(width, height, 1))
        shown = (max(1, round(width * factor)), max(1, round(height * factor)))
        if self.params.blank:
            photo = np.broadcast_to(draw.PAPER, (shown[1], shown[0], 3)).copy()
        else:
            photo = draw.resized(self.source(frame), shown)
        rows = self.of_frame[frame]
        rows = rows[self.table.rows["status"][rows] == OK]
        K = scaled_K(self.table.frames["K"][frame].astype(np.float64), factor)
        vertices = self.bodies.vertices(rows) if self.bodies is not None and len(rows) else None
        return FrameView(frame, photo, K, factor, rows, self.colour[rows], vertices, self.sticks(rows, K, factor))

    def sticks(self, rows: np.ndarray, K: np.ndarray, factor: float) -> Any:
        """Stick figures of the detections, else of the bodies' joints projected; None where there are neither."""
        if self.detections is not None and self.detections.has("keypoints/xy"):
            names = self.detections.group_attrs("keypoints")["joints"]
            xy = (self.detections.read("keypoints/xy", rows) + 0.5) * factor - 0.5
            seen = self.detections.read("keypoints/score", rows) >= self.params.min_score
        elif self.meshes is not None and self.meshes.has("joints/xyz"):
            names = self.meshes.group_attrs("joints")["joints"]
            xyz = self.meshes.read("joints/xyz", rows).astype(np.float64)
            xy, seen = project(xyz, K), xyz[..., 2] > 0.01
        else:
            return None
        left = np.array([joint_sets.side(name) == "left" for name in names], bool)
        return xy, seen, joint_sets.bones(names), left

    def overlay(self, scene: FrameView) -> np.ndarray:
        """The photo with bodies, stick figures and labels, as the params ask."""
        params, image = self.params, scene.photo
        if params.style != "skeleton" and scene.vertices is not None and self.bodies is not None:
            K = torch.from_numpy(scene.K).float()
            image = draw.overlay(
                image, scene.vertices, self.bodies.body.faces, K, scene.colour,
                opacity=params.opacity, supersample=params.supersample,
            )  # fmt: skip
        if scene.sticks is not None and (params.style != "mesh" or scene.vertices is None):
            xy, seen, bones, left = scene.sticks
            image = draw.skeletons(image, xy, seen, bones, scene.colour, left=left)
        if params.labels and len(scene.rows) > 1:
            image = image.copy()
            for row, colour in zip(scene.rows, scene.colour, strict=True):
                box = (self.table.rows["box"][row] + 0.5) * scene.factor - 0.5
                if np.isfinite(box).all():
                    draw.label(image, (float(box[0]), float(box[1])), self.label[row], colour)
        return image

    def turned(
        self, scene: FrameView, yaw: float, pitch: float = 0.0, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The scene's people from elsewhere, on paper."""
        size = size or scene.size
        if scene.vertices is None or self.bodies is None:
            return np.broadcast_to(draw.PAPER, (size[1], size[0], 3)).copy()
        faces, fine = self.bodies.body.faces, self.params.supersample
        return draw.turned(scene.vertices, faces, scene.colour, size, yaw=yaw, pitch=pitch, supersample=fine)

    def walk_round(self, scene: FrameView, count: int = 48) -> Iterator[np.ndarray]:
        """Frames of a video once round the people, starting from the camera's side."""
        for step in range(count):
            yield self.turned(scene, 2 * np.pi * step / count, 0.2, (540, 540))


class OverlayWriter:
    """Draws frames and keeps the names of the files that were written."""

    def __init__(self, viewer: Viewer, folder: Path, *, pictures: bool) -> None:
        self.viewer, self.folder, self.keep = viewer, folder, pictures
        self.stems = stems([str(n) for n in viewer.table.frames["name"]])
        self.pictures: list[str] = []
        self.videos: list[str] = []

    def draw(self, source: int, frames: np.ndarray, report: Any, progress: Any) -> None:
        """The frames of one video (source >= 0) or photos (-1)."""
        if source >= 0 and self.keep:
            path = self.folder / f"{stems([self.name(frames[0]).rpartition('#')[0]])[0]}_overlay.mp4"
            time = self.viewer.table.frames["time"][frames]
            gaps = np.diff(time)
            fps = float(1 / np.median(gaps[gaps > 0])) if (gaps > 0).any() else 25.0
            write_video(path, self.overlays(frames, report, progress), fps=fps)
            self.videos.append(str(path))
            return
        for frame in frames:
            for scene, image in self.overlay(frame, report):
                if self.keep:
                    self.save(scene, image)
            progress.advance(1)

    def name(self, frame: int) -> str:
        return str(self.viewer.table.frames["name"][frame])

    def overlay(self, frame: int, report: Any) -> Iterator[tuple[FrameView, np.ndarray]]:
        """The scene and its overlay; nothing for a frame that failed before."""
        if self.viewer.table.frames["status"][frame] != OK:
            if report is not None:
                report.failed(int(frame))
            return
        scene = self.viewer.scene(int(frame))
        image = self.viewer.overlay(scene)
        if report is not None:
            report.add(scene, image)
        yield scene, image

    def overlays(self, frames: np.ndarray, report: Any, progress: Any) -> Iterator[np.ndarray]:
        """All frames of a video; one that failed shows the last good picture, so that time is kept."""
        last: np.ndarray | None = None
        waiting = 0
        for frame in frames:
            for scene, image in self.overlay(frame, report):
                last = self.beside(scene, image) if self.viewer.params.side else image
            progress.advance(1)
            if last is None:
                waiting += 1
                continue
            for _ in range(waiting + 1):
                yield last
            waiting = 0

    def beside(self, scene: FrameView, image: np.ndarray) -> np.ndarray:
        return draw.beside([scene.photo, image, self.viewer.turned(scene, np.pi / 2)])

    def save(self, scene: FrameView, image: np.ndarray) -> None:
        stem, params = self.stems[scene.frame], self.viewer.params
        images = {"overlay": image}
        if params.side:
            images["side"] = self.beside(scene, image)
        for what, picture in images.items():
            path = self.folder / f"{stem}_{what}.jpg"
            write_image(path, picture)
            self.pictures.append(str(path))
        if params.turn and scene.vertices is not None:
            path = self.folder / f"{stem}_turn.mp4"
            write_video(path, self.viewer.walk_round(scene), fps=16)
            self.videos.append(str(path))


def by_source(table: Artefact, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    source = table.frames["source"][frames]
    for value in np.unique(source):
        yield int(value), frames[source == value]
