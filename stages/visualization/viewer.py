"""What is drawn of an artefact's frames: overlays, views from elsewhere, and the files they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.engine.job import ProgressReport
from stages.geometry.cameras import project, scaled_K
from stages.keypoints import joint_sets
from stages.loaders.bodies import BodyLoader, body_rows, stems
from stages.media.frames import FrameSource
from stages.media.images import write_image
from stages.media.video import write_video
from stages.params import ViewParams
from stages.visualization import draw


@dataclasses.dataclass(frozen=True)
class StickFigures:
    """xy (n, J, 2) px of the drawn image · visible (n, J) · bones: pairs of joint indices · left (J,): left joints."""

    xy: np.ndarray
    visible: np.ndarray
    bones: list[tuple[int, int]]
    left: np.ndarray


@dataclasses.dataclass(frozen=True)
class FrameView:
    """One frame ready to be drawn: image (H, W, 3) at the drawn size, K (3, 3) of it, factor = drawn / original size,
    rows (n,), colour (n, 3), vertices (n, V, 3) or None, sticks or None."""

    frame: int
    image: np.ndarray
    K: np.ndarray
    factor: float
    rows: np.ndarray
    colour: np.ndarray
    vertices: torch.Tensor | None
    sticks: StickFigures | None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[0]


class Viewer:
    """Makes the views and drawings of an artefact's frames. `meshes` and `detections`: at least one."""

    def __init__(
        self, meshes: Artefact | None, detections: Artefact | None, params: ViewParams, device: str = "cpu"
    ) -> None:
        self.meshes, self.detections, self.params = meshes, detections, params
        table = meshes or detections
        assert table is not None
        self.table = table
        self.bodies = BodyLoader(meshes, params.body, device) if meshes is not None else None
        self.source = FrameSource(self.table, params.root)
        self.rows_of_frame = body_rows(self.table)
        track, number = self.table.rows["track"], np.arange(self.table.n_rows)
        # Images: colours by the order within the image. Video: the same person keeps the colour.
        order = np.concatenate([np.zeros(0, int), *(np.arange(len(rows)) for rows in self.rows_of_frame.values())])
        keys = np.zeros(self.table.n_rows, int)
        keys[np.concatenate([np.zeros(0, int), *self.rows_of_frame.values()]).astype(int)] = order
        self.colour = draw.colours(np.where(track >= 0, track, keys))
        self.label = [f"#{t}" if t >= 0 else str(n) for t, n in zip(track, number, strict=True)]

    def frame_view(self, frame: int) -> FrameView:
        """Frame `frame` with its people. Raises InputError when the image cannot be found or has changed."""
        width, height = (int(v) for v in self.table.frames["size"][frame])
        factor = min(1.0, self.params.max_side / max(width, height, 1))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        if self.params.blank:
            image = np.broadcast_to(draw.PAPER, (size[1], size[0], 3)).copy()
        else:
            image = draw.resized(self.source(frame), size)
        rows = self.rows_of_frame[frame]
        rows = rows[self.table.rows["status"][rows] == OK]
        K = scaled_K(self.table.frames["K"][frame].astype(np.float64), factor)
        vertices = self.bodies.vertices(rows) if self.bodies is not None and len(rows) else None
        return FrameView(frame, image, K, factor, rows, self.colour[rows], vertices, self.sticks(rows, K, factor))

    def sticks(self, rows: np.ndarray, K: np.ndarray, factor: float) -> StickFigures | None:
        """Stick figures of the detections, else of the bodies' joints projected; None where there are neither."""
        if self.detections is not None and self.detections.has("keypoints/xy"):
            names = self.detections.group_attrs("keypoints")["joints"]
            xy = (self.detections.read("keypoints/xy", rows) + 0.5) * factor - 0.5
            visible = self.detections.read("keypoints/score", rows) >= self.params.min_score
        elif self.meshes is not None and self.meshes.has("joints/xyz"):
            names = self.meshes.group_attrs("joints")["joints"]
            xyz = self.meshes.read("joints/xyz", rows).astype(np.float64)
            xy, visible = project(xyz, K), xyz[..., 2] > 0.01
        else:
            return None
        left = np.array([joint_sets.side(name) == "left" for name in names], bool)
        return StickFigures(xy, visible, joint_sets.bones(names), left)

    def overlay(self, view: FrameView) -> np.ndarray:
        """The image with bodies, stick figures and labels, as the settings say."""
        params, image = self.params, view.image
        if params.style != "skeleton" and view.vertices is not None and self.bodies is not None:
            K = torch.from_numpy(view.K).float()
            image = draw.overlay(
                image, view.vertices, self.bodies.body.faces, K, view.colour,
                opacity=params.opacity, supersample=params.supersample,
            )  # fmt: skip
        if view.sticks is not None and (params.style != "mesh" or view.vertices is None):
            sticks = view.sticks
            image = draw.skeletons(image, sticks.xy, sticks.visible, sticks.bones, view.colour, left=sticks.left)
        if params.labels and len(view.rows) > 1:
            image = image.copy()
            for row, colour in zip(view.rows, view.colour, strict=True):
                box = (self.table.rows["box"][row] + 0.5) * view.factor - 0.5
                if np.isfinite(box).all():
                    draw.label(image, (float(box[0]), float(box[1])), self.label[row], colour)
        return image

    def orbit_view(
        self, view: FrameView, yaw: float, pitch: float = 0.0, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The people of a view from another side, on a blank page; angles in radians (draw.orbit_view)."""
        size = size or view.size
        if view.vertices is None or self.bodies is None:
            return np.broadcast_to(draw.PAPER, (size[1], size[0], 3)).copy()
        faces, fine = self.bodies.body.faces, self.params.supersample
        return draw.orbit_view(view.vertices, faces, view.colour, size, yaw=yaw, pitch=pitch, supersample=fine)

    def orbit(self, view: FrameView, count: int = 48) -> Iterator[np.ndarray]:
        """Frames of a video once round the people, starting from the camera's side."""
        for step in range(count):
            yield self.orbit_view(view, 2 * np.pi * step / count, 0.2, (540, 540))

    def side_by_side(self, view: FrameView, overlay: np.ndarray) -> np.ndarray:
        """The image, its overlay and the people from the right, next to one another."""
        return draw.side_by_side([view.image, overlay, self.orbit_view(view, np.pi / 2)])


class OverlayWriter:
    """Draws frames and keeps the names of the files that were written. `report`: gets every view too (HtmlReport)."""

    def __init__(self, viewer: Viewer, folder: Path, *, files: bool, report: Any = None) -> None:
        self.viewer, self.folder, self.files, self.report = viewer, folder, files, report
        self.stems = stems([str(n) for n in viewer.table.frames["name"]])
        self.images: list[str] = []
        self.videos: list[str] = []

    def draw(self, source: int, frames: np.ndarray, progress: ProgressReport) -> None:
        """The frames of one video (source >= 0), or images (-1)."""
        if source >= 0 and self.files:
            name = str(self.viewer.table.frames["name"][frames[0]]).rpartition("#")[0]
            gaps = np.diff(self.viewer.table.frames["time"][frames])
            fps = float(1 / np.median(gaps[gaps > 0])) if (gaps > 0).any() else 25.0
            path = write_video(
                self.folder / f"{stems([name])[0]}_overlay.mp4", self._video_frames(frames, progress), fps
            )
            self.videos.append(str(path))
            return
        for frame in frames:
            drawn = self._draw(int(frame))
            if drawn is not None and self.files:
                self._write(*drawn)
            progress.advance(1)

    def _draw(self, frame: int) -> tuple[FrameView, np.ndarray] | None:
        """The view and its overlay; None for a frame that failed before."""
        if self.viewer.table.frames["status"][frame] != OK:
            if self.report is not None:
                self.report.add_failed(frame)
            return None
        view = self.viewer.frame_view(frame)
        overlay = self.viewer.overlay(view)
        if self.report is not None:
            self.report.add(view, overlay)
        return view, overlay

    def _video_frames(self, frames: np.ndarray, progress: ProgressReport) -> Iterator[np.ndarray]:
        """All frames of a video. One that failed repeats the frame before (at the start, the next) to keep the time."""
        last: np.ndarray | None = None
        missing = 0
        for frame in frames:
            if (drawn := self._draw(int(frame))) is not None:
                last = self.viewer.side_by_side(*drawn) if self.viewer.params.side else drawn[1]
            progress.advance(1)
            if last is None:
                missing += 1
                continue
            for _ in range(missing + 1):
                yield last
            missing = 0

    def _write(self, view: FrameView, overlay: np.ndarray) -> None:
        """The files of one image."""
        stem, params = self.stems[view.frame], self.viewer.params
        images = {"overlay": overlay}
        if params.side:
            images["side"] = self.viewer.side_by_side(view, overlay)
        for name, image in images.items():
            self.images.append(str(write_image(self.folder / f"{stem}_{name}.jpg", image)))
        if params.turn and view.vertices is not None:
            self.videos.append(str(write_video(self.folder / f"{stem}_turn.mp4", self.viewer.orbit(view), fps=16)))


def by_source(table: Artefact, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(source, its frames) of the videos among `frames`, and of the images (-1)."""
    source = table.frames["source"][frames]
    for value in np.unique(source):
        yield int(value), frames[source == value]
