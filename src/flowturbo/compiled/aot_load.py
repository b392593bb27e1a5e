"""Exported samplers loaded, where nothing is compiled (`flowturbo.compiled.aot_archive`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.compiled.aot_archive import (
    condition_example,
    manifest_null,
    manifest_plan,
    named_dtype,
    read_manifest,
)
from flowturbo.compiled.machine import differences
from flowturbo.compiled.sampler import compile
from flowturbo.compiled.shapes import Inputs, Sampler, Shapes
from flowturbo.field import Field
from flowturbo.models.model import Model
from flowturbo.models.sit import check_indices
from flowturbo.refiner.binding import Refiner
from flowturbo.types import Condition, JsonObject, ReadOnlyJson

__all__ = ["LoadedSampler", "load_compiled"]


@checks.known_keywords
def load_compiled(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    fallback: Field | None = None,
    refiner: Refiner | None = None,
) -> Sampler:
    """Load an exported sampler on a machine like the one it was compiled for; nothing is compiled.

    Args:
        path: the ``.pt2``.
        device: where to run it, of the kind that it was compiled for; by default the first.
        fallback: the model. If given, the plan is run on it, uncompiled, on any other machine, with
            a warning that gives the reason.
        refiner: the refiner for the fallback.

    Returns:
        A function of tensors, as `flowturbo.compile` returns.

    Raises:
        ValueError: with the reason, if the file was made for another torch, system or device and
            there is no fallback; if it is damaged; if ``fallback`` has other weights.
        OSError: if it cannot be read.
    """
    path = checks.path("path", path)
    if device is not None:
        device = checks.device("device", device)
    if fallback is not None:
        checks.function("fallback", fallback, "x, t, cond")
    if refiner is not None:
        checks.function("refiner", refiner, "x, t, cond, history")
    manifest = read_manifest(path)
    wanted = manifest["made_for"]
    try:
        place = torch.empty(0, device=device or wanted["device"]).device
        wrong = differences(wanted, place)
    except (RuntimeError, AssertionError) as e:
        wrong = [f"{wanted['device']} ({str(e).splitlines()[0]})"]
    if not wrong:
        return LoadedSampler(path, manifest, place)
    reason = f"{path}: made for {'; '.join(wrong)}"
    if fallback is None:
        raise ValueError(
            f"{reason}; export it here, or pass fallback=model to run the plan uncompiled"
        )
    return _fallback(reason, manifest, fallback, refiner)


def _fallback(
    reason: str, manifest: ReadOnlyJson, model: Field, refiner: Refiner | None
) -> Sampler:
    for name, given in (("model", model), ("refiner", refiner)):
        made_for = (manifest[name] or {}).get("fingerprint")
        here = getattr(given, "fingerprint", None)
        if made_for and here and here != made_for:
            raise ValueError(
                f"{reason}; and the fallback has other weights, {here}, than its {name}, {made_for}"
            )
    checks.warn(f"{reason}; the plan is run uncompiled")
    dtype = manifest["dtype"]
    return compile(
        model,
        manifest_plan(manifest),
        refiner,
        batch=manifest["batch"],
        dtype=dtype and named_dtype(dtype),
        guidance=1.0 if manifest["guidance"] is None else manifest["guidance"],
        shape=getattr(model, "shape", manifest["state"]["shape"]),
        cond=None if isinstance(model, Model) else condition_example(manifest["cond"], "cpu"),
        scope="none",
    )


class LoadedSampler(Sampler):
    """What ``load_compiled`` returns; threads may share it.

    Attributes:
        manifest: the manifest of the file.
    """

    def __init__(self, path: str | Path, manifest: JsonObject, device: torch.device) -> None:
        from flowturbo.schema import open_archive

        refiner = manifest["refiner"] or {}
        known = None
        if refiner.get("guidance_range"):
            known = SimpleNamespace(guidance_range=refiner["guidance_range"], distinct_times=0)
        shapes = Shapes(
            shape=tuple(manifest["state"]["shape"]),
            batch=tuple(manifest["batch"]),
            dtype=named_dtype(manifest["state"]["dtype"]),
            device=device,
            cond=condition_example(manifest["cond"], device),
            guidance=manifest["guidance"],
        )
        super().__init__(manifest_plan(manifest), shapes, known, self._check_indices)
        self.manifest = manifest
        self._null = manifest_null(manifest, path, device)
        with open_archive(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged; copy or export it again")
        self._calls = {size: _library(path, f"rows{size}", device) for size in shapes.batch}

    def _check_indices(self, x: Tensor, *conds: Tensor | None) -> None:
        kind = self.manifest["cond"]
        if kind and (largest := kind.get("largest")):
            for name, cond in zip(("cond", "negative"), conds, strict=True):
                if cond is not None:
                    wanted = f"0 to {largest[0] if len(largest) == 1 else largest}"
                    check_indices(name, cond, largest, wanted)

    def null_condition(self, cond: Condition) -> Condition:
        """The unconditional condition, of one row."""
        return self._null

    def _call(self, size: int, inputs: Inputs) -> Tensor:
        return self._calls[size]([c for c in inputs if isinstance(c, Tensor)])[0]


def _library(path: str | Path, name: str, device: torch.device) -> Callable[..., list[Tensor]]:
    """A list of tensors to a list of them; without the compiler, whose import takes seconds."""
    loader: Any = torch._C._aoti.AOTIModelPackageLoader  # type: ignore[attr-defined]
    index = -1 if device.index is None else device.index
    try:
        try:
            return loader(str(path), name, False, 1, index).run
        except TypeError:  # earlier versions of torch take two
            return loader(str(path), name).run
    except RuntimeError as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"{path}: {name} cannot be loaded ({reason}); export it again") from e
