"""Tracks into people: the partition with the largest sum of weights inside its groups (correlation clustering).

A partition agrees round every cycle of cameras by itself: if a is b and b is c, then a is c. It is looked for by
merging the two groups that gain most again and again, then moving single tracks. `rivals` are tracks that one camera
shows at one moment: two people.
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
    """Between two tracks: the sum of weights over `count` moments, and the mean distance `miss`, m."""

    weight: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    miss: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    count: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, a: int, b: int, weight: float, miss: float, count: int) -> None:
        for x, y in ((a, b), (b, a)):
            self.weight[x][y], self.miss[x][y], self.count[x][y] = weight, miss, count

    def between(self, a: Group, b: Group) -> Between:
        """What is between two groups of tracks."""
        pairs = [(x, y) for x in a if x in self.weight for y in b & self.weight[x].keys()]
        counts = [self.count[x][y] for x, y in pairs]
        return Between(sum(self.weight[x][y] for x, y in pairs), sum(counts), max(counts, default=0))

    def inside(self, groups: list[Group]) -> Between:
        """What is inside groups, all together."""
        each = [self.between({t}, {u for u in g if u > t}) for g in groups for t in g]
        return Between(
            sum(b.weight for b in each), sum(b.moments for b in each), max((b.most for b in each), default=0)
        )


def merge(groups: list[Group], links: Links, rivals: dict[int, Group]) -> list[Group]:
    """Merge the two groups that gain most, until none gain."""
    groups = [set(g) for g in groups]
    at = {t: k for k, group in enumerate(groups) for t in group}
    version = [0] * len(groups)
    heap: list[tuple[float, int, int, int, int]] = []

    def offer(k: int, others: Iterable[int]) -> None:
        for j in others:
            a, b = sorted((k, j))
            gain = links.between(groups[a], groups[b]).weight
            if gain > 0 and not _at_odds(groups[a], groups[b], rivals):
                heapq.heappush(heap, (-gain, a, b, version[a], version[b]))

    def near(k: int) -> Group:
        return {at[t] for x in groups[k] for t in links.weight[x]} - {k}

    for k in range(len(groups)):
        offer(k, (j for j in near(k) if j > k))
    while heap:
        _, k, j, a, b = heapq.heappop(heap)
        if (version[k], version[j]) != (a, b):
            continue
        groups[k] |= groups[j]
        at.update(dict.fromkeys(groups[j], k))
        groups[j] = set()
        version[k] += 1
        version[j] += 1
        offer(k, near(k))
    return [g for g in groups if g]


def _at_odds(a: Group, b: Group, rivals: dict[int, Group]) -> bool:
    return any(rivals.get(x, set()) & b for x in a)


def improve(groups: list[Group], links: Links, rivals: dict[int, Group], fixed: Group) -> list[Group]:
    """Move single tracks as long as the sum of weights grows: in exchange for a rival in the other group, and with what
    the track leaves behind joining a third group, if that gains more."""
    for _ in range(PASSES):
        moved = False
        for t in sorted(set().union(*groups) - fixed):
            home = next(g for g in groups if t in g)
            for other in _near({t}, groups, links):
                back = rivals.get(t, set()) & other
                if other is home or back & fixed or _at_odds(back, home - {t}, rivals):
                    continue
                left = (home - {t}) | back
                gain, third = _exchange(home, {t}, other, back, links), None
                for g in _near(left, groups, links):
                    more = links.between(left, g).weight if g is not home and g is not other else 0.0
                    if more > 0 and gain + more > 0 and not _at_odds(left, g, rivals):
                        gain, third = gain + more, g
                        break
                if gain > 1e-9:
                    other -= back
                    other |= {t}
                    home.clear()
                    (home if third is None else third).update(left)
                    moved = True
                    break
            groups = [g for g in groups if g]
        if not moved:
            break
    return groups


def _exchange(home: Group, out: Group, other: Group, back: Group, links: Links) -> float:
    """What the sum of weights gains if `out` of home and `back` of other change places."""
    stay, rest = home - out, other - back
    now = links.between(out, stay).weight + links.between(back, rest).weight
    return links.between(out, rest).weight + links.between(back, stay).weight - now


def doubtful(
    groups: list[Group],
    links: Links,
    rivals: dict[int, Group],
    camera: list[int],
    tell: Callable[[float], float],
    fixed: Group,
) -> dict[int, Group]:
    """By camera: tracks that another person's tracks of the camera could replace, or that could as well be of another
    person, for less than tell(number of moments) a moment. Tracks that are `fixed` are not in doubt."""
    doubts: dict[int, Group] = defaultdict(set)
    for home in groups:
        for view in {camera[t] for t in home - fixed}:
            out = {t for t in home if camera[t] == view}
            stay = home - out
            for other in _near(home, groups, links) if stay else ():
                back = {t for t in other if camera[t] == view}
                if (out | back) & fixed or _at_odds(out, other - back, rivals) or _at_odds(back, stay, rivals):
                    continue
                if back and not _at_odds(out, back, rivals):
                    continue  # one after the other: both could be of one person
                compared = [links.between(out, stay), links.between(back, other - back)]
                moments, most = sum(c.moments for c in compared), max(c.most for c in compared)
                if moments and -_exchange(home, out, other, back, links) < tell(most) * moments:
                    doubts[view] |= out | back
    return dict(doubts)


def _near(home: Group, groups: list[Group], links: Links) -> list[Group]:
    """Other groups with tracks that were compared with those of `home`."""
    compared = set().union(*(links.weight[t].keys() for t in home))
    return [g for g in groups if g is not home and g & compared]
