"""Batches through a network that fails: which indices are computed together, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.engine.batching import BatchSize, in_batches
from stages.engine.job import SILENT
from stages.errors import InputError, MachineError


def sizes_of_calls(n: int, size: BatchSize, fail: Any, **how: bool) -> tuple[list[int], list[Any]]:
    """Sizes of the batches that are computed, and what comes out, for a compute that calls `fail(indices)` first."""
    calls = []

    def compute(indices: np.ndarray) -> list[int]:
        calls.append(len(indices))
        fail(indices)
        return indices.tolist()

    return calls, [values for _, values in in_batches(compute, np.arange(n), size, SILENT, **how)]


def test_the_members_of_a_batch_with_a_bad_one_go_one_by_one_then_batches_are_whole_again() -> None:
    def fail(indices: np.ndarray) -> None:
        if 2 in indices:
            raise InputError("no such image")

    calls, values = sizes_of_calls(12, BatchSize(4), fail)
    assert calls == [4, 1, 1, 1, 1, 4, 4]
    assert values == [[0], [1], {"error": ["no such image"]}, [3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(InputError, match="no such image"):
        sizes_of_calls(12, BatchSize(4), fail, all_or_none=True)


def test_batches_stay_small_once_memory_has_run_out() -> None:
    def fail(indices: np.ndarray) -> None:
        if len(indices) > 3:
            raise MemoryError

    size = BatchSize(8)
    calls, values = sizes_of_calls(10, size, fail)
    assert calls == [8, 4, 2, 2, 2, 2, 2] and size == BatchSize(2, reduced=True)
    assert [index for batch in values for index in batch] == list(range(10))


def test_one_that_does_not_fit_ends_the_work() -> None:
    def fail(indices: np.ndarray) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(MachineError, match="single row"):
        sizes_of_calls(2, BatchSize(2), fail)
