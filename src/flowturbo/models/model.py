"""A network with its card: what `flowturbo.load` returns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.digests import fingerprint
from flowturbo.field import Cast, time_of
from flowturbo.models.codec import PIXELS, Codec, Pixels
from flowturbo.models.codec_entry import load_codec
from flowturbo.models.conditioning import Conditioning, conditioning_of, random_prompts
from flowturbo.models.prompts import as_prompts, in_style
from flowturbo.models.sit import Embedded, Modulated
from flowturbo.plan import Plan
from flowturbo.types import Condition, JsonObject, Time

__all__ = ["Model", "plans_of"]


@checks.known_keywords
class Model(nn.Module):
    """A velocity field ``(x, t, cond) -> v`` with a card.

    Wrap a module of your own in it for `flowturbo.evaluate` and `flowturbo.generate`. The module
    needs a ``shape`` (C, H, W), a ``null_condition(cond)`` for guidance and, if it takes class
    indices, the card ``{"name": ..., "condition": {"kind": "class", "labels": [...]}}``. The null
    condition is the index after the last label.

    Attributes:
        network: the module that computes the velocity.
        card: the JSON card: architecture, path, condition, codec, training recipe, data and
            licence, measured numbers, defaults.
        codec: converts its states to images and back.
        folder: where it was loaded from, with its plans (``plans/*.json``) and refiner, if any.
    """

    def __init__(
        self,
        network: nn.Module,
        card: JsonObject,
        folder: Path | None = None,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"network={shown(network)}: must be a torch.nn.Module (x, t, cond) -> v; wrap a "
                "function in one"
            )
        self.network = network
        self.card = card
        self.folder = folder
        self._codec = codec
        self._conditioning: Conditioning | None = None

    @property
    def name(self) -> str:
        """The name on the card."""
        return str(self.card.get("name", "unnamed"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the state."""
        return self.network.shape  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plans that came with it, by name."""
        return plans_of(self.folder) if self.folder else {}

    @property
    def defaults(self) -> JsonObject:
        """The "guidance" and "plan" that `generate` uses by default."""
        return {"guidance": 1.0, "plan": "AB2:8", **self.card.get("defaults", {})}

    def forward(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The velocity (B, C, H, W) at states ``x``, times ``t``, conditions ``cond``.

        It is computed in the dtype of the weights and returned in that of ``x``.
        """
        ready = isinstance(cond, (Embedded, Modulated)) or torch.compiler.is_compiling()
        if not ready:  # called by hand
            time_of(t, checks.tensor("x", x, ("B", ...)))
            # on other devices, looking at the indices would wait for the device
            self.check_inputs(x, cond if x.device.type == "cpu" else None)
        return Cast(self.network, self.dtype)(x, t, cond)

    def check_inputs(self, x: object, cond: Condition = None, negative: Condition = None) -> None:
        """Refuse what the network cannot take, before it computes; see ``SiT.check_inputs``."""
        check = getattr(self.network, "check_inputs", None)
        if check is not None:
            check(x, cond, negative)

    def embed_condition(self, cond: Condition) -> Condition:
        """``cond`` as the network embeds it, to pass in its place: computed once per sample."""
        return Cast(self.network, self.dtype).embed_condition(cond)

    @property
    def conditioning(self) -> Conditioning | None:
        """What it is conditioned on, as its card says; None if it takes no condition."""
        entry = self.card.get("condition")
        if self._conditioning is None or self._conditioning.entry is not entry:
            apart = bool(getattr(getattr(self.network, "config", None), "styles", 0))
            self._conditioning = conditioning_of(entry, self.name, style_column=apart)
        return self._conditioning

    @property
    def names(self) -> list[str]:
        """What it can generate: labels, or names to use in prompts; may be empty."""
        return self.conditioning.names if self.conditioning else []

    @property
    def styles(self) -> list[str]:
        """The styles that a prompt may ask for; may be empty."""
        return self.conditioning.styles if self.conditioning else []

    def styled(self, prompt: str, style: str) -> str:
        """A prompt in a style: ``"red apple"`` in ``"noto"`` is ``"red apple, noto style"``.

        Raises:
            ValueError: if the model has no such style, or the prompt asks for another itself.
        """
        return in_style(prompt, style, self.styles, self.name)

    def condition(self, prompts: Sequence[str | int]) -> Tensor:
        """Labels or prompts to the condition of as many images, on the model's device.

        A label is given by its name or, if no label has that name, its index. An empty string is
        the unconditional condition. A warning names unknown words in prompts with known ones.

        Raises:
            ValueError: for a label that the model does not know, or a prompt without any known
                word, naming the nearest; for a prompt that is too long.
        """
        texts = as_prompts(prompts)
        if self.conditioning is None:
            raise ValueError(f"model {self.name!r} takes no condition; leave the prompts out")
        return self.conditioning.encode(texts).to(self.device)

    def random_condition(self, n: int, generator: torch.Generator) -> Tensor | None:
        """Conditions of ``n`` images, each a random name in a random style; None without names."""
        n = checks.whole("n", n, 0)
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"generator={shown(generator)}: must be a torch.Generator")
        if self.conditioning is None or not self.names:
            return None
        return self.condition(random_prompts(self.conditioning, n, generator))

    def null_condition(self, cond: Tensor) -> Tensor:
        """The unconditional condition, shaped like ``cond``."""
        checks.tensor("cond", cond)
        return self.network.null_condition(cond)  # type: ignore[operator, no-any-return]

    @property
    def codec(self) -> Codec:
        """Converts its states to images; an autoencoder is loaded when first needed.

        Raises:
            ValueError: if the autoencoder is missing, damaged, or does not fit the states.
            ImportError: if it needs diffusers, and that is missing.
        """
        if self._codec is None:
            self._codec = load_codec(
                self.card.get("codec", PIXELS),
                self.shape,
                model=self.name,
                folder=self.folder,
                device=self.device,
                dtype=self.dtype,
            )
        return self._codec

    @property
    def limits(self) -> tuple[float, float] | None:
        """The range of states, to which `decode` clips them; None for latents."""
        pixels = self.card.get("codec", PIXELS)["kind"] == "pixels"
        return Pixels.limits if pixels else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images; raises as ``codec``."""
        return self.codec.image_shape(self.shape)

    def decode(self, x: Tensor) -> Tensor:
        """States (B, C, H, W) to images (B, 1 or 3, H, W) in [0, 1]; raises as ``codec``."""
        checks.tensor("x", x, ("B", *self.shape), dtypes=checks.DTYPES)
        return self.codec.decode(x)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [0, 1] to states, float32; raises as ``codec``.

        For latents, the mean of the autoencoder's distribution, which is deterministic.
        """
        return self.codec.encode(images)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights as they were read, for any device and precision."""
        return fingerprint(self.network)


def plans_of(folder: Path) -> dict[str, Plan]:
    """The plans in a model's folder, by name."""
    return {p.stem: Plan.load(p) for p in sorted((folder / "plans").glob("*.json"))}
