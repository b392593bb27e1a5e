"""Conditions: tensors with a row for each image, alone or nested in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["map_condition", "slice_condition", "tensors"]


def map_condition(fn: Callable[..., Any], *conds: Any) -> Any:
    """Apply ``fn`` to the corresponding leaves of conditions of one structure."""
    return tree_map(fn, *conds)


def slice_condition(cond: Any, rows: slice) -> Any:
    """The ``rows`` of a condition, or of guidance scales; leaves that are no tensors stay."""
    return tree_map(lambda c: c[rows] if isinstance(c, Tensor) else c, cond)


def tensors(cond: Any) -> list[Tensor]:
    """The tensors of a condition."""
    return [c for c in tree_leaves(cond) if isinstance(c, Tensor)]
