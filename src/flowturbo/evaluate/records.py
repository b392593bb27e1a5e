"""Records of measurements as files, which are checked for what tables and figures need when read.

Keys of records that earlier versions wrote are renamed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from flowturbo.schema import Schema, read_json
from flowturbo.types import JsonObject

__all__ = ["read_analysis", "read_evaluation"]

KIND = "flowturbo analysis 1"
MISSING: Any = None  # default of parts that may be absent, but not null
OLD_KEYS = {
    "against": "real_images", "carried": "propagated", "carried_95": "propagated_95",
    "converged": "reference", "own": "local", "own_95": "local_95", "pictures": "images",
    "score": "inception_score",
}  # fmt: skip
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0)]
S = TypeVar("S", bound=Schema)


class _Part(Schema):
    """Part of a record, perhaps with old keys."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, part: object) -> object:
        if not isinstance(part, dict):
            return part
        return {OLD_KEYS.get(k, k): v for k, v in part.items()}


class _Evaluations(_Part):
    model: Count
    conditional: Count = 0
    refiner: Count


class _Mean(_Part):
    mean: float


class _Share(_Part):
    share: float


class _Band(_Part):
    mean: float
    half: float


class _Curve(_Part):
    mean: Annotated[list[float], Field(min_length=1)]
    half: list[float]


class _Gap(_Part):
    gap: Annotated[float, Field(gt=0, le=1)]
    reuse: _Band
    extrapolate: _Band


class _Curvature(_Part):
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


class _Kinds(_Part):
    velocity: _Curvature
    noise: _Curvature


class _Solver(_Part):
    family: str
    plan: str
    evaluations: _Evaluations
    rmse: float
    rmse_95: Pair
    median: float


class _Row(_Part):
    row: Count
    evaluator: Literal["model", "conditional", "refiner"]
    time: float
    to: float
    state: float
    state_95: Pair
    propagated: float
    propagated_95: Pair
    local: float
    part: float
    part_95: Pair


class _Rows(_Part):
    plan: str
    evaluations: _Evaluations
    rows: Annotated[list[_Row], Field(min_length=1)]


class _AnalysisModel(_Part):
    prediction: str


class _AnalysisConditions(_Part):
    trajectories: Count
    guidance: float


class _Analysis(_Part):
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


class _RealImages(_Part):
    name: str


class _Conditions(_Part):
    model: str
    plan: str
    images: Count
    guidance: float
    dtype: str
    seed: Count
    real_images: _RealImages | None


class _Reference(_Part):
    evaluations: Count
    passes: Count = MISSING


class _Trajectory(_Part):
    rmse: float
    rmse_95: Pair
    median: float


class _Spread(_Part):
    median: float


class _Latency(_Part):
    ms: _Spread


class _Frechet(_Part):
    plan: float
    reference: float
    relative: float = MISSING
    relative_95: Pair = MISSING


class _Scores(_Part):
    plan: _Mean
    reference: _Mean


class _Shares(_Part):
    plan: _Share
    reference: _Share


class _Evaluation(_Part):
    conditions: _Conditions
    evaluations: _Evaluations
    passes: Count = MISSING
    flops: Count
    reference: _Reference
    trajectory: _Trajectory
    latency: _Latency = MISSING
    perceptual: _Spread = MISSING
    frechet: _Frechet = MISSING
    inception_score: _Scores = MISSING
    precision: _Shares = MISSING
    recall: _Shares = MISSING
    agreement: _Shares = MISSING


def read_analysis(path: str | Path) -> JsonObject:
    """The record of `flowturbo analyze` in a JSON file; ``ValueError`` if it holds none."""
    return _read(path, _Analysis, "analyze", "give the record.json it left")


def read_evaluation(path: str | Path) -> JsonObject:
    """The record of `flowturbo evaluate` in a JSON file; ``ValueError`` if it holds none."""
    return _read(path, _Evaluation, "evaluate", "give the file that -o named")


def _read(path: str | Path, schema: type[S], command: str, how: str) -> JsonObject:
    try:
        found = read_json(path, schema)
    except ValueError as e:
        reason = str(e).removeprefix(f"{path}: ").removesuffix("; restore the file")
        raise ValueError(
            f"{path}: not a record of `flowturbo {command}`, or not whole ({reason}); {how}"
        ) from e
    return found.model_dump(exclude_unset=True)
