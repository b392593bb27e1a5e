"""Records of measurements as files: what a table or a figure needs of one, checked when it is read.

Records hold more than that; the rest is not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from flowturbo.schema import Schema, read_json

__all__ = ["read_analysis", "read_evaluation"]

KIND = "flowturbo analysis 1"
MISSING: Any = None  # of what a record may lack, but not hold as null
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0)]
S = TypeVar("S", bound=Schema)


class _Evaluations(Schema):
    model: Count
    refiner: Count


class _Mean(Schema):
    mean: float


class _Share(Schema):
    share: float


class _Band(Schema):
    mean: float
    half: float


class _Curve(Schema):
    mean: Annotated[list[float], Field(min_length=1)]
    half: list[float]


class _Gap(Schema):
    gap: Annotated[float, Field(gt=0, le=1)]
    reuse: _Band
    extrapolate: _Band


class _Curvature(Schema):
    times: list[float]
    rate: _Curve
    change: _Curve
    gaps: Annotated[list[_Gap], Field(min_length=1)]

    @model_validator(mode="after")
    def _alike(self) -> _Curvature:
        lists = (self.rate.mean, self.rate.half, self.change.mean, self.change.half)
        if {len(values) for values in lists} != {len(self.times)}:
            raise ValueError("must have a rate and a change for each of its times")
        return self


class _Kinds(Schema):
    velocity: _Curvature
    noise: _Curvature


class _Solver(Schema):
    family: str
    plan: str
    evaluations: _Evaluations
    rmse: float
    rmse_95: Pair
    median: float


class _Row(Schema):
    row: Count
    evaluator: Literal["model", "refiner"]
    time: float
    to: float
    state: float
    state_95: Pair
    carried: float
    carried_95: Pair
    own: float
    part: float
    part_95: Pair


class _Rows(Schema):
    plan: str
    evaluations: _Evaluations
    rows: Annotated[list[_Row], Field(min_length=1)]


class _AnalysisModel(Schema):
    prediction: str


class _AnalysisConditions(Schema):
    trajectories: Count
    guidance: float


class _Analysis(Schema):
    kind: Literal["flowturbo analysis 1"]
    conditions: _AnalysisConditions
    models: dict[str, _AnalysisModel]
    curvature: Annotated[dict[str, _Kinds], Field(min_length=1)] = MISSING
    solvers: list[_Solver] = MISSING
    rows: list[_Rows] = MISSING

    @model_validator(mode="after")
    def _known(self) -> _Analysis:
        unknown = {*(self.curvature or {})} - {*self.models}
        if unknown:
            raise ValueError(f"curvature of {min(unknown)!r}, which is not among its models")
        return self


class _Against(Schema):
    name: str


class _Conditions(Schema):
    model: str
    plan: str
    pictures: Count
    guidance: float
    dtype: str
    seed: Count
    against: _Against | None


class _Reference(Schema):
    evaluations: Count


class _Trajectory(Schema):
    rmse: float
    rmse_95: Pair
    median: float


class _Spread(Schema):
    median: float


class _Latency(Schema):
    ms: _Spread


class _Frechet(Schema):
    plan: float
    converged: float
    relative: float = MISSING
    relative_95: Pair = MISSING


class _Scores(Schema):
    plan: _Mean
    converged: _Mean


class _Shares(Schema):
    plan: _Share
    converged: _Share


class _Evaluation(Schema):
    conditions: _Conditions
    evaluations: _Evaluations
    flops: Count
    reference: _Reference
    trajectory: _Trajectory
    latency: _Latency = MISSING
    perceptual: _Spread = MISSING
    frechet: _Frechet = MISSING
    score: _Scores = MISSING
    precision: _Shares = MISSING
    recall: _Shares = MISSING
    agreement: _Shares = MISSING


def read_analysis(path: str | Path) -> dict[str, Any]:
    """The record of `flowturbo analyze` in a JSON file; ``ValueError`` if it holds none."""
    return _read(path, _Analysis, "analyze", "give the record.json it left")


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The record of `flowturbo evaluate` in a JSON file; ``ValueError`` if it holds none."""
    return _read(path, _Evaluation, "evaluate", "give the file that -o named")


def _read(path: str | Path, schema: type[S], command: str, how: str) -> dict[str, Any]:
    try:
        found = read_json(path, schema)
    except ValueError as e:
        reason = str(e).removeprefix(f"{path}: ").removesuffix("; restore the file")
        raise ValueError(
            f"{path}: not a record of `flowturbo {command}`, or not whole ({reason}); {how}"
        ) from e
    return found.model_dump(exclude_unset=True)
