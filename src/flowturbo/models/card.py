"""What must be on the card of a model or a refiner, as schemas.

A card may contain further entries, about data, training and measurements, which are shown but not
checked.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from flowturbo.models.conditioning import conditioning_of, misfits
from flowturbo.models.sit_config import MOST, SiTConfig
from flowturbo.models.tokenizer import MAX_CHARACTERS, MAX_TOKENS
from flowturbo.schema import Format, Schema
from flowturbo.types import JsonObject

__all__ = ["ModelCard", "RefinerCard", "SmallConfig", "TokenizerEntry"]

MOST_GUIDANCE = 1e4


Count = Annotated[int, Field(ge=1, le=MOST["width"])]
Guidance = Annotated[float, Field(ge=-MOST_GUIDANCE, le=MOST_GUIDANCE)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Alias = Annotated[str, Field(min_length=1, max_length=32)]


class TokenizerEntry(Schema):
    """What ``Tokenizer.to_json`` writes."""

    vocabulary: list[Text]
    length: int = Field(ge=1, le=MAX_TOKENS)
    aliases: dict[Alias, Text] = Field(default_factory=dict, max_length=10_000)


class Condition(Schema):
    """What a model is conditioned on, and what it can generate."""

    kind: Literal["class", "text"] | None = None
    labels: list[str] = Field(default_factory=list)
    prompts: list[str] = Field(default_factory=list)
    styles: list[str] = Field(default_factory=list)
    groups: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    tokenizer: TokenizerEntry | None = None


class Defaults(Schema):
    """What `generate` uses by default."""

    guidance: Guidance = 1.0
    plan: str = ""


class Data(Schema):
    """What a model was trained on."""

    licence: str = ""


class ModelCard(Schema):
    """``card.json``."""

    format: Format
    name: str = ""
    description: str = ""
    architecture: Literal["sit"]
    path: Literal["linear"] = "linear"
    config: JsonObject
    codec: JsonObject = Field(default_factory=lambda: {"kind": "pixels"})  # see `codec`
    condition: Condition = Condition()
    defaults: Defaults = Defaults()
    data: Data = Data()
    training: JsonObject = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> ModelCard:
        about, config = self.condition, SiTConfig.from_dict(self.config)
        needed = {"class": ("labels", about.labels), "text": ("tokenizer", about.tokenizer)}
        if about.kind and not needed[about.kind][1]:
            raise ValueError(f"the condition has no {needed[about.kind][0]}")
        known = conditioning_of(about.model_dump())
        for name, value in (misfits(known, config) if known else {}).items():
            has = getattr(config, name)
            raise ValueError(f"the condition needs {name}={value}, the network has {name}={has}")
        if config.styles not in (0, len(about.styles)):
            raise ValueError(f"{len(about.styles)} styles for a network with {config.styles}")
        return self


class SmallConfig(Schema):
    """The architecture of a `SmallNetwork`."""

    model_config = ConfigDict(extra="forbid")

    shape: list[Annotated[int, Field(ge=1, le=2**24)]]
    width: Count = 40
    depth: int = Field(default=3, ge=1, le=MOST["depth"])
    classes: int = Field(default=0, ge=0, le=MOST["classes"])
    pooled: int = Field(default=0, ge=0, le=MOST["width"])

    @field_validator("shape")
    @classmethod
    def _state(cls, shape: list[int]) -> list[int]:
        if len(shape) not in (1, 3, 4):
            raise ValueError(
                "must be [channels, height, width], [channels, frames, height, width] or [size]"
            )
        return shape


class MadeFor(Schema):
    """The model that a refiner was made for."""

    name: str | None = None
    fingerprint: str | None = None


class RefinerCard(Schema):
    """``refiner.json``."""

    format: Format
    architecture: Literal["paper", "velocity", "conv"]
    config: JsonObject
    guidance: list[Guidance] = Field(default_factory=list, max_length=2)
    model: MadeFor = MadeFor()
    training: JsonObject = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> RefinerCard:
        known = len(self.guidance) == 2 and self.guidance[0] <= self.guidance[1]
        if self.architecture != "paper" and not known:
            raise ValueError(f"guidance={self.guidance}: must be [lowest, highest]")
        return self
