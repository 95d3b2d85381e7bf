"""Scores as SVG: the error of each joint, visible and hidden, and the error against the number of hidden joints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from stages.artefacts.kinds import OK
from stages.artefacts.table import Artefact
from stages.errors import InputError
from stages.evaluation import metrics
from stages.loaders.people import as_artefact

VISIBLE, HIDDEN = "#2a788e", "#d95f02"  # teal and orange: distinct in grey and for the colour-blind
WIDTH, BAR, LEFT = 860, 13, 150


def plot(scores: Path | Artefact) -> str:
    """SVG text of a scores artefact. Raises InputError when no row was scored joint by joint."""
    table = as_artefact(scores, "scores")
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
    result = []
    for count in np.unique(hidden):
        rows = (hidden == count) & np.isfinite(columns["mpjpe"])
        if rows.sum() >= 10:
            means = {name: float(np.nanmean(values[rows])) for name, values in columns.items()}
            result.append({"hidden": float(count), "rows": float(rows.sum()), **means})
    return result


def _bars(each: np.ndarray, visible: np.ndarray, names: Sequence[str]) -> list[str]:
    """Two bars per joint: rows in which it is visible, and hidden."""
    scored = np.isfinite(each)
    means = [metrics.masked_mean(each.T, (scored & mask).T) for mask in (visible, ~visible)]
    longest = np.nanmax(np.stack(means))
    scale = (WIDTH - LEFT - 90) / max(float(longest), 1e-9)
    out = [_text(LEFT, 44, "mean error of each joint, mm: visible", f"fill='{VISIBLE}'")]
    out.append(_text(LEFT + 240, 44, "hidden", f"fill='{HIDDEN}'"))
    for j, name in enumerate(names):
        y = 56 + j * (2 * BAR + 6)
        out.append(_text(LEFT - 8, y + BAR + 4, name.replace("_", " "), "text-anchor='end'"))
        for k, (values, colour) in enumerate(zip(means, (VISIBLE, HIDDEN), strict=True)):
            if np.isfinite(values[j]):
                width = values[j] * scale
                top = y + k * BAR
                out.append(f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>')
                out.append(_text(LEFT + width + 5, top + BAR - 3, f"{values[j]:.0f}", "font-size='10'"))
    return out


def _curve(points: Sequence[dict[str, float]], top: float) -> list[str]:
    """MPJPE and PA-MPJPE of rows against the number of hidden joints."""
    high = max(p["mpjpe"] for p in points)
    most_hidden = max(p["hidden"] for p in points) or 1

    def position(p: dict[str, float], name: str) -> tuple[float, float]:
        return LEFT + p["hidden"] / most_hidden * (WIDTH - LEFT - 60), top + 210 - p[name] / high * 190

    out = [_text(LEFT, top, "error of rows against the number of hidden joints, mm (rows)")]
    out.append(f'<path d="M{LEFT} {top + 20}V{top + 210}H{WIDTH - 40}" fill="none" stroke="#888"/>')
    for name, title, colour in (("mpjpe", "MPJPE", VISIBLE), ("pa_mpjpe", "PA-MPJPE", HIDDEN)):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(p, name) for p in points))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = position(points[-1], name)
        out.append(_text(x + 6, y + 4, title, f"fill='{colour}' font-size='10'"))
        for p in points:
            x, y = position(p, name)
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            out.append(_text(x, y - 7, f"{p[name]:.0f}", "font-size='10' text-anchor='middle'"))
    for p in points:
        x, _ = position(p, "mpjpe")
        label = f"{p['hidden']:.0f} ({p['rows']:.0f})"
        out.append(_text(x, top + 226, label, "font-size='10' text-anchor='middle'"))
    return out


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
