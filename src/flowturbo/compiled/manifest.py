"""What the manifest of an exported sampler must hold."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flowturbo.plan import Plan
from flowturbo.schema import Format, Schema
from flowturbo.types import JsonObject

__all__ = ["Manifest"]

MOST_NUMBERS = 2**28  # in a state, 1 GB of float32; and in a condition

Sides = list[Annotated[int, Field(ge=1, le=MOST_NUMBERS)]]
Dtype = Literal["torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"]
Index = Literal["torch.uint8", "torch.int8", "torch.int16", "torch.int32", "torch.int64"]


class Machine(Schema):
    """What a library was compiled for."""

    torch: str
    system: str
    device: str
    kind: str
    instructions: str


class Whose(Schema):
    """The model, or the refiner, that a sampler was made of."""

    name: str | None = None
    fingerprint: str | None = None
    guidance_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None


class State(Schema):
    """What is sampled."""

    shape: Sides
    dtype: Literal["torch.float32", "torch.float64"]


class Cond(Schema):
    """A condition of one row."""

    shape: Sides
    dtype: Dtype | Index | Literal["torch.bool"]
    largest: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None  # index, of each number

    @model_validator(mode="after")
    def _fits(self) -> Cond:
        if self.largest is not None and len(self.largest) != math.prod(self.shape):
            raise ValueError(f"largest={self.largest}: not one number for each of {self.shape}")
        return self


class Manifest(Schema):
    """``extra/flowturbo.json``."""

    format: Format
    made_for: Machine
    model: Whose
    refiner: Whose | None
    plan: JsonObject
    dtype: Dtype | None
    state: State
    batch: list[Annotated[int, Field(ge=1, le=2**20)]] = Field(min_length=1)
    cond: Cond | None
    null: list[Any] | None
    guidance: float | None
    digest: str

    @model_validator(mode="after")
    def _fits(self) -> Manifest:
        Plan.from_json(json.dumps(self.plan))
        for shape in (self.state.shape, self.cond.shape if self.cond else []):
            if math.prod(shape) > MOST_NUMBERS:
                raise ValueError(f"shape={shape}: at most {MOST_NUMBERS} numbers")
        if self.batch != sorted(set(self.batch)):
            raise ValueError(f"batch={self.batch}: must ascend")
        if (self.guidance is None) != (self.null is None) or (self.null and not self.cond):
            raise ValueError("guidance, null and cond must be there together")
        return self
