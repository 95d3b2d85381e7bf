"""Association of people over the cameras of detections: reads what association.py needs and reports its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stages.artefacts.kinds import K_DEFAULT, OK
from stages.artefacts.table import Artefact
from stages.errors import InputError
from stages.geometry.rotations import axis_angle_to_matrix
from stages.refinement.association import associate
from stages.refinement.counts import view_counts
from stages.refinement.likeness import Association, Sightings
from stages.refinement.rig import CameraRig
from stages.refinement.windows import moments
from stages.smpl.body import Body

MAX_MISS = 0.04  # of the box's longer side: with a right rig, the median distance of bodies from keypoints is less
LISTED = 12  # people that are named one by one
LIMBS = (
    "head",
    *(f"{side}_{part}" for part in ("knee", "ankle", "shoulder", "elbow", "wrist") for side in ("left", "right")),
)


def find_people(
    detections: Artefact,
    rig: CameraRig | None,
    usable: np.ndarray,
    *,
    meshes: Artefact | None = None,
    body: Body | None = None,
) -> Association:
    """One number for each person over all views. usable (R,): rows that may be joined.

    With meshes and their body, people are told apart by their poses where there is no rig. Raises InputError for views
    that the rig does not name, and for crowded photos without view and track numbers."""
    rows, frames = detections.rows, detections.frames
    view, one_view = frames["view"], len(np.unique(frames["view"])) < 2
    camera = np.arange(len(view)) if one_view else view  # photos of one view number: each from another position
    frame, track = rows["frame"], rows["track"]
    if meshes is not None and (track < 0).all():
        track = meshes.rows["track"]
    good = usable & (rows["status"] == OK)
    crowd = np.bincount(rows["frame"][good], minlength=len(view))
    if one_view and (crowd > 1).any() and (track < 0).all():
        raise InputError(
            f"frame {crowd.argmax()} shows several people who cannot be told apart between views",
            "give each camera a view of its own (hmr detect --views), or each person one track number in all views",
        )
    xy, score = detections.read("keypoints/xy"), detections.read("keypoints/score")
    has_positions = rig is not None and rig.has_positions and not one_view
    R, t = rig.poses(view[frame]) if rig is not None and has_positions else (None, None)
    sightings = Sightings(
        track=track,
        camera=camera[frame],
        moment=moments(view, frames["time"])[frame],
        ok=good,
        keypoints=np.concatenate([xy, score[..., None]], -1),
        names=tuple(detections.group_attrs("keypoints")["joints"]),
        K=frames["K"][frame].astype(float),
        time=frames["time"][frame],
        R=R,
        t=t,
        joints=None if meshes is None or body is None else _posed(meshes, body),
    )
    people = associate(sightings)
    if rig is not None and not has_positions:
        people.notes.append(f"{rig.path} has no t: the views agree in direction, not in place")
    guessed = sorted(set(view[frames["K_source"] == K_DEFAULT].tolist()))
    if has_positions and guessed:
        people.warnings.append(
            f"the focal length of view {', '.join(map(str, guessed))} is a guess, places in the world are no better; "
            "give hmr detect --focal, --fov or --cameras"
        )
    return people


def _posed(meshes: Artefact, body: Body) -> Callable[[np.ndarray], np.ndarray]:
    """rows (n,) -> joints (n, 11, 3) m of the recovered bodies about the pelvis, in the pelvis' own axes."""
    limbs = [body.joint_names.index(name) for name in LIMBS]

    def joints(rows: np.ndarray) -> np.ndarray:
        pose = torch.from_numpy(meshes.read("smpl/body_pose", rows)).float()
        pose = torch.nn.functional.pad(pose, (0, 0, 1, 0))
        betas = torch.zeros(len(rows), 10)
        with torch.no_grad():
            points = body.joints(axis_angle_to_matrix(pose).to(body.device), betas.to(body.device)).cpu()
        return (points[:, limbs] - points[:, :1]).numpy()

    return joints


def report_people(people: Association, table: Artefact, usable: np.ndarray, report: Any) -> None:
    """Report each person's views and how many rows are joined; warn if none are, with the reason."""
    for text in people.warnings:
        report.warn(text)
    for text in people.notes:
        report.note(text)
    counts = view_counts(table, people.person, _views(table, people.person, usable))
    total = sum(p["rows"] for p in counts["people"])
    if not counts["joined"]:
        if total:
            report.warn(f"0 of {total} rows are joined with another view: {people.reason}")
        return
    joined = [p for p in counts["people"] if p["joined"]]
    report.note(f"{counts['joined']} of {total} rows joined with another view: {len(joined)} people, by {people.how}")
    if len(joined) <= LISTED:
        for each in joined:
            where = ", ".join(f"view {v} (track {_listed(tracks)})" for v, tracks in each["tracks"].items())
            report.note(f"person {each['person']}: {where}")
    if alone := [p for p in counts["people"] if not p["joined"]]:
        where = ", ".join(f"view {v} track {_listed(t)}" for p in alone[:LISTED] for v, t in p["tracks"].items())
        more = " ..." if len(alone) > LISTED else ""
        report.warn(f"{sum(p['rows'] for p in alone)} rows are joined with no other view: {where}{more}")


def _views(table: Artefact, person: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """How many usable rows (R,) there are of each row's person at its moment."""
    good = np.flatnonzero(usable & (table.rows["status"] == OK))
    moment = moments(table.frames["view"], table.frames["time"])[table.rows["frame"]]
    key = np.stack([person, moment], 1)[good]
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    views = np.ones(table.n_rows, int)
    views[good] = count[group.ravel()]
    return views


def report_misses(table: Artefact, report: Any) -> None:
    """Warn of views whose keypoints lie far from the joined bodies: their pose in the rig may be wrong."""
    joined = (table.read("extra/views") > 1) & (table.rows["status"] == OK)
    view, box = table.frames["view"][table.rows["frame"]], table.rows["box"]
    size = np.maximum((box[:, 2:] - box[:, :2]).max(1), 1)
    distance = table.read("extra/error_after") / size
    medians = {int(v): float(np.median(distance[joined & (view == v)])) for v in np.unique(view[joined])}
    if not medians:
        return
    usual = sorted(medians.values())[(len(medians) - 1) // 2]
    if usual > MAX_MISS:
        bad, than = list(medians), ""
    else:
        bad, than = [v for v, m in medians.items() if m > max(3 * usual, MAX_MISS)], f", {usual:.1%} in the others"
    if bad:
        views, most = ", ".join(map(str, bad)), max(medians[v] for v in bad)
        report.warn(
            f"view {views}: the joined bodies miss the keypoints by {most:.0%} "
            f"of the box (median{than}); are its pose in the rig, its intrinsics and its keypoints right?"
        )


def _listed(tracks: list[int]) -> str:
    return ", ".join("none" if t < 0 else str(t) for t in tracks)
