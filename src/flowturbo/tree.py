"""Conditions: tensors with a row for each image, alone or nested in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from flowturbo.types import Condition

__all__ = ["map_condition", "slice_condition", "tensors"]


def map_condition(fn: Callable[..., object], *conds: Condition) -> Condition:
    """Apply ``fn`` to the corresponding leaves of conditions of one structure."""
    return tree_map(fn, *conds)


def slice_condition(cond: Condition, rows: slice) -> Condition:
    """The ``rows`` of a condition, or of guidance scales; leaves that are not tensors are kept."""
    return tree_map(lambda c: c[rows] if isinstance(c, Tensor) else c, cond)


def tensors(cond: Condition) -> list[Tensor]:
    """The tensors of a condition."""
    return [c for c in tree_leaves(cond) if isinstance(c, Tensor)]
