"""Tracks that change from one person to another: rows that at their moment fit another person are given to that one."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from stages.refinement.likeness import Association, Sightings, ray_weights

OTHERS = 2  # views that must see a person beside the row in question: two alone also meet where nobody stands
DOUBT = 0.6  # weight a view under which a row may be somebody else
GAIN = 0.5  # weight a view that an exchange must gain


def exchange_rows(seen: Sightings, pairs: np.ndarray, people: Association) -> None:
    """Change people.person (R,) for rows that fit another person better, who has no row of this view at this moment or
    one that is exchanged. pairs (P, 2): rows of one moment in different views."""
    person, before = people.person, people.person.copy()
    mine = pairs[person[pairs[:, 0]] == person[pairs[:, 1]]]
    weight = np.repeat(np.nan_to_num(_weights(seen, mine)), 2)
    total, count = np.bincount(mine.ravel(), weight, len(person)), np.bincount(mine.ravel(), minlength=len(person))
    odd = np.flatnonzero((total < DOUBT * count) & (count >= OTHERS))
    odd = odd[np.argsort(total[odd] / count[odd], kind="stable")]
    moments = np.unique(seen.moment[odd])
    near = pairs[np.isin(seen.moment[pairs[:, 0]], moments)]
    links: dict[int, dict[int, float]] = defaultdict(dict)
    for (a, b), w in zip(near.tolist(), np.nan_to_num(_weights(seen, near)).tolist(), strict=True):
        links[a][b] = links[b][a] = w
    row_of: dict[tuple[int, int, int], int] = {
        (seen.moment[row], seen.camera[row], person[row]): row
        for row in np.flatnonzero(seen.ok & np.isin(seen.moment, moments)).tolist()
    }
    for row in odd.tolist():
        where = (seen.moment[row], seen.camera[row])
        home, rather = int(person[row]), _better(row, person, links, row_of, where)
        if rather is None:
            continue
        other = row_of.pop((*where, rather), None)
        del row_of[(*where, home)]
        person[row], row_of[(*where, rather)] = rather, row
        if other is not None:
            person[other], row_of[(*where, home)] = home, other
    views, changed = np.unique(seen.camera[person != before], return_counts=True)
    for view, rows in zip(views.tolist(), changed.tolist(), strict=True):
        people.warnings.append(
            f"view {view}: {rows} rows fit another person than the rest of their track does, and are given to that one "
            "(a track that changes from one person to another)"
        )


def _better(
    row: int,
    person: np.ndarray,
    links: dict[int, dict[int, float]],
    row_of: dict[tuple[int, int, int], int],
    where: tuple[int, int],
) -> int | None:
    """Whose row it is rather, if an exchange with that person's row at the same moment and view gains enough."""

    def fit(each: int | None, who: int) -> tuple[float, int]:
        own = [w for other, w in links[each].items() if person[other] == who] if each is not None else []
        return sum(own), len(own)

    home, best, most = int(person[row]), None, 0.0
    for who in {int(person[other]) for other in links[row]} - {home}:
        other = row_of.get((*where, who))
        there, count = fit(row, who)
        gain = there + fit(other, home)[0] - fit(row, home)[0] - fit(other, who)[0]
        if count >= OTHERS and there > 0 and gain > max(most, GAIN * count):
            best, most = who, gain
    return best


def _weights(seen: Sightings, pairs: np.ndarray, chunk: int = 20_000) -> np.ndarray:
    parts = [ray_weights(seen, pairs[low : low + chunk])[0] for low in range(0, len(pairs), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0)
