"""The inputs of a compiled sampler: states of one shape, in batches of fixed sizes.

A call with another number of rows is padded up to the next size and cut, or runs in chunks of the
largest size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.guidance import check_scale
from flowturbo.plan import Plan
from flowturbo.refiner.binding import check_refiner
from flowturbo.tree import map_condition
from flowturbo.types import Condition, GuidanceScale

__all__ = ["Inputs", "Sampler", "Shapes"]

Inputs = tuple[Tensor, Condition, Condition, Tensor | None]  # x, cond, null, scale


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The inputs of a sampler.

    Attributes:
        shape: of a state.
        batch: numbers of rows, ascending.
        dtype: of the state in the loop, float32 or float64.
        device: where it runs.
        cond: a condition of one row, or None.
        guidance: default scale; None if there is no second branch.
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    cond: Condition
    guidance: float | None

    def example(self, rows: int, null: Condition = None) -> Inputs:
        """Random inputs of so many rows."""
        noise = torch.randn(rows, *self.shape, generator=torch.Generator().manual_seed(rows))
        scale = None if self.guidance is None else self.scale(self.guidance, rows)
        whole = lambda c: c.expand(rows, *c.shape[1:]).contiguous() if _is(c) else c
        x = noise.to(self.device, self.dtype)
        return x, map_condition(whole, self.cond), map_condition(whole, null), scale

    def pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """(first row, how many, of which size) of each chunk."""
        start = 0
        while start < rows:
            size = next((b for b in self.batch if b >= rows - start), self.batch[-1])
            yield start, min(rows - start, size), size
            start += size

    def state(self, x: Tensor) -> Tensor:
        """``x`` as the loop holds it; ``ValueError`` unless it fits."""
        sizes = f"compiled for states {self.shape}, batch {self.batch}, {self.dtype}, {self.device}"
        if checks.tensor("x", x, ("B", ...)).shape[1:] != self.shape:
            raise ValueError(f"x={shown(x)}: {sizes}; compile another sampler for other shapes")
        low = self.dtype == torch.float32 and x.dtype in (torch.float16, torch.bfloat16)
        if x.device != self.device or not (x.dtype == self.dtype or low):
            raise ValueError(
                f"x={shown(x)}: {sizes}; pass x.to({str(self.device)!r}, {self.dtype})"
            )
        return x.to(self.dtype)

    def scale(self, guidance: GuidanceScale, rows: int) -> Tensor:
        """The scale of each row, (rows,)."""
        guidance = check_scale(guidance)
        if isinstance(guidance, Tensor):
            if guidance.shape not in ((), (1,), (rows,)) or guidance.is_meta:
                raise ValueError(
                    f"guidance={shown(guidance)}: must be one number, or one per image ({rows},)"
                )
            return guidance.to(self.device, self.dtype).expand(rows).contiguous()
        if abs(guidance) > torch.finfo(self.dtype).max:
            raise ValueError(f"guidance={guidance}: is too large for {self.dtype}")
        return torch.full((rows,), guidance, dtype=self.dtype, device=self.device)

    def condition(
        self, name: str, value: Condition, rows: int, least: int | None = None
    ) -> Condition:
        """``value``, refused unless it is like the condition compiled for, except in its rows."""
        wrong = _mismatch(value, self.cond, rows, least or rows, self.device)
        if wrong:
            raise ValueError(f"{name} {wrong}; compile another sampler for other conditions")
        whole = lambda c: c.expand(rows, *c.shape[1:]) if _is(c) else c
        return map_condition(whole, value)


class Sampler:
    """A sampler of one plan for fixed shapes, a function of tensors like ``flowturbo.sample``.

    Attributes:
        plan: the table it runs.
        shapes: what it takes.
    """

    def __init__(
        self,
        plan: Plan,
        shapes: Shapes,
        refiner: object = None,
        check_inputs: Callable[..., None] | None = None,
    ) -> None:
        self.plan, self.shapes = plan, shapes
        self._refiner = refiner  # or what has its range of guidance
        self._check_inputs = check_inputs  # of the field, see ``flowturbo.field``

    @checks.known_keywords
    def __call__(
        self,
        x: Tensor,
        cond: Condition = None,
        *,
        guidance: GuidanceScale | None = None,
        negative: Condition = None,
    ) -> Tensor:
        """Carry ``x`` from ``plan.times[0]`` to ``plan.times[-1]``.

        Args:
            x: the state to start from, (n, *shape) for any n; float16 and bfloat16 states are kept
                in float32.
            cond: the condition of n rows.
            guidance: scale, one number or one per image (n,); by default that of compilation. In a
                sampler compiled with guidance, 1 is a scale like any other and saves nothing.
            negative: the condition to guide away from, of one row or n; by default the null.

        Returns:
            The state at ``plan.times[-1]``, of the shape and dtype of ``x``, as a new tensor.

        Raises:
            ValueError: if an argument does not fit what was compiled, or, on the CPU, a class is
                out of range (elsewhere reading the values would wait for the device).
        """
        with torch.inference_mode(False), torch.no_grad():  # as compiled, whatever the caller's
            out = [
                self._call(size, _padded(inputs, size))[:rows]
                for inputs, rows, size in self._split(x, cond, guidance, negative)
            ]
            return (torch.cat(out) if len(out) > 1 else out[0] if out else x.clone()).to(x.dtype)

    def _split(
        self, x: Tensor, cond: Condition, guidance: GuidanceScale | None, negative: Condition
    ) -> Iterator[tuple[Inputs, int, int]]:
        state, n = self.shapes.state(x), len(x)
        cond = self.shapes.condition("cond", cond, n)
        scale, null = None, None
        if self.shapes.guidance is None:
            off = guidance is None or _one(check_scale(guidance))
            if negative is not None or not off:
                raise ValueError(
                    f"guidance={shown(guidance)}: compiled without guidance; compile with "
                    "guidance=2.0, for example, then any scale will do"
                )
        else:
            scale = self.shapes.scale(self.shapes.guidance if guidance is None else guidance, n)
            null = self.null_condition(cond) if negative is None else negative
            null = self.shapes.condition("negative", null, n, least=1)
        if self._check_inputs is not None and state.device.type == "cpu":
            self._check_inputs(state, cond, null)
        if self._refiner is not None:
            usual = 1.0 if self.shapes.guidance is None else self.shapes.guidance
            check_refiner(self.plan, self._refiner, usual if guidance is None else guidance)
        every: Inputs = (state, cond, null, scale)
        for start, rows, size in self.shapes.pieces(n):
            cut = lambda c, a=start, b=start + rows: c[a:b] if _is(c) else c
            yield map_condition(cut, every), rows, size

    def null_condition(self, cond: Condition) -> Condition:
        """The unconditional condition of rows of ``cond``."""
        raise NotImplementedError

    def _call(self, size: int, inputs: Inputs) -> Tensor:
        """The result for inputs of ``size`` rows; it is not overwritten later."""
        raise NotImplementedError


def _is(c: object) -> TypeGuard[Tensor]:
    return isinstance(c, Tensor)


def _one(guidance: GuidanceScale) -> bool:
    if isinstance(guidance, Tensor):
        return not guidance.is_meta and bool((guidance == 1).all())
    return bool(guidance == 1)


def _padded(inputs: Inputs, size: int) -> Inputs:
    """The last row repeated up to ``size``; plain, dense tensors, like those at compilation."""

    def pad(c: object) -> object:
        if not _is(c):
            return c
        if len(c) < size:
            c = torch.cat([c, c[-1:].expand(size - len(c), *c.shape[1:])])
        return (c.clone() if c.is_inference() else c.detach()).contiguous()

    return map_condition(pad, inputs)


def _mismatch(
    value: Condition, like: Condition, rows: int, least: int, device: torch.device
) -> str | None:
    """In which way a condition is not ``like`` another with ``rows``, or ``least``, rows."""
    if _is(like):
        if not _is(value) or value.is_nested:
            return f"is {shown(value)}, not a tensor ({rows}, ...)"
        want = (*like.shape[1:],)
        if value.shape[1:] != want or value.ndim != like.ndim or len(value) not in (least, rows):
            return f"is {tuple(value.shape)}, not {(rows, *want)}"
        if value.dtype != like.dtype or value.device != device:
            return f"is {value.dtype} on {value.device}, not {like.dtype} on {device}"
        return None
    if isinstance(like, dict) and isinstance(value, dict) and value.keys() == like.keys():
        pairs = [(value[k], like[k]) for k in like]
    elif isinstance(like, (tuple, list)) and type(value) is type(like) and len(value) == len(like):
        pairs = [*zip(value, like, strict=True)]
    elif type(value) is not type(like) or isinstance(like, (dict, tuple, list)) or value != like:
        return f"is {shown(value)}, not {'None' if like is None else type(like).__name__}"
    else:
        return None
    found = (_mismatch(v, k, rows, least, device) for v, k in pairs)
    return next((f for f in found if f), None)
