"""Association of people over several cameras: tracks of one person get one number.

`hmr detect --views` numbers the tracks of each camera separately. Here tracks of different cameras are
compared at all moments that they share (likeness.py): with a calibrated rig by how near the lines of sight to the same
joints pass each other, without one by how alike the recovered body poses are over time. partition.py then makes people
of tracks. Two tracks that one camera shows at one moment are two people. Where an exchange of two people in a camera
would be nearly as good, the camera's tracks are joined with nobody, and a warning names them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from stages.refinement.exchange import exchange_rows
from stages.refinement.likeness import (
    RAY_MARGIN,
    Association,
    Measure,
    Sightings,
    certain_weights,
    independent_share,
    pose_margin,
    pose_weights,
    ray_margin,
    ray_weights,
)
from stages.refinement.partition import Group, Links, doubtful, improve, merge

CHUNK = 20_000  # pairs of rows at once
SAMPLED = 64  # moments at which two tracks are compared, at most
NUMBER_THEM = "give what is one person the same track number in every view"


def associate(sightings: Sightings) -> Association:
    """One number for each person, over all cameras. Tracks that carry one number in several cameras are one person
    already, unless a rig shows that their lines of sight pass each other."""
    tracklet, camera, number = _tracklets(sightings)
    pairs = _row_pairs(sightings.moment, sightings.ok)
    same = sightings.camera[pairs[:, 0]] == sightings.camera[pairs[:, 1]]
    rivals, across = _rivals(tracklet, pairs[same]), _sampled(tracklet, pairs[~same])
    numbered = _shared_numbers(number)
    if numbered and sightings.R is None:
        return _by_number(sightings, tracklet, number, numbered)
    people, measure, margin = _method(sightings, bool(rivals))
    links = _links(sightings, tracklet, across, measure)
    kept = _kept_numbers(numbered, links, rivals, number, people)
    fixed: Group = set().union(*kept)
    groups = improve(merge(_completed(kept, len(number)), links, rivals), links, rivals, fixed)
    if margin and (doubts := doubtful(groups, links, rivals, camera, margin, fixed)):
        groups = _without_doubts(groups, doubts, number, people)
    people.person = _numbers(groups, tracklet, number)
    if sightings.R is not None:
        exchange_rows(sightings, pairs[~same], people)
    people.reason = _reason(sightings, across, links, people)
    return people


def _method(sightings: Sightings, crowded: bool) -> tuple[Association, Measure, Callable[[float], float] | None]:
    """How people are told apart: the measure, and a function of the number of moments that gives the margin a moment by
    which it must tell them apart; None: no margin."""
    none = np.zeros(0, int)
    if sightings.R is not None:
        return Association(none, "the rig"), ray_weights, ray_margin
    if not crowded:
        return Association(none, "one person in each view"), certain_weights, None
    if sightings.joints is not None:
        share = independent_share(sightings)
        return Association(none, "body poses"), pose_weights, lambda moments: pose_margin(moments * share)
    people = Association(none, "nothing")
    people.warnings.append(
        f"boxes and keypoints of several people do not tell who is who; give --cameras, or {NUMBER_THEM}"
    )
    return people, _unknown, None


def _unknown(sightings: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(pairs), np.nan), np.zeros(len(pairs))


def _reason(sightings: Sightings, across: np.ndarray, links: Links, people: Association) -> str:
    if len(np.unique(sightings.camera[sightings.ok])) < 2:
        return "people are seen in one view only"
    if not len(across):
        return "no two views show people at the same moment; frames of one moment have the same time"
    misses = [m for each in links.distance.values() for m in each.values()]
    if not misses:
        return "too few keypoints are seen in two views"
    if sightings.R is not None:
        return (
            f"the lines of sight to the nearest two tracks miss each other by {min(misses):.2f} m; are the rig's poses "
            "world to camera, in metres, by view number, and the intrinsics right?"
        )
    if people.warnings:
        return f"{people.how} cannot tell who is who; give --cameras, or {NUMBER_THEM}"
    return f"the most alike bodies are {min(misses):.2f} m apart at the joints; give --cameras, or {NUMBER_THEM}"


def _without_doubts(
    groups: list[Group], doubts: dict[int, Group], number: list[int], people: Association
) -> list[Group]:
    """The groups without the tracks in doubt, with a warning that names these."""
    where = "; ".join(f"view {view} {_named(tracks, number)}" for view, tracks in sorted(doubts.items()))
    advice = NUMBER_THEM if people.how == "the rig" else f"give --cameras, or {NUMBER_THEM}"
    people.warnings.append(f"{people.how} cannot tell who is who, these are joined with nobody: {where}; {advice}")
    doubtful_tracks = set().union(*doubts.values())
    return [left for g in groups if (left := g - doubtful_tracks)] + [{t} for t in sorted(doubtful_tracks)]


def _named(tracks: Group, number: list[int]) -> str:
    """track 3; tracks 3 and 4; 17 rows without track."""
    numbers, untracked = sorted(number[t] for t in tracks if number[t] >= 0), sum(number[t] < 0 for t in tracks)
    named = [f"track{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"] if numbers else []
    return ", ".join([*named, *([f"{untracked} row{'s' * (untracked > 1)} without track"] if untracked else [])])


# ---- rows, tracks, pairs


def _tracklets(sightings: Sightings) -> tuple[np.ndarray, list[int], list[int]]:
    """Tracklet (R,) of each row, and each tracklet's camera and track number; a row without track is one by itself."""
    single_row = np.where(sightings.track >= 0, -1, np.arange(len(sightings.track)))
    key = np.stack([sightings.camera, sightings.track, single_row], 1)
    every, tracklet = np.unique(key, axis=0, return_inverse=True)
    return tracklet.ravel(), every[:, 0].tolist(), every[:, 1].tolist()


def _row_pairs(moment: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """All pairs (P, 2) of rows of one moment, the earlier row first."""
    rows = np.flatnonzero(ok)
    rows = rows[np.argsort(moment[rows], kind="stable")]
    if not len(rows):
        return np.zeros((0, 2), int)
    _, first, size = np.unique(moment[rows], return_index=True, return_counts=True)
    pairs_of_size = []
    for n in np.unique(size):
        i, j = np.triu_indices(n, 1)
        begin = first[size == n][:, None]
        pairs_of_size.append(np.stack([rows[begin + i], rows[begin + j]], -1).reshape(-1, 2))
    return np.concatenate(pairs_of_size)


def _rivals(tracklet: np.ndarray, pairs: np.ndarray) -> dict[int, set[int]]:
    """Which tracklets are shown beside each other in one image, so that they are two people."""
    rivals: dict[int, set[int]] = defaultdict(set)
    for a, b in np.unique(tracklet[pairs], axis=0).tolist() if len(pairs) else ():
        rivals[a].add(b)
        rivals[b].add(a)
    return rivals


def _sampled(tracklet: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """At most SAMPLED of the pairs of rows of each two tracklets, evenly over time."""
    if not len(pairs):
        return pairs
    key = np.sort(tracklet[pairs], axis=1)
    _, link, size = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(link.ravel(), kind="stable")
    rank = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
    many = np.repeat(size, size)
    kept = (rank * SAMPLED) // many != ((rank - 1) * SAMPLED) // many
    return pairs[order[kept | (many <= SAMPLED)]]


def _shared_numbers(number: list[int]) -> list[Group]:
    """Tracklets of different cameras that carry one number."""
    tracklets_of: dict[int, set[int]] = defaultdict(set)
    for tracklet, n in enumerate(number):
        if n >= 0:
            tracklets_of[n].add(tracklet)
    return [group for group in tracklets_of.values() if len(group) > 1]


def _numbers(groups: list[set[int]], tracklet: np.ndarray, number: list[int]) -> np.ndarray:
    """A number for each person: the smallest of its tracks' that nobody else has, else a new one."""
    used: set[int] = set()
    person = np.zeros(len(number), int)
    new = max(number, default=-1) + 1
    for group in sorted(groups, key=min):
        available = [n for n in sorted(number[t] for t in group) if n >= 0 and n not in used]
        chosen = available[0] if available else new
        new += not available
        used.add(chosen)
        person[list(group)] = chosen
    return person[tracklet]


def _by_number(sightings: Sightings, tracklet: np.ndarray, number: list[int], numbered: list[Group]) -> Association:
    """No rig, and somebody has numbered the people: the numbers are kept."""
    people = Association(sightings.track.copy(), "track numbers")
    untracked = sightings.track < 0
    people.person[untracked] = max(number) + 1 + np.unique(tracklet[untracked], return_inverse=True)[1]
    people.notes.append(f"{len(numbered)} track numbers stand in several views: each is kept as one person")
    if rest := len(number) - sum(map(len, numbered)):
        people.notes.append(f"{rest} tracks have a number of their own and are joined with nobody")
    people.reason = "no two views show people at the same moment; frames of one moment have the same time"
    return people


def _kept_numbers(
    numbered: list[Group], links: Links, rivals: dict[int, Group], number: list[int], people: Association
) -> list[Group]:
    """The numbered people that the rig agrees with: without their number they would be grouped alike, or hardly better
    otherwise."""
    if not numbered:
        return []
    every = [{t} for t in range(len(number))]
    unaided = improve(merge(every, links, rivals), links, rivals, set())
    with_numbers = merge(_completed(numbered, len(number)), links, rivals)
    kept = numbered
    inside = links.inside(with_numbers)
    if links.inside(unaided).weight - inside.weight > RAY_MARGIN * inside.moments:
        kept = [group for group in numbered if any(group <= g for g in unaided)]
        wrong = [group for group in numbered if group not in kept]
        distance = max(links.distance[a].get(b, 0.0) for group in wrong for a in group for b in group)
        people.warnings.append(
            f"the numbers of {_named({min(group) for group in wrong}, number)} stand in several views, but the lines "
            f"of sight miss each other by up to {distance:.2f} m: these numbers are not used"
        )
    if kept:
        people.notes.append(f"{len(kept)} track numbers stand in several views: each is kept as one person")
    return kept


def _completed(groups: list[Group], count: int) -> list[Group]:
    """The groups, and every other track by itself."""
    rest = set(range(count)).difference(*groups)
    return [*groups, *({t} for t in sorted(rest))]


def _links(sightings: Sightings, tracklet: np.ndarray, pairs: np.ndarray, measure: Measure) -> Links:
    """Weights between tracklets from pairs (P, 2) of rows."""
    weight, distance = np.zeros(len(pairs)), np.zeros(len(pairs))
    for low in range(0, len(pairs), CHUNK):
        chunk = slice(low, low + CHUNK)
        weight[chunk], distance[chunk] = measure(sightings, pairs[chunk])
    known = np.isfinite(weight)
    tracklet_pairs, link = np.unique(np.sort(tracklet[pairs[known]], axis=1), axis=0, return_inverse=True)
    count = np.bincount(link.ravel(), minlength=len(tracklet_pairs))
    sums = [np.bincount(link.ravel(), v[known], len(tracklet_pairs)) for v in (weight, distance)]
    links = Links()
    values = (v.tolist() for v in (tracklet_pairs, sums[0], sums[1] / count, count))
    for (a, b), w, d, n in zip(*values, strict=True):
        links.add(a, b, w, d, n)
    return links
