"""Who is who over several cameras: tracks that are one person get one number.

What `hmr detect --views` writes numbers the tracks of every camera on its own. Here tracks of different cameras are
compared at all moments that they share (likeness.py): with a calibrated rig by how near the lines of sight to the same
joints pass each other, without one by how alike the recovered body poses are over time. partition.py then makes people
of tracks. Two tracks that one camera shows at one moment are two people. Where an exchange of two people in a camera
would be nearly as good, the camera's tracks are left alone, and that is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from stages.refinement.exchange import exchange_rows
from stages.refinement.likeness import (
    TELL_RAYS,
    Association,
    Measure,
    Sightings,
    always,
    news,
    pose_weights,
    ray_weights,
    tell_poses,
    tell_rays,
)
from stages.refinement.partition import Group, Links, doubtful, improve, merge

CHUNK = 20_000  # pairs of rows at once
SAMPLED = 64  # moments at which two tracks are compared, at most
NUMBER_THEM = "give what is one person the same track number in every view"


def associate(seen: Sightings) -> Association:
    """One number for each person, over all cameras. Tracks that carry one number in several cameras are one person
    already, unless a rig shows that their lines of sight pass each other."""
    tracklet, camera, number = _tracklets(seen)
    pairs = _row_pairs(seen.moment, seen.ok)
    same = seen.camera[pairs[:, 0]] == seen.camera[pairs[:, 1]]
    rivals, across = _rivals(tracklet, pairs[same]), _sampled(tracklet, pairs[~same])
    numbered = _shared_numbers(number)
    if numbered and seen.R is None:
        return _by_number(seen, tracklet, number, numbered)
    people, measure, tell = _method(seen, bool(rivals))
    links = _links(seen, tracklet, across, measure)
    kept = _kept(numbered, links, rivals, number, people)
    fixed: Group = set().union(*kept)
    groups = improve(merge(_with(kept, len(number)), links, rivals), links, rivals, fixed)
    if tell and (doubts := doubtful(groups, links, rivals, camera, tell, fixed)):
        groups = _left_alone(groups, doubts, number, people)
    people.person = _numbers(groups, tracklet, number)
    if seen.R is not None:
        exchange_rows(seen, pairs[~same], people)
    people.nobody = _why_nobody(seen, across, links, people)
    return people


def _method(seen: Sightings, crowded: bool) -> tuple[Association, Measure, Callable[[float], float] | None]:
    """How people are told apart: the measure, and the weight a moment by which it must tell in so many moments."""
    none = np.zeros(0, int)
    if seen.R is not None:
        return Association(none, "the rig"), ray_weights, tell_rays
    if not crowded:
        return Association(none, "one person in each view"), always, None
    if seen.joints is not None:
        share = news(seen)
        return Association(none, "body poses"), pose_weights, lambda moments: tell_poses(moments * share)
    people = Association(none, "nothing")
    people.warnings.append(
        f"boxes and keypoints of several people do not tell who is who; give --cameras, or {NUMBER_THEM}"
    )
    return people, _unknown, None


def _unknown(seen: Sightings, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(pairs), np.nan), np.zeros(len(pairs))


def _why_nobody(seen: Sightings, across: np.ndarray, links: Links, people: Association) -> str:
    if len(np.unique(seen.camera[seen.ok])) < 2:
        return "people are seen in one view only"
    if not len(across):
        return "no two views show people at the same moment; frames of one moment have the same time"
    misses = [m for each in links.miss.values() for m in each.values()]
    if not misses:
        return "too few keypoints are seen in two views"
    if seen.R is not None:
        return (
            f"the lines of sight to the nearest two tracks miss each other by {min(misses):.2f} m; are the rig's poses "
            "world to camera, in metres, by view number, and the intrinsics right?"
        )
    if people.warnings:
        return f"{people.how} cannot tell who is who; give --cameras, or {NUMBER_THEM}"
    return f"the most alike bodies are {min(misses):.2f} m apart at the joints; give --cameras, or {NUMBER_THEM}"


def _left_alone(groups: list[Group], doubts: dict[int, Group], number: list[int], people: Association) -> list[Group]:
    """Take the tracks in doubt out of their groups, and say so."""
    where = "; ".join(f"view {view} {_named(tracks, number)}" for view, tracks in sorted(doubts.items()))
    advice = NUMBER_THEM if people.how == "the rig" else f"give --cameras, or {NUMBER_THEM}"
    people.warnings.append(f"{people.how} cannot tell who is who, these are joined with nobody: {where}; {advice}")
    gone = set().union(*doubts.values())
    return [left for g in groups if (left := g - gone)] + [{t} for t in sorted(gone)]


def _named(tracks: Group, number: list[int]) -> str:
    """track 3; tracks 3 and 4; 17 rows without track."""
    numbers, free = sorted(number[t] for t in tracks if number[t] >= 0), sum(number[t] < 0 for t in tracks)
    named = [f"track{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"] if numbers else []
    return ", ".join([*named, *([f"{free} row{'s' * (free > 1)} without track"] if free else [])])


# ---- rows, tracks, pairs


def _tracklets(seen: Sightings) -> tuple[np.ndarray, list[int], list[int]]:
    """Tracklet (R,) of each row, and each tracklet's camera and track number; a row without track is one by itself."""
    own = np.where(seen.track >= 0, -1, np.arange(len(seen.track)))
    key = np.stack([seen.camera, seen.track, own], 1)
    every, tracklet = np.unique(key, axis=0, return_inverse=True)
    return tracklet.ravel(), every[:, 0].tolist(), every[:, 1].tolist()


def _row_pairs(moment: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """All pairs (P, 2) of rows of one moment, the earlier row first."""
    rows = np.flatnonzero(ok)
    rows = rows[np.argsort(moment[rows], kind="stable")]
    if not len(rows):
        return np.zeros((0, 2), int)
    _, first, size = np.unique(moment[rows], return_index=True, return_counts=True)
    found = []
    for n in np.unique(size):
        i, j = np.triu_indices(n, 1)
        begin = first[size == n][:, None]
        found.append(np.stack([rows[begin + i], rows[begin + j]], -1).reshape(-1, 2))
    return np.concatenate(found)


def _rivals(tracklet: np.ndarray, pairs: np.ndarray) -> dict[int, set[int]]:
    """Which tracklets are seen beside each other in one picture, so that they are two people."""
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
    by: dict[int, set[int]] = defaultdict(set)
    for tracklet, n in enumerate(number):
        if n >= 0:
            by[n].add(tracklet)
    return [group for group in by.values() if len(group) > 1]


def _numbers(groups: list[set[int]], tracklet: np.ndarray, number: list[int]) -> np.ndarray:
    """A number for each person: the smallest of its tracks' that nobody else has, else a new one."""
    taken: set[int] = set()
    person = np.zeros(len(number), int)
    new = max(number, default=-1) + 1
    for group in sorted(groups, key=min):
        free = [n for n in sorted(number[t] for t in group) if n >= 0 and n not in taken]
        name = free[0] if free else new
        new += not free
        taken.add(name)
        person[list(group)] = name
    return person[tracklet]


def _by_number(seen: Sightings, tracklet: np.ndarray, number: list[int], numbered: list[Group]) -> Association:
    """No rig, and somebody has numbered the people: the numbers are kept."""
    people = Association(seen.track.copy(), "track numbers")
    free = seen.track < 0
    people.person[free] = max(number) + 1 + np.unique(tracklet[free], return_inverse=True)[1]
    people.notes.append(f"{len(numbered)} track numbers stand in several views: each is kept as one person")
    if rest := len(number) - sum(map(len, numbered)):
        people.notes.append(f"{rest} tracks have a number of their own and are joined with nobody")
    people.nobody = "no two views show people at the same moment; frames of one moment have the same time"
    return people


def _kept(
    numbered: list[Group], links: Links, rivals: dict[int, Group], number: list[int], people: Association
) -> list[Group]:
    """The numbered people that the rig agrees with: without their number they would be grouped alike, or hardly better
    otherwise."""
    if not numbered:
        return []
    every = [{t} for t in range(len(number))]
    free = improve(merge(every, links, rivals), links, rivals, set())
    given = merge(_with(numbered, len(number)), links, rivals)
    kept = numbered
    if links.inside(free).weight - links.inside(given).weight > TELL_RAYS * links.inside(given).moments:
        kept = [group for group in numbered if any(group <= g for g in free)]
        wrong = [group for group in numbered if group not in kept]
        miss = max(links.miss[a].get(b, 0.0) for group in wrong for a in group for b in group)
        people.warnings.append(
            f"the numbers of {_named({min(group) for group in wrong}, number)} stand in several views, but the lines "
            f"of sight miss each other by up to {miss:.2f} m: these numbers are not used"
        )
    if kept:
        people.notes.append(f"{len(kept)} track numbers stand in several views: each is kept as one person")
    return kept


def _with(groups: list[Group], count: int) -> list[Group]:
    """The groups, and every other track by itself."""
    rest = set(range(count)).difference(*groups)
    return [*groups, *({t} for t in sorted(rest))]


def _links(seen: Sightings, tracklet: np.ndarray, pairs: np.ndarray, measure: Measure) -> Links:
    """Weights between tracklets from pairs (P, 2) of rows."""
    weight, miss = np.zeros(len(pairs)), np.zeros(len(pairs))
    for low in range(0, len(pairs), CHUNK):
        now = slice(low, low + CHUNK)
        weight[now], miss[now] = measure(seen, pairs[now])
    told = np.isfinite(weight)
    two, link = np.unique(np.sort(tracklet[pairs[told]], axis=1), axis=0, return_inverse=True)
    count = np.bincount(link.ravel(), minlength=len(two))
    total, away = (np.bincount(link.ravel(), v[told], len(two)) for v in (weight, miss))
    links = Links()
    for (a, b), w, d, n in zip(two.tolist(), total.tolist(), (away / count).tolist(), count.tolist(), strict=True):
        links.add(a, b, w, d, n)
    return links
