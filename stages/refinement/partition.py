"""Tracks into people: the partition with the largest sum of weights inside its groups (correlation clustering).

A partition is consistent over cycles of cameras: if a is b and b is c, then a is c. The search merges the two groups
that gain most until none gain, then moves single tracks. `rivals` are tracks that one camera shows at one moment: they
are two people.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

Group = set[int]
PASSES = 5


class Between(NamedTuple):
    """Sum of weights, of moments, and the most moments of any two tracks."""

    weight: float
    moments: int
    most: int


@dataclass
class Links:
    """Between two tracks: the sum of weights over `count` moments, and the mean `distance`, m."""

    weight: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    distance: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    count: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, a: int, b: int, weight: float, distance: float, count: int) -> None:
        for x, y in ((a, b), (b, a)):
            self.weight[x][y], self.distance[x][y], self.count[x][y] = weight, distance, count

    def between(self, a: Group, b: Group) -> Between:
        """The links between two groups of tracks."""
        pairs = [(x, y) for x in a if x in self.weight for y in b & self.weight[x].keys()]
        counts = [self.count[x][y] for x, y in pairs]
        return Between(sum(self.weight[x][y] for x, y in pairs), sum(counts), max(counts, default=0))

    def inside(self, groups: list[Group]) -> Between:
        """The links inside groups, all together."""
        each = [self.between({t}, {u for u in g if u > t}) for g in groups for t in g]
        return Between(
            sum(b.weight for b in each), sum(b.moments for b in each), max((b.most for b in each), default=0)
        )


def merge(groups: list[Group], links: Links, rivals: dict[int, Group]) -> list[Group]:
    """Merge the two groups that gain most, until none gain."""
    groups = [set(g) for g in groups]
    group_of = {t: k for k, group in enumerate(groups) for t in group}
    version = [0] * len(groups)
    heap: list[tuple[float, int, int, int, int]] = []

    def offer(k: int, others: Iterable[int]) -> None:
        for j in others:
            a, b = sorted((k, j))
            gain = links.between(groups[a], groups[b]).weight
            if gain > 0 and not _are_rivals(groups[a], groups[b], rivals):
                heapq.heappush(heap, (-gain, a, b, version[a], version[b]))

    def neighbours(k: int) -> Group:
        return {group_of[t] for x in groups[k] for t in links.weight[x]} - {k}

    for k in range(len(groups)):
        offer(k, (j for j in neighbours(k) if j > k))
    while heap:
        _, k, j, a, b = heapq.heappop(heap)
        if (version[k], version[j]) != (a, b):
            continue
        groups[k] |= groups[j]
        group_of.update(dict.fromkeys(groups[j], k))
        groups[j] = set()
        version[k] += 1
        version[j] += 1
        offer(k, neighbours(k))
    return [g for g in groups if g]


def _are_rivals(a: Group, b: Group, rivals: dict[int, Group]) -> bool:
    return any(rivals.get(x, set()) & b for x in a)


def improve(groups: list[Group], links: Links, rivals: dict[int, Group], fixed: Group) -> list[Group]:
    """Move single tracks as long as the sum of weights grows: in exchange for rivals in the other group; the rest of
    the track's group joins a third group if that gains more."""
    for _ in range(PASSES):
        moved = False
        for t in sorted(set().union(*groups) - fixed):
            home = next(g for g in groups if t in g)
            for other in _neighbours({t}, groups, links):
                returning = rivals.get(t, set()) & other
                if other is home or returning & fixed or _are_rivals(returning, home - {t}, rivals):
                    continue
                left = (home - {t}) | returning
                gain, third = _exchange(home, {t}, other, returning, links), None
                for g in _neighbours(left, groups, links):
                    third_gain = links.between(left, g).weight if g is not home and g is not other else 0.0
                    if third_gain > 0 and gain + third_gain > 0 and not _are_rivals(left, g, rivals):
                        gain, third = gain + third_gain, g
                        break
                if gain > 1e-9:
                    other -= returning
                    other |= {t}
                    home.clear()
                    (home if third is None else third).update(left)
                    moved = True
                    break
            groups = [g for g in groups if g]
        if not moved:
            break
    return groups


def _exchange(home: Group, leaving: Group, other: Group, returning: Group, links: Links) -> float:
    """Gain of the sum of weights if `leaving` of home and `returning` of other are exchanged."""
    staying, remaining = home - leaving, other - returning
    before = links.between(leaving, staying).weight + links.between(returning, remaining).weight
    return links.between(leaving, remaining).weight + links.between(returning, staying).weight - before


def doubtful(
    groups: list[Group],
    links: Links,
    rivals: dict[int, Group],
    camera: list[int],
    margin: Callable[[float], float],
    fixed: Group,
) -> dict[int, Group]:
    """By camera: tracks that another person's tracks of the camera could replace, or that could as well be of another
    person, for less than margin(number of moments) a moment. Tracks that are `fixed` are not in doubt."""
    doubts: dict[int, Group] = defaultdict(set)
    for home in groups:
        for view in {camera[t] for t in home - fixed}:
            leaving = {t for t in home if camera[t] == view}
            staying = home - leaving
            for other in _neighbours(home, groups, links) if staying else ():
                returning = {t for t in other if camera[t] == view}
                if (leaving | returning) & fixed or _are_rivals(leaving, other - returning, rivals):
                    continue
                if _are_rivals(returning, staying, rivals):
                    continue
                if returning and not _are_rivals(leaving, returning, rivals):
                    continue  # one after the other: both could be of one person
                compared = [links.between(leaving, staying), links.between(returning, other - returning)]
                moments, most = sum(c.moments for c in compared), max(c.most for c in compared)
                if moments and -_exchange(home, leaving, other, returning, links) < margin(most) * moments:
                    doubts[view] |= leaving | returning
    return dict(doubts)


def _neighbours(home: Group, groups: list[Group], links: Links) -> list[Group]:
    """Other groups with tracks that were compared with those of `home`."""
    compared = set().union(*(links.weight[t].keys() for t in home))
    return [g for g in groups if g is not home and g & compared]
