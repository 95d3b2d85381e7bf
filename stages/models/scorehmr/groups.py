"""Sums, means, maxima and medians over groups of rows: `group` (n,) numbers the G groups from 0."""

from __future__ import annotations

import torch
from torch import Tensor


def group_max(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """The largest value (G,) of each group, of values (n,) that are not negative."""
    return value.new_zeros(groups).scatter_reduce(0, group, value, "amax")


def group_sum(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """value (n, ...) -> (G, ...)."""
    return value.new_zeros(groups, *value.shape[1:]).index_add_(0, group, value)


def group_mean(value: Tensor, group: Tensor, groups: int) -> Tensor:
    """value (n, ...) -> (G, ...); 0 for a group without rows."""
    count = group_sum(torch.ones_like(group), group, groups).clamp_min(1)
    return group_sum(value, group, groups) / count.view(-1, *[1] * (value.dim() - 1))


def group_median(value: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """Median (G,) of value (n, K) over all rows of a group, where valid (n, K); 0 without any. The lower of two."""
    groups = int(group.max()) + 1
    key = group[:, None].expand_as(value)[valid]
    value = value[valid]
    order = torch.argsort(value)
    order = order[torch.argsort(key[order], stable=True)]
    count = group_sum(torch.ones_like(key), key, groups)
    middle = count.cumsum(0) - count + (count - 1).clamp_min(0) // 2
    out = value.new_zeros(groups)
    some = count > 0
    out[some] = value[order[middle[some]]]
    return out
