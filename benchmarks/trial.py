"""Errors of plans on the test noise samples of a model, to its reference solution.

Results are kept in a folder as they are computed, so that a killed run can be resumed; a folder of
other conditions is refused.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flowturbo as ft
from flowturbo.field import device_of, fingerprint_of
from flowturbo.files import atomic_write
from flowturbo.guidance import guided
from flowturbo.path import shifted
from flowturbo.refiner.binding import prepare_refiner
from flowturbo.stats import summary
from flowturbo.tree import slice_condition
from flowturbo.tuning.journal import Journal
from flowturbo.tuning.reference import error

FIRST = 600_000_000  # seeds from here on are used by nothing else
BATCH = 64


def versions() -> dict[str, str]:
    names = ("torch", "numpy", "diffusers")
    found = {n: importlib.metadata.version(n) for n in names}
    return {"flowturbo": ft.__version__, "python": platform.python_version(), **found}


class _Known:
    """A field whose velocity at the start of a batch is known."""

    def __init__(self, field: Any, x: torch.Tensor, v: torch.Tensor) -> None:
        self.field, self.x, self.v = field, x, v

    def __call__(self, x: torch.Tensor, t: Any, cond: Any) -> torch.Tensor:
        return self.v if x is self.x and float(t) == 0 else self.field(x, t, cond)


class Trial:
    """The test noise samples of ``model``, and errors of plans on them."""

    def __init__(
        self,
        model: Any,
        guidance: float,
        noise_samples: int,
        reference: str,
        folder: str | Path,
        cond: torch.Tensor | None = None,
    ) -> None:
        self.conditions = {
            "model": getattr(model, "name", None),
            "fingerprint": fingerprint_of(model),
            "shape": list(model.shape),
            "guidance": guidance,
            "noise_samples": noise_samples,
            "seeds": f"{FIRST} to {FIRST + noise_samples - 1}",
            "reference": reference,
            "dtype": "float32",
            "device": _name(device_of(model)),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        fixed = ("model", "fingerprint", "guidance", "seeds", "reference")
        kept = {k: self.conditions[k] for k in fixed} | {"noises": noise_samples}
        self.journal = Journal(folder, kept)
        self.folder, self.model, self.noise_samples = Path(folder), model, noise_samples
        self.guided = guided(model, guidance)
        self.x0 = ft.noise.draw(
            range(FIRST, FIRST + noise_samples), model.shape, device=device_of(model)
        )
        self.cond = cond
        if cond is None and hasattr(model, "random_condition"):
            self.cond = model.random_condition(noise_samples, torch.Generator().manual_seed(FIRST))
        self.exact, self.first = self._solved(reference)

    def _solved(self, reference: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The ends of the reference solution, and the velocities at the start."""
        plan, ends = ft.Plan.parse(reference), []
        for i in range(0, self.noise_samples, BATCH):
            path, rows = (
                self.folder / f"exact-{i:04d}.pt",
                slice(i, min(i + BATCH, self.noise_samples)),
            )
            x, cond = self.x0[rows], slice_condition(self.cond, rows)
            if not path.is_file():
                with torch.no_grad():
                    first = self.guided(x, 0.0, cond)
                end = ft.sample(plan, _Known(self.guided, x, first), x, cond)
                with atomic_write(path) as temporary:
                    torch.save({"end": end, "first": first}, temporary)
                print(f"{rows.stop} of {self.noise_samples} solved", flush=True)
            ends.append(torch.load(path, map_location=x.device, weights_only=True))
        return torch.cat([e["end"] for e in ends]), torch.cat([e["first"] for e in ends])

    def errors(self, plan: ft.Plan, rows: int | None = None, refiner: Any = None) -> Any:
        """The error of ``plan`` on each of the first ``rows`` noise samples."""
        rows = rows or self.noise_samples
        whose = getattr(refiner, "fingerprint", None) if plan.nfe["refiner"] else None
        found: list[float] = self.journal.entries.get(f"errors {plan.digest} {whose}", [])
        while len(found) < rows:
            part = slice(len(found), min(rows, len(found) + BATCH))
            found = [*found, *self._run(plan, part, refiner)]
            self.journal.write(f"errors {plan.digest} {whose}", found)
        return np.array(found[:rows])

    def _run(self, plan: ft.Plan, rows: slice, refiner: Any) -> list[float]:
        x, cond = self.x0[rows], slice_condition(self.cond, rows)
        if plan.nfe["refiner"]:
            refiner = prepare_refiner(plan, self.guided, refiner)
        field = _Known(self.guided, x, self.first[rows])
        if plan.nfe["conditional"]:  # the loop needs both branches
            field = self.guided
        plan = plan.with_info({})  # it would warn that guidance is 1: the field is guided already
        off = error(ft.sample(plan, field, x, cond, refiner=refiner), self.exact[rows])
        return [float(f"{e:.5g}") for e in off.tolist()]

    def entry(self, plan: ft.Plan, refiner: Any = None, **about: Any) -> dict[str, Any]:
        """The entry of ``plan`` in a record."""
        errors = self.errors(plan, refiner=refiner)
        if plan.nfe["refiner"]:
            about["refiner"] = getattr(refiner, "fingerprint", None)
        found = summarized(errors)
        return {"plan": plan.name, "nfe": plan.nfe, **about, **found, "errors": errors.tolist()}

    def reference_error(self, rows: int = 32) -> dict[str, Any]:
        """The error of the reference solution of the first rows to one twice as fine."""
        name, _, shift = self.conditions["reference"].partition("@")
        solver, _, count = name.partition(":")
        started = 9 if solver == "AB4RK" else 0  # evaluations more than steps
        finer = f"{solver}:{2 * (int(count) - started) + started}" + (shift and f"@{shift}")
        errors = self.errors(ft.Plan.parse(finer), min(rows, self.noise_samples))
        return {"finer_plan": finer, "noise_samples": len(errors), **summarized(errors)}

    def roughness(self, rows: int = 32, last: float = 0.02) -> float:
        """Relative change of the velocity over the ``last`` of the time, on trajectories."""

        def measure() -> float:
            x, cond = self.x0[:rows], slice_condition(self.cond, slice(rows))
            near = ft.Plan.rk4(16, times=shifted(16, 1.0, 0.0, 1 - last))
            x = ft.sample(near, self.guided, x, cond)
            end = ft.sample(ft.Plan.rk4(4, times=shifted(4, 1.0, 1 - last)), self.guided, x, cond)
            with torch.no_grad():
                before, after = self.guided(x, 1 - last, cond), self.guided(end, 1.0, cond)
            return float((after - before).norm() / before.norm())

        return self.journal.number("roughness", measure)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def summarized(errors: Any) -> dict[str, Any]:
    """The `summary` of errors, to five digits."""
    return {k: _short(v) for k, v in summary(errors).items()}


def _short(value: Any) -> Any:
    return [_short(v) for v in value] if isinstance(value, list) else float(f"{value:.5g}")
