"""Published few-step samplers as plans, built from the numbers that their authors give.

- *NeuralSolver* (Wang et al. 2025, "Differentiable Solver Search for Fast Diffusion Sampling",
  arXiv 2505.21114): steps ``dt_k`` and coefficients ``c_kj``, searched on a SiT and a FlowDCN. Its
  update is ``x += dt_k * (sum_{j<k} c_kj v_j + (1 - sum_{j<k} c_kj) v_k)``, a row of a plan.
- *OptimalSteps* (Pei et al. 2025, "Optimal Stepsize for Diffusion Sampling", arXiv 2503.21774):
  Euler on some of the noise levels of a fine grid, found by dynamic programming.

This library contains none of their tables; they are read from your own copy. Save the plan, and
every command accepts it as ``--plan plan.json``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowturbo import checks
from flowturbo.plan.checks import numbers
from flowturbo.plan.plan import Plan

__all__ = ["neural_solver", "optimal_steps"]

TABLES = "FM_DATA"  # the name of NeuralSolver's tables for flows
ROUNDED = 1e-4  # a step: published ones have four digits


def neural_solver(
    source: str | Path | Mapping[str, Sequence[object]], evaluations: int | None = None
) -> Plan:
    """A solver of NeuralSolver as a plan.

    Args:
        source: your copy of ``flow_matching/ns_sampling.py``, whose tables are read without running
            it; or one table, with "timedeltas" (K,) and "coeffs" (K, K).
        evaluations: which table of a file, by its number of evaluations.

    Raises:
        ValueError: if there is no such table, or it is not as described.
        OSError: if the file cannot be read.
    """
    if isinstance(source, Mapping):
        table: Mapping[str, object] = source
        if evaluations is not None:
            raise ValueError(f"evaluations={evaluations}: source is one table; leave it out")
    else:
        path = checks.path("source", source)
        tables = _tables(path)
        if evaluations not in tables:
            raise ValueError(
                f"evaluations={evaluations}: {path.name} has tables of "
                f"{', '.join(map(str, sorted(tables)))} evaluations; pass one of them"
            )
        table = tables[evaluations]
    missing = {"timedeltas", "coeffs"} - {*table}
    if missing:
        names = " and no ".join(sorted(missing))
        raise ValueError(f"source={checks.shown(source)}: has no {names}")
    steps = np.atleast_1d(numbers("timedeltas", table["timedeltas"]))
    given = np.atleast_2d(numbers("coeffs", table["coeffs"]))
    n = len(steps)
    if given.shape != (n, n) or (steps <= 0).any() or abs(steps.sum() - 1) > ROUNDED * n:
        raise ValueError(
            f"source: timedeltas {steps.shape} with the sum {steps.sum():.4g}, coeffs "
            f"{given.shape}; must be (K,) above 0 with the sum 1, and (K, K)"
        )
    if np.triu(given).any():
        raise ValueError(
            f"coeffs={checks.shown(table['coeffs'])}: must be 0 on the diagonal and above"
        )
    earlier = np.tril(given, -1)
    weights = earlier + np.diag(1 - earlier.sum(1))
    times = np.concatenate([[0.0], np.cumsum(steps)])
    times[-1] = 1.0
    return Plan(
        times=times,
        evaluators=("model",) * n,
        weights=steps[:, None] * weights,
        name=f"NeuralSolver, {n} evaluations",
        info={"paper": "arXiv 2505.21114"},
    )


def optimal_steps(steps: Sequence[int], noise_levels: Sequence[float]) -> Plan:
    """The Euler plan of a list of steps, as ``search_OSS`` returns it.

    Args:
        steps: indices of the noise levels that are evaluated, in any order, without 0.
        noise_levels: those of the fine grid that was searched, ascending from 0 (data) to at most
            1.

    Raises:
        ValueError: if the levels are not ascending from 0, or a step is not one of them.
    """
    levels = np.atleast_1d(numbers("noise_levels", noise_levels))
    if (
        levels.ndim > 1
        or len(levels) < 2
        or levels[0] != 0
        or (np.diff(levels) <= 0).any()
        or levels[-1] > 1
    ):
        raise ValueError(
            f"noise_levels={checks.shown(noise_levels)}: must ascend from 0 (data) to at most 1, "
            "in one row"
        )
    if not checks.is_list(steps):
        raise ValueError(f"steps={checks.shown(steps)}: must be a list of indices")
    chosen = sorted({checks.whole("steps", k, 1, len(levels) - 1) for k in steps}, reverse=True)
    if not chosen or len(chosen) < len(steps):
        raise ValueError(f"steps={checks.shown(steps)}: must be one or more indices, each once")
    times = 1 - levels[[*chosen, 0]]
    plan = Plan.euler(len(chosen), times=times)
    info = {"paper": "arXiv 2503.21774", "steps": chosen}
    return replace(plan, name=f"OptimalSteps, {len(chosen)} evaluations", info=info)


def _tables(path: Path) -> dict[int, dict[str, object]]:
    """The tables in a Python file, by their number of evaluations; the file is not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {}
        for statement in tree.body:
            if not (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)):
                continue
            if [getattr(t, "id", None) for t in statement.targets] != [TABLES]:
                continue
            for entry in statement.value.keywords:
                assert isinstance(entry.value, ast.Call)
                table = {str(k.arg): ast.literal_eval(k.value) for k in entry.value.keywords}
                found[len(table["timedeltas"])] = table
    except (SyntaxError, UnicodeDecodeError, ValueError, AssertionError, KeyError, TypeError) as e:
        raise ValueError(f"source={str(path)!r}: its {TABLES} cannot be read ({e})") from e
    if not found:
        raise ValueError(
            f"source={str(path)!r}: has no {TABLES}; pass the copy of flow_matching/ns_sampling.py"
        )
    return found
