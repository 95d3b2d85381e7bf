"""The report of `hmr view`: one HTML file with everything inside (pictures inlined, no network, no fonts), for desk and
phone, dark and light: the pictures, a table of the people in each, and how it was all made."""

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

CARDS, WIDTH, THUMB = 48, 1000, (360, 270)  # pictures in the report, their longer side, size of the small views
VIDEO_BYTES = 16_000_000  # larger videos are linked, not inlined
SEEN = 0.3  # keypoints above this count as seen in the table


class HtmlReport:
    """Collects what is drawn and writes the page. `frames` are those that will be drawn; at most CARDS get a card."""

    def __init__(self, viewer: Any, frames: np.ndarray) -> None:
        self.viewer, self.frames = viewer, frames
        pick = np.unique(np.linspace(0, len(frames) - 1, min(CARDS, len(frames))).round().astype(int))
        self.shown = {int(f) for f in frames[pick]} if len(frames) else set()
        self.cards: dict[int, str] = {}
        self.facts = Facts(viewer)

    def add(self, scene: Any, image: np.ndarray) -> None:
        """A frame that was drawn."""
        if scene.frame not in self.shown:
            return
        factor = min(1.0, WIDTH / max(scene.size))
        size = (max(1, round(scene.size[0] * factor)), max(1, round(scene.size[1] * factor)))
        over, photo = (draw.resized(picture, size) for picture in (image, scene.photo))
        views = ""
        if scene.vertices is not None and len(scene.rows):
            for text, yaw, pitch in (("from the right", np.pi / 2, 0.0), ("from above", 0.0, 1.2)):
                picture = _inline(self.viewer.turned(scene, yaw, pitch, THUMB), 84)
                views += f'<figure><img src="{picture}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        rows = self.viewer.of_frame[scene.frame]
        name = self._name(scene.frame)
        self.cards[scene.frame] = (
            f'<article class="card"><h2>{name}</h2>'
            f'<button class="flip" aria-label="show the photo without bodies">'
            f'<img class="over" width="{size[0]}" height="{size[1]}" src="{_inline(over, 88)}" alt="overlay of {name}">'
            f'<img class="photo" src="{_inline(photo, 80)}" alt="{name}"></button>'
            + (f'<div class="views">{views}</div>' if views else "")
            + self.facts.table(rows)
            + "</article>"
        )

    def failed(self, frame: int) -> None:
        """A frame without a picture."""
        if frame in self.shown:
            why = html.escape(str(self.viewer.table.frames["error"][frame]))
            self.cards[frame] = (
                f'<article class="card"><h2>{self._name(frame)}</h2><p class="bad">failed: {why}</p></article>'
            )

    def _name(self, frame: int) -> str:
        return html.escape(str(self.viewer.table.frames["name"][frame]))

    def write(self, path: Path, videos: list[str]) -> Path:
        """The page, whole or not at all."""
        table = self.viewer.table
        left = len(self.frames) - len(self.shown)
        cards = "".join(self.cards[f] for f in sorted(self.cards))
        if not table.n_frames:
            cards = '<p class="empty">No pictures.</p>'
        elif not table.n_rows:
            cards = '<p class="empty">Nobody was found in these pictures.</p>' + cards
        note = f'<p class="note">{left} more frames are in the files beside this report.</p>' if left else ""
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
    """Numbers about the people: how well bodies fit the keypoints, how sure the network is, how far they are."""

    def __init__(self, viewer: Any) -> None:
        self.viewer, table = viewer, viewer.table
        n = table.n_rows
        self.fit, self.sure, self.far = (np.full(n, np.nan) for _ in range(3))
        self.seen = np.full(n, -1)
        ok = np.flatnonzero(table.rows["status"] == OK)
        for start in range(0, len(ok), 256):
            self._measure(ok[start : start + 256])

    def _measure(self, rows: np.ndarray) -> None:
        viewer = self.viewer
        if viewer.meshes is not None:
            if viewer.meshes.has("joints/confidence"):
                self.sure[rows] = viewer.meshes.read("joints/confidence", rows).mean(1)
            if viewer.bodies.has_smpl:
                self.far[rows] = viewer.meshes.read("smpl/transl", rows)[:, 2]
        if viewer.detections is None or not viewer.detections.has("keypoints/xy"):
            return
        xy, score = (viewer.detections.read(f"keypoints/{c}", rows) for c in ("xy", "score"))
        seen = (score >= SEEN) & np.isfinite(xy).all(-1)
        self.seen[rows] = seen.sum(1)
        names = viewer.detections.group_attrs("keypoints")["joints"]
        kind = joint_sets.identify(names)
        xyz = viewer.bodies.joints(rows, kind) if viewer.bodies is not None and kind else None
        if xyz is None:
            return
        K = viewer.table.frames["K"][viewer.table.rows["frame"][rows]]
        away = np.linalg.norm(project(xyz.cpu().numpy(), K) - np.nan_to_num(xy), axis=-1)
        box = viewer.table.rows["box"][rows]
        longer = np.maximum(box[:, 2:] - box[:, :2], 1e-3).max(1)
        count = seen.sum(1)
        self.fit[rows] = np.where(count > 0, (away * seen).sum(1) / np.maximum(count, 1) / longer, np.nan)

    def tiles(self) -> list[tuple[str, str]]:
        """The numbers at the top of the page."""
        table = self.viewer.table
        bad = int((table.rows["status"] != OK).sum())
        lost = int((table.frames["status"] != OK).sum())
        tiles = [(str(table.n_frames), "pictures"), (str(table.n_rows), "people")]
        tiles += [(str(bad), "people failed")] if bad else []
        tiles += [(str(lost), "pictures failed")] if lost else []
        if np.isfinite(self.fit).any():
            tiles.append((f"{100 * np.nanmedian(self.fit):.1f} %", "median distance to keypoints, of the box"))
        if np.isfinite(self.sure).any():
            tiles.append((f"{np.nanmean(self.sure):.2f}", "mean joint confidence"))
        return tiles

    def table(self, rows: np.ndarray) -> str:
        """The people of one picture."""
        if not len(rows):
            return '<p class="note">Nobody.</p>'
        table, viewer = self.viewer.table, self.viewer
        columns = [("person", ""), ("detector", "how sure the detector is")]
        columns += [("keypoints", f"seen with a score of at least {SEEN}")] if (self.seen[rows] >= 0).any() else []
        if viewer.meshes is not None:
            columns += [("confidence", "of the body, mean over joints"), ("fit", "mean distance to keypoints / box")]
            columns += [("distance", "from the camera")]
        head = "".join(f'<th title="{html.escape(tip)}">{name}</th>' for name, tip in columns)
        body = ""
        for row in rows:
            red, green, blue = (int(v) for v in np.round(255 * viewer.colour[row]))
            swatch = f'<i style="background:rgb({red},{green},{blue})"></i>'
            cells = [f"{swatch}{html.escape(viewer.label[row])}", _number(table.rows["score"][row], "{:.2f}")]
            if (self.seen[rows] >= 0).any():
                cells.append(str(self.seen[row]) if self.seen[row] >= 0 else "")
            if viewer.meshes is not None:
                cells += [_bar(self.sure[row]), _number(100 * self.fit[row], "{:.1f} %")]
                cells.append(_number(self.far[row], "{:.1f} m"))
            body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
            if table.rows["status"][row] != OK:
                why = html.escape(str(table.rows["error"][row]) or "skipped")
                body += f'<tr class="bad"><td colspan="{len(cells)}">{why}</td></tr>'
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
    film = f'<video controls loop muted playsinline src="{source}"></video>'
    return f'<article class="card"><h2>{html.escape(path.name)}</h2>{film}</article>'


def _provenance(artefact: Artefact) -> str:
    """One artefact: what it is and how it was made."""
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
