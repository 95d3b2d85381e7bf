"""Tracks that change from one person to another: rows that fit another person at their moment become that person's."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from stages.refinement.likeness import Association, Sightings, ray_weights

MIN_OTHERS = 2  # further views that must show the person: the rays of two alone also meet where nobody is
DOUBT = 0.6  # weight a view below which a row may be somebody else
MIN_GAIN = 0.5  # weight a view that an exchange must gain


def exchange_rows(sightings: Sightings, pairs: np.ndarray, people: Association) -> None:
    """Change people.person (R,) for rows that fit another person better, who has no row of this view at this moment or
    one that is exchanged. pairs (P, 2): rows of one moment in different views."""
    person, before = people.person, people.person.copy()
    same_person = pairs[person[pairs[:, 0]] == person[pairs[:, 1]]]
    weight = np.repeat(np.nan_to_num(_weights(sightings, same_person)), 2)
    ends = same_person.ravel()
    total, count = np.bincount(ends, weight, len(person)), np.bincount(ends, minlength=len(person))
    suspects = np.flatnonzero((total < DOUBT * count) & (count >= MIN_OTHERS))
    suspects = suspects[np.argsort(total[suspects] / count[suspects], kind="stable")]
    moments = np.unique(sightings.moment[suspects])
    near_pairs = pairs[np.isin(sightings.moment[pairs[:, 0]], moments)]
    links: dict[int, dict[int, float]] = defaultdict(dict)
    for (a, b), w in zip(near_pairs.tolist(), np.nan_to_num(_weights(sightings, near_pairs)).tolist(), strict=True):
        links[a][b] = links[b][a] = w
    row_of: dict[tuple[int, int, int], int] = {
        (sightings.moment[row], sightings.camera[row], person[row]): row
        for row in np.flatnonzero(sightings.ok & np.isin(sightings.moment, moments)).tolist()
    }
    for row in suspects.tolist():
        key = (sightings.moment[row], sightings.camera[row])
        home, better = int(person[row]), _better(row, person, links, row_of, key)
        if better is None:
            continue
        other = row_of.pop((*key, better), None)
        del row_of[(*key, home)]
        person[row], row_of[(*key, better)] = better, row
        if other is not None:
            person[other], row_of[(*key, home)] = home, other
    views, changed = np.unique(sightings.camera[person != before], return_counts=True)
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
    key: tuple[int, int],
) -> int | None:
    """The person whose row it is instead, if an exchange with its row of the same moment and view gains enough."""

    def fit(each: int | None, candidate: int) -> tuple[float, int]:
        weights = [w for other, w in links[each].items() if person[other] == candidate] if each is not None else []
        return sum(weights), len(weights)

    home, best, best_gain = int(person[row]), None, 0.0
    for candidate in {int(person[other]) for other in links[row]} - {home}:
        other = row_of.get((*key, candidate))
        fit_there, count = fit(row, candidate)
        gain = fit_there + fit(other, home)[0] - fit(row, home)[0] - fit(other, candidate)[0]
        if count >= MIN_OTHERS and fit_there > 0 and gain > max(best_gain, MIN_GAIN * count):
            best, best_gain = candidate, gain
    return best


def _weights(sightings: Sightings, pairs: np.ndarray, chunk: int = 20_000) -> np.ndarray:
    parts = [ray_weights(sightings, pairs[low : low + chunk])[0] for low in range(0, len(pairs), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0)
