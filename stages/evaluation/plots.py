"""Scores as a picture: the error of each joint, seen and hidden, and the error against how much is hidden. SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.errors import InputError

SEEN, HIDDEN = "#2a788e", "#d95f02"  # teal and orange: apart in grey and for the colour-blind
WIDTH, BAR, LEFT = 860, 13, 150


def plot(scores: Path | Artefact) -> str:
    """SVG text of a scores artefact. Raises InputError when no row was scored joint by joint."""
    table = scores if isinstance(scores, Artefact) else open_artefact(scores, "scores")
    each, visible, names = joint_errors(table)
    lines = _bars(each, visible, names)
    top = 60 + len(names) * (2 * BAR + 6)
    curve = against_occlusion(table)
    if len(curve) > 1:
        lines += _curve(curve, top + 50)
    height = top + (330 if len(curve) > 1 else 30)
    title = f"{table.attrs.get('dataset', '')}, {table.attrs['summary']['scored']} rows"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
    return "\n".join(
        [
            head + f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>',
            _text(20, 24, title, "font-size='15'"),
            *lines,
            "</svg>\n",
        ]
    )


def joint_errors(table: Artefact) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Errors (n, J) mm and visibility (n, J) of the scored rows, and the joints' names."""
    names = list(table.group_attrs("errors").get("joints", ()))
    ok = table.rows["status"] == OK
    if not names or not table.has("errors/per_joint") or not ok.any():
        raise InputError(f"{table.path or 'the scores'}: no row was scored joint by joint")
    return table.read("errors/per_joint")[ok].astype(float), table.read("errors/visible")[ok].astype(bool), names


def against_occlusion(table: Artefact) -> list[dict[str, float]]:
    """Mean errors of rows by the number of hidden joints: {hidden, rows, mpjpe, pa_mpjpe}; ten rows or more each."""
    _, visible, _ = joint_errors(table)
    ok = table.rows["status"] == OK
    hidden = (~visible).sum(1)
    columns = {name: table.read(f"errors/{name}")[ok].astype(float) for name in ("mpjpe", "pa_mpjpe")}
    found = []
    for count in np.unique(hidden):
        mine = (hidden == count) & np.isfinite(columns["mpjpe"])
        if mine.sum() >= 10:
            means = {name: float(np.nanmean(values[mine])) for name, values in columns.items()}
            found.append({"hidden": float(count), "rows": float(mine.sum()), **means})
    return found


def _bars(each: np.ndarray, visible: np.ndarray, names: Sequence[str]) -> list[str]:
    """Two bars a joint: rows in which it is seen, and hidden."""
    means = [_masked(each, visible), _masked(each, ~visible)]
    longest = np.nanmax(np.stack(means))
    scale = (WIDTH - LEFT - 90) / max(float(longest), 1e-9)
    out = [_text(LEFT, 44, "mean error of each joint, mm: seen", f"fill='{SEEN}'")]
    out.append(_text(LEFT + 240, 44, "hidden", f"fill='{HIDDEN}'"))
    for j, name in enumerate(names):
        y = 56 + j * (2 * BAR + 6)
        out.append(_text(LEFT - 8, y + BAR + 4, name.replace("_", " "), "text-anchor='end'"))
        for k, (values, colour) in enumerate(zip(means, (SEEN, HIDDEN), strict=True)):
            if np.isfinite(values[j]):
                width = values[j] * scale
                at = y + k * BAR
                out.append(f'<rect x="{LEFT}" y="{at}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>')
                out.append(_text(LEFT + width + 5, at + BAR - 3, f"{values[j]:.0f}", "font-size='10'"))
    return out


def _masked(each: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mask = mask & np.isfinite(each)
    total, count = np.where(mask, each, 0).sum(0), mask.sum(0)
    return np.divide(total, count, out=np.full(each.shape[1], np.nan), where=count > 0)


def _curve(points: Sequence[dict[str, float]], top: float) -> list[str]:
    """MPJPE and PA-MPJPE of rows against the number of hidden joints."""
    high = max(p["mpjpe"] for p in points)
    most = max(p["hidden"] for p in points) or 1

    def at(p: dict[str, float], name: str) -> tuple[float, float]:
        return LEFT + p["hidden"] / most * (WIDTH - LEFT - 60), top + 210 - p[name] / high * 190

    out = [_text(LEFT, top, "error of rows against the number of hidden joints, mm (rows)")]
    out.append(f'<path d="M{LEFT} {top + 20}V{top + 210}H{WIDTH - 40}" fill="none" stroke="#888"/>')
    for name, title, colour in (("mpjpe", "MPJPE", SEEN), ("pa_mpjpe", "PA-MPJPE", HIDDEN)):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(p, name) for p in points))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = at(points[-1], name)
        out.append(_text(x + 6, y + 4, title, f"fill='{colour}' font-size='10'"))
        for p in points:
            x, y = at(p, name)
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            out.append(_text(x, y - 7, f"{p[name]:.0f}", "font-size='10' text-anchor='middle'"))
    for p in points:
        x, _ = at(p, "mpjpe")
        label = f"{p['hidden']:.0f} ({p['rows']:.0f})"
        out.append(_text(x, top + 226, label, "font-size='10' text-anchor='middle'"))
    return out


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
