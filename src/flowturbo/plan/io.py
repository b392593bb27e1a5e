"""Plans as readable JSON: one row per line, short lines, exact floats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from flowturbo.plan.builder import Columns
from flowturbo.plan.checks import LIMIT
from flowturbo.schema import Format, Schema, check, parse_json
from flowturbo.types import JsonObject

if TYPE_CHECKING:
    from flowturbo.plan.plan import Plan

__all__ = ["MOST_BYTES", "VERSION", "dumps", "loads", "read_info"]

VERSION = 1
MOST_BYTES = 56 * 2**20  # of a plan of `LIMIT` evaluations with no weight 0


class Error(Schema):
    """The error of a plan."""

    rmse: float
    median: float


class Baseline(Error):
    """The error of the best classical solver."""

    name: str


class Pipeline(Schema):
    """What a plan that was tuned to a diffusers pipeline records about it."""

    network: str
    size: list[int] = Field(min_length=2, max_length=2)
    state: list[int] = Field(min_length=1)
    call: JsonObject


class Info(Schema):
    """The entries of ``info`` that the library reads; others are not checked."""

    guidance: list[float] = Field(default=[0.0, 0.0], min_length=2, max_length=2)
    error: Error | None = None
    baseline: Baseline | None = None
    inverts: str | None = None
    pipeline: Pipeline | None = None

    @model_validator(mode="after")
    def _ascends(self) -> Info:
        if self.guidance[0] > self.guidance[1]:
            raise ValueError(f"guidance={self.guidance}: must be [lowest, highest]")
        return self


class Row(Schema):
    """A row of the lower triangle."""

    weights: list[float]


class PlanFile(Schema):
    """The file of a plan, ``weights`` as rows of the lower triangle; two keys used to have other
    names.
    """

    model_config = ConfigDict(extra="forbid")

    version: Format
    name: str
    times: list[float]
    evaluators: list[Literal["model", "conditional", "refiner"]]
    weights: list[list[object]]
    guidance_weights: list[list[object]] | None = None
    model_times: list[float] | None = Field(
        None, validation_alias=AliasChoices("model_times", "told")
    )
    last_velocity: list[int] | None = Field(
        None, validation_alias=AliasChoices("last_velocity", "previous")
    )
    info: JsonObject


def dumps(plan: Plan) -> str:
    """``plan`` as JSON, ``weights`` as rows of the lower triangle."""
    lists: dict[str, list[float] | list[str] | list[int]] = {"times": plan.times.tolist()}
    if not np.array_equal(plan.model_times, plan.times[:-1]):
        lists["model_times"] = plan.model_times.tolist()
    lists["evaluators"] = list(plan.evaluators)
    if plan.last_velocity != tuple(range(-1, len(plan) - 1)):
        lists["last_velocity"] = list(plan.last_velocity)
    lines = ["{", f'  "version": {VERSION},', f'  "name": {json.dumps(plan.name)},']
    lines += [_list(f'  "{key}": ', values) + "," for key, values in lists.items()]
    for key, matrix in (("weights", plan.weights), ("guidance_weights", plan.guidance_weights)):
        if matrix is not None:
            triangle = (row[: k + 1].tolist() for k, row in enumerate(matrix))
            rows = ",\n".join(_list("    ", row) for row in triangle)
            lines += [f'  "{key}": [\n{rows}\n  ],']
    info = json.dumps(dict(plan.info), indent=2).replace("\n", "\n  ")
    return "\n".join([*lines, f'  "info": {info}', "}"]) + "\n"


def _list(head: str, values: Sequence[object]) -> str:
    text = json.dumps([value or 0 for value in values])
    indent = " " * (len(head) - len(head.lstrip()) + 2)
    lines, at = [], 0
    while len(head) + len(text) - at > 100:
        end = text.rfind(" ", at, at + 101 - len(head))
        lines.append(head + text[at:end])
        head, at = indent, end + 1
    return "\n".join([*lines, head + text[at:]])


def loads(text: str | bytes, source: str) -> Columns:
    """The arguments of a plan, from what ``dumps`` wrote.

    Raises:
        ValueError: one line that begins with ``source``, if the text is anything else.
    """
    plan = check(parse_json(text, source), PlanFile, source)
    columns = {**dict(plan), "info": _renamed(plan.info)}
    columns["weights"] = _matrix("weights", plan.weights, source)
    if plan.guidance_weights is not None:
        name = "guidance_weights"
        columns[name] = _matrix(name, plan.guidance_weights, source)
    del columns["version"]
    return columns


def _matrix(name: str, triangle: list[list[object]], source: str) -> npt.NDArray[np.float64]:
    """The rows of a lower triangle as a matrix."""
    size = len(triangle)
    if size > LIMIT:
        raise ValueError(f"{source}: {size} rows of {name}; a plan has at most {LIMIT}")
    matrix = np.zeros((size, size))
    for k, row in enumerate(triangle):
        if len(row) != k + 1:
            raise ValueError(f"{source}: {name}.{k}: {len(row)} numbers, must be {k + 1}")
        matrix[k, : k + 1] = check({"weights": row}, Row, f"{source}: row {k}").weights
    return matrix


def _renamed(info: JsonObject) -> JsonObject:
    """``info`` with today's names of its entries."""
    return {"baseline" if key == "plain" else key: value for key, value in info.items()}


def read_info(text: str) -> JsonObject:
    """The ``info`` of a plan from JSON.

    Raises:
        ValueError: if an entry that the library reads is not as it writes it.
    """
    made = parse_json(text, "info", "correct it")
    check(made, Info, "info", "correct it")
    return made  # type: ignore[no-any-return]
