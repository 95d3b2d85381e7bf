"""IDF1, switches and fragments, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stages.evaluation.tracking import Moment, TrackingScores, score


def film(*moments: dict[int, int], hidden: tuple[int, ...] = ()) -> list[Moment]:
    """Frames as {true person: number it is found under, 0 for not found}; person 0 is found where nobody is."""
    made = []
    for moment in moments:
        true = [t for t in moment if t]
        found = [number for number in moment.values() if number]
        similar = [[float(moment[t] == number and moment.get(0) != number) for number in found] for t in true]
        shape = np.array(similar).reshape(len(true), len(found))
        made.append(Moment(np.array(true, int), np.array(found, int), shape, np.array([t not in hidden for t in true])))
    return made


def test_perfect_tracks_whatever_the_numbers() -> None:
    found = score(film({1: 7, 2: 3}, {1: 7, 2: 3}, {1: 7, 2: 3}))
    assert found == TrackingScores(6, 6, 6, 6, 0, 0, 2, 2)
    assert found.idf1 == found.recall == found.precision == 1


def test_a_switch_half_way() -> None:
    """One person, four frames under one number, six under another: six of ten boxes are right, two numbers were given.
    IDTP 6, IDFP 4, IDFN 4: IDF1 = 12 / 20."""
    found = score(film(*[{1: 5}] * 4, *[{1: 6}] * 6))
    assert (found.idtp, found.switches, found.fragments, found.tracks) == (6, 1, 0, 2)
    assert found.idf1 == pytest.approx(0.6)


def test_two_who_exchange_their_numbers() -> None:
    """The best matching of whole tracks keeps the longer parts: 2 x 3 of 10 boxes; each person has one switch."""
    found = score(film(*[{1: 1, 2: 2}] * 3, *[{1: 2, 2: 1}] * 2))
    assert (found.idtp, found.switches) == (6, 2) and found.idf1 == pytest.approx(0.6)


def test_a_gap_is_a_fragment_and_no_switch() -> None:
    """Found in 3 and 3 of 8 frames under one number: IDF1 = 12 / (8 + 6)."""
    found = score(film(*[{1: 4}] * 3, {1: 0}, {1: 0}, *[{1: 4}] * 3))
    assert (found.switches, found.fragments, found.matched) == (0, 1, 6)
    assert found.idf1 == pytest.approx(12 / 14) and found.recall == pytest.approx(6 / 8)


def test_who_is_lost_and_comes_back_as_another_is_both() -> None:
    found = score(film({1: 4}, {1: 0}, {1: 5}, {1: 5}))
    assert (found.switches, found.fragments, found.idtp) == (1, 1, 2)


def test_somebody_found_where_nobody_is() -> None:
    """Two false boxes of one track: IDF1 = 6 / (3 + 5), precision 3 / 5."""
    found = score(film({1: 1}, {1: 1, 0: 9}, {1: 1, 0: 9}))
    assert found.idf1 == pytest.approx(6 / 8) and found.precision == pytest.approx(3 / 5) and found.tracks == 2


def test_one_number_for_two_people_who_never_meet() -> None:
    """No switch, as CLEAR MOT counts, but half of the boxes are somebody else's."""
    found = score(film(*[{1: 1}] * 5, *[{2: 1}] * 5))
    assert found.switches == 0 and found.idf1 == pytest.approx(0.5)


def test_a_pair_of_the_frame_before_stays_together() -> None:
    """Number 1 is still similar enough to its person, although number 2 has become more so."""
    last = Moment(np.array([1]), np.array([1, 2]), np.array([[0.6, 0.9]]), np.array([True]))
    assert score([*film({1: 1}), last]).switches == 0
    assert score([last]).idtp == 1


def test_who_does_not_count_is_neither_missed_nor_false() -> None:
    found = score(film({1: 1, 2: 2}, {1: 1, 2: 0}, hidden=(2,)))
    assert found == TrackingScores(2, 2, 2, 2, 0, 0, 1, 1)


def test_boxes_and_sums() -> None:
    a, b = np.array([[0.0, 0, 10, 10], [50, 0, 60, 10]]), np.array([[51.0, 0, 61, 10], [0, 0, 4, 10]])
    moment = Moment.of_boxes(np.array([1, 2]), a, np.array([8, 9]), b, None)
    found = score([moment])
    assert (found.matched, found.idtp, found.true, found.predicted) == (1, 1, 2, 2)
    assert (found + found).true == 4 and score([]).idf1 == 0 and (found + found).idf1 == found.idf1
