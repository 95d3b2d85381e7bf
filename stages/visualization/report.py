"""The report of `hmr view`: one HTML file with everything inside (images inlined, no network, no fonts), for large and
small screens, dark and light: the images, a table of the people in each, and the provenance of the artefacts."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.files.atomic import write_bytes
from stages.geometry.cameras import project
from stages.keypoints import joint_sets
from stages.visualization import draw
from stages.visualization.report_template import PAGE
from stages.visualization.viewer import FrameView, Viewer

CARDS, WIDTH, THUMB = 48, 1000, (360, 270)  # images in the report, their longer side, size of the small views
VIDEO_BYTES = 16_000_000  # larger videos are linked, not inlined
MIN_SCORE = 0.3  # of keypoints that count as visible in the table


class HtmlReport:
    """Collects what is drawn and writes the page. `frames` are those that will be drawn; at most CARDS get a card."""

    def __init__(self, viewer: Viewer, frames: np.ndarray) -> None:
        self.viewer, self.frames = viewer, frames
        chosen = np.unique(np.linspace(0, len(frames) - 1, min(CARDS, len(frames))).round().astype(int))
        self.shown = {int(f) for f in frames[chosen]} if len(frames) else set()
        self.cards: dict[int, str] = {}
        self.facts = Facts(viewer)

    def add(self, view: FrameView, overlay: np.ndarray) -> None:
        """A frame that was drawn."""
        if view.frame not in self.shown:
            return
        factor = min(1.0, WIDTH / max(view.size))
        size = (max(1, round(view.size[0] * factor)), max(1, round(view.size[1] * factor)))
        over, plain = (draw.resized(image, size) for image in (overlay, view.image))
        views = ""
        if view.vertices is not None and len(view.rows):
            for text, yaw, pitch in (("from the right", np.pi / 2, 0.0), ("from above", 0.0, 1.2)):
                image = _inline(self.viewer.orbit_view(view, yaw, pitch, THUMB), 84)
                views += f'<figure><img src="{image}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        rows = self.viewer.rows_of_frame[view.frame]
        name = self._name(view.frame)
        self.cards[view.frame] = (
            f'<article class="card"><h2>{name}</h2>'
            f'<button class="flip" aria-label="show the image without bodies">'
            f'<img class="over" width="{size[0]}" height="{size[1]}" src="{_inline(over, 88)}" alt="overlay of {name}">'
            f'<img class="photo" src="{_inline(plain, 80)}" alt="{name}"></button>'
            + (f'<div class="views">{views}</div>' if views else "")
            + self.facts.table(rows)
            + "</article>"
        )

    def add_failed(self, frame: int) -> None:
        """A frame without an image."""
        if frame in self.shown:
            reason = html.escape(str(self.viewer.table.frames["error"][frame]))
            self.cards[frame] = (
                f'<article class="card"><h2>{self._name(frame)}</h2><p class="bad">failed: {reason}</p></article>'
            )

    def _name(self, frame: int) -> str:
        return html.escape(str(self.viewer.table.frames["name"][frame]))

    def write(self, path: Path, videos: list[str]) -> Path:
        """The page, whole or not at all."""
        table = self.viewer.table
        others = len(self.frames) - len(self.shown)
        cards = "".join(self.cards[f] for f in sorted(self.cards))
        if not table.n_frames:
            cards = '<p class="empty">No images.</p>'
        elif not table.n_rows:
            cards = '<p class="empty">Nobody was found in these images.</p>' + cards
        note = f'<p class="note">{others} more frames are in the files beside this report.</p>' if others else ""
        page = PAGE.format(
            title="People in 3D" if self.viewer.meshes is not None else "People in 2D",
            tiles="".join(f"<div><b>{value}</b><span>{text}</span></div>" for value, text in self.facts.tiles()),
            videos="".join(_video(Path(v)) for v in videos if not v.endswith("_turn.mp4")),
            cards=cards + note,
            provenance="".join(_provenance(a) for a in (self.viewer.meshes, self.viewer.detections) if a is not None),
            licence=html.escape(self.viewer.bodies.licence_note() if self.viewer.bodies is not None else ""),
        )
        write_bytes(path, page.encode("utf-8", "backslashreplace"))
        return path


class Facts:
    """Numbers on the people: distance of body from keypoints, the network's confidence, distance from the camera."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, table = viewer, viewer.table
        n = table.n_rows
        self.fit, self.confidence, self.distance = (np.full(n, np.nan) for _ in range(3))
        self.visible = np.full(n, -1)  # number of keypoints, -1 unknown
        ok = np.flatnonzero(table.rows["status"] == OK)
        for start in range(0, len(ok), 256):
            self._measure(ok[start : start + 256])

    def _measure(self, rows: np.ndarray) -> None:
        viewer = self.viewer
        if viewer.meshes is not None:
            if viewer.meshes.has("joints/confidence"):
                self.confidence[rows] = viewer.meshes.read("joints/confidence", rows).mean(1)
            if viewer.bodies is not None and viewer.bodies.has_smpl:
                self.distance[rows] = viewer.meshes.read("smpl/transl", rows)[:, 2]
        if viewer.detections is None or not viewer.detections.has("keypoints/xy"):
            return
        xy, score = (viewer.detections.read(f"keypoints/{c}", rows) for c in ("xy", "score"))
        visible = (score >= MIN_SCORE) & np.isfinite(xy).all(-1)
        self.visible[rows] = visible.sum(1)
        names = viewer.detections.group_attrs("keypoints")["joints"]
        joint_set = joint_sets.identify(names)
        xyz = viewer.bodies.joints(rows, joint_set) if viewer.bodies is not None and joint_set else None
        if xyz is None:
            return
        K = viewer.table.frames["K"][viewer.table.rows["frame"][rows]]
        distance = np.linalg.norm(project(xyz.cpu().numpy(), K) - np.nan_to_num(xy), axis=-1)
        box = viewer.table.rows["box"][rows]
        longer = np.maximum(box[:, 2:] - box[:, :2], 1e-3).max(1)
        count = visible.sum(1)
        self.fit[rows] = np.where(count > 0, (distance * visible).sum(1) / np.maximum(count, 1) / longer, np.nan)

    def tiles(self) -> list[tuple[str, str]]:
        """The numbers at the top of the page."""
        table = self.viewer.table
        failed = int((table.rows["status"] != OK).sum())
        failed_frames = int((table.frames["status"] != OK).sum())
        tiles = [(str(table.n_frames), "images"), (str(table.n_rows), "people")]
        tiles += [(str(failed), "people failed")] if failed else []
        tiles += [(str(failed_frames), "images failed")] if failed_frames else []
        if np.isfinite(self.fit).any():
            tiles.append((f"{100 * np.nanmedian(self.fit):.1f} %", "median distance to keypoints, of the box"))
        if np.isfinite(self.confidence).any():
            tiles.append((f"{np.nanmean(self.confidence):.2f}", "mean joint confidence"))
        return tiles

    def table(self, rows: np.ndarray) -> str:
        """The people of one image."""
        if not len(rows):
            return '<p class="note">Nobody.</p>'
        table, viewer = self.viewer.table, self.viewer
        columns = [("person", ""), ("detector", "confidence of the detector")]
        has_keypoints = (self.visible[rows] >= 0).any()
        columns += [("keypoints", f"visible: with a score of at least {MIN_SCORE}")] if has_keypoints else []
        if viewer.meshes is not None:
            columns += [("confidence", "of the body, mean over joints"), ("fit", "mean distance to keypoints / box")]
            columns += [("distance", "from the camera")]
        head = "".join(f'<th title="{html.escape(tip)}">{name}</th>' for name, tip in columns)
        body = ""
        for row in rows:
            red, green, blue = (int(v) for v in np.round(255 * viewer.colour[row]))
            swatch = f'<i style="background:rgb({red},{green},{blue})"></i>'
            cells = [f"{swatch}{html.escape(viewer.label[row])}", _number(table.rows["score"][row], "{:.2f}")]
            if has_keypoints:
                cells.append(str(self.visible[row]) if self.visible[row] >= 0 else "")
            if viewer.meshes is not None:
                cells += [_bar(self.confidence[row]), _number(100 * self.fit[row], "{:.1f} %")]
                cells.append(_number(self.distance[row], "{:.1f} m"))
            body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
            if table.rows["status"][row] != OK:
                reason = html.escape(str(table.rows["error"][row]) or "skipped")
                body += f'<tr class="bad"><td colspan="{len(cells)}">{reason}</td></tr>'
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float, form: str) -> str:
    return form.format(value) if np.isfinite(value) else "–"


def _bar(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f'<span class="bar"><s style="width:{100 * min(max(value, 0), 1):.0f}%"></s></span>{value:.2f}'


def _inline(image: np.ndarray, quality: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(draw.jpeg(image, quality)).decode()


def _video(path: Path) -> str:
    content = path.read_bytes() if path.stat().st_size <= VIDEO_BYTES else b""
    source = "data:video/mp4;base64," + base64.b64encode(content).decode() if content else html.escape(path.name)
    video = f'<video controls loop muted playsinline src="{source}"></video>'
    return f'<article class="card"><h2>{html.escape(path.name)}</h2>{video}</article>'


def _provenance(artefact: Artefact) -> str:
    """One artefact: what it is, and from what and how it was computed."""
    attrs = artefact.attrs
    model = attrs.get("model") or {}
    facts: list[tuple[str, Any]] = [
        ("file", artefact.path.name if artefact.path else "in memory"),
        ("made", f"hmr {attrs.get('stage', '')} {attrs.get('hmr_version', '')}, {attrs.get('created', 'unknown')}"),
        ("model", ", ".join(str(model[k]) for k in ("name", "licence") if model.get(k)) or "none"),
        ("weights", model.get("sha256") or "–"),
        ("settings", json.dumps(attrs.get("params") or {}, sort_keys=True)),
        ("fingerprint", artefact.fingerprint),
        ("command", attrs.get("command") or "–"),
    ]
    body = artefact.group_attrs("smpl")
    if body:
        facts.insert(3, ("body", f"{body.get('body_model', '')} ({body.get('gender', '')})"))
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts)
    return f"<details><summary>{artefact.kind}</summary><dl>{rows}</dl></details>"
