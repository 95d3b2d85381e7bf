"""How well people are followed: IDF1, identity switches and fragments of tracks against true ones.

IDF1: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", ECCV workshops
2016, section 4: true and computed trajectories are matched one to one over the whole film so that most boxes agree;
IDF1 = 2 IDTP / (2 IDTP + IDFP + IDFN). Switches and fragments: Bernardin & Stiefelhagen, "Evaluating Multiple Object
Tracking Performance: The CLEAR MOT Metrics", 2008: people are matched frame by frame, pairs of the frame before first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from stages.keypoints.oks import iou


@dataclasses.dataclass(frozen=True)
class Moment:
    """One frame: true track numbers (n,), predicted ones (m,), `similar` (n, m) in 0..1, which true people count (n,).

    A prediction matched to somebody who does not count is neither right nor wrong.
    """

    true: np.ndarray
    predicted: np.ndarray
    similar: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_boxes(
        cls,
        true: np.ndarray,
        true_box: np.ndarray,
        predicted: np.ndarray,
        predicted_box: np.ndarray,
        counts: np.ndarray | None,
    ) -> Moment:
        """Similarity is the boxes' IoU; boxes (n, 4) and (m, 4) xyxy."""
        counts = np.ones(len(true), bool) if counts is None else counts
        return cls(true, predicted, iou(true_box, predicted_box), counts)


@dataclasses.dataclass(frozen=True)
class TrackingScores:
    """Counts over one or several films; add two to join them.

    true, predicted, idtp: boxes · switches: a true person goes on under another number · fragments: a true person is
    lost and found again · tracks, true_tracks: numbers.
    """

    true: int = 0
    predicted: int = 0
    matched: int = 0
    idtp: int = 0
    switches: int = 0
    fragments: int = 0
    tracks: int = 0
    true_tracks: int = 0

    def __add__(self, other: TrackingScores) -> TrackingScores:
        return TrackingScores(*(a + b for a, b in zip(self._counts(), other._counts(), strict=True)))

    def _counts(self) -> tuple[int, ...]:
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self))

    @property
    def idf1(self) -> float:
        """2 IDTP / (2 IDTP + IDFP + IDFN), with IDFP = predicted - IDTP and IDFN = true - IDTP."""
        return 2 * self.idtp / max(self.true + self.predicted, 1)

    @property
    def recall(self) -> float:
        return self.matched / max(self.true, 1)

    @property
    def precision(self) -> float:
        return self.matched / max(self.predicted, 1)


def score(film: Iterable[Moment], threshold: float = 0.5) -> TrackingScores:
    """The scores of one film, its frames in order of time. threshold: similarity from which two may be the same."""
    moments = [_without_ignored(moment, threshold) for moment in film]
    true, predicted = (sum(len(getattr(m, name)) for m in moments) for name in ("true", "predicted"))
    held: dict[int, int] = {}  # true person -> number in the frame before, where it was matched
    last: dict[int, int] = {}  # true person -> number when last matched
    lost: set[int] = set()
    matched = switches = fragments = 0
    for moment in moments:
        pairs = _match(moment, threshold, held)
        now = {int(moment.true[i]): int(moment.predicted[j]) for i, j in pairs}
        matched += len(now)
        switches += sum(last.get(person, number) != number for person, number in now.items())
        fragments += len(lost & set(now))
        lost |= (set(last) & {int(t) for t in moment.true}) - set(now)
        lost -= set(now)
        last |= now
        held = now
    names = {"true": _distinct([m.true for m in moments]), "predicted": _distinct([m.predicted for m in moments])}
    idtp = _identities(moments, names["true"], names["predicted"], threshold)
    return TrackingScores(
        true, predicted, matched, idtp, switches, fragments, len(names["predicted"]), len(names["true"])
    )


def _without_ignored(moment: Moment, threshold: float) -> Moment:
    """Without the true people who do not count, and without the predictions that are matched to them."""
    if moment.counts.all():
        return moment
    rows, columns = _assign(moment.similar, threshold)
    keep = np.ones(len(moment.predicted), bool)
    keep[columns[~moment.counts[rows]]] = False
    true = moment.true[moment.counts]
    return Moment(true, moment.predicted[keep], moment.similar[moment.counts][:, keep], np.ones(len(true), bool))


def _match(moment: Moment, threshold: float, held: dict[int, int]) -> list[tuple[int, int]]:
    """Pairs (true, predicted) of one frame: those of the frame before stay while they are similar enough."""
    column_of = {int(number): j for j, number in enumerate(moment.predicted)}
    pairs = [(i, column_of[held[int(t)]]) for i, t in enumerate(moment.true) if held.get(int(t)) in column_of]
    pairs = [(i, j) for i, j in pairs if moment.similar[i, j] >= threshold]
    free = moment.similar.copy()
    for i, j in pairs:
        free[i], free[:, j] = 0, 0
    rows, columns = _assign(free, threshold)
    return pairs + list(zip(rows.tolist(), columns.tolist(), strict=True))


def _assign(similar: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """As many pairs as possible of at least `threshold`, among those the most similar ones."""
    from scipy.optimize import linear_sum_assignment

    good = (similar >= threshold) & (similar > 0)
    rows, columns = linear_sum_assignment(-np.where(good, 1000 + similar, 0))
    fine = good[rows, columns]
    return rows[fine], columns[fine]


def _identities(moments: Sequence[Moment], true: np.ndarray, predicted: np.ndarray, threshold: float) -> int:
    """IDTP: boxes that agree under the best one-to-one matching of whole trajectories."""
    from scipy.optimize import linear_sum_assignment

    agree = np.zeros((len(true), len(predicted)), int)
    for moment in moments:
        rows, columns = np.nonzero(moment.similar >= threshold)
        pair = np.searchsorted(true, moment.true)[rows], np.searchsorted(predicted, moment.predicted)[columns]
        np.add.at(agree, pair, 1)
    return int(agree[linear_sum_assignment(-agree)].sum())


def _distinct(numbers: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, int), *numbers]))
