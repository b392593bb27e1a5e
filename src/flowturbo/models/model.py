"""A network with its card: what `flowturbo.load` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.digests import fingerprint
from flowturbo.field import Cast, time_of
from flowturbo.models.codec import PIXELS, Codec, Pixels, load_codec
from flowturbo.models.prompts import check_words, names_of, said_style, split_style, styled
from flowturbo.models.sit import Embedded, Modulated
from flowturbo.models.tokenizer import Tokenizer, short
from flowturbo.plan import Plan

__all__ = ["Model", "plans_of", "text", "texts"]


@checks.known_keywords
class Model(nn.Module):
    """A velocity field ``(x, t, cond) -> v`` with a card.

    A module of your own can have one too, for `flowturbo.evaluate` and `flowturbo.generate`: with a
    ``shape`` (C, H, W), a ``null_condition(cond)`` if it is to be guided, and, if it takes class
    indices, the card ``{"name": ..., "condition": {"kind": "class", "labels": [...]}}``. The index
    after the last label is that of the empty one.

    Attributes:
        network: the module that computes the velocity.
        card: the JSON card: architecture, path, condition, codec, training recipe, data and
            licence, measured numbers, defaults.
        codec: what turns its states into pictures and back.
        folder: where it was loaded from, with its plans (``plans/*.json``) and refiner, if any.
    """

    def __init__(
        self,
        network: nn.Module,
        card: dict[str, Any],
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
        """The plans fitted to it that came with it, by name."""
        return plans_of(self.folder) if self.folder else {}

    @property
    def defaults(self) -> dict[str, Any]:
        """What `generate` uses unless told otherwise: "guidance" and "plan"."""
        return {"guidance": 1.0, "plan": "AB2:8", **self.card.get("defaults", {})}

    def forward(self, x: Tensor, t: float | Tensor, cond: Any = None) -> Tensor:
        """The velocity (B, C, H, W) at states ``x``, times ``t``, conditions ``cond``.

        It is computed in the dtype of the weights and returned in that of ``x``.
        """
        ready = isinstance(cond, (Embedded, Modulated)) or torch.compiler.is_compiling()
        if not ready:  # called by hand
            time_of(t, checks.tensor("x", x, ("B", ...)))
            # elsewhere than on the CPU a look at the classes would wait
            self.check_inputs(x, cond if x.device.type == "cpu" else None)
        return Cast(self.network, self.dtype)(x, t, cond)

    def check_inputs(self, x: Any, cond: Any = None, negative: Any = None) -> None:
        """Refuse what the network cannot take, before it computes; see ``SiT.check_inputs``."""
        check = getattr(self.network, "check_inputs", None)
        if check is not None:
            check(x, cond, negative)

    def embed_condition(self, cond: Any) -> Any:
        """What of ``cond`` need be computed but once a sample, to pass in its place."""
        return Cast(self.network, self.dtype).embed_condition(cond)

    @property
    def names(self) -> list[str]:
        """What the card says that it draws: labels, or names to prompt with; may be empty."""
        return names_of(self.card.get("condition", {}))

    @property
    def styles(self) -> list[str]:
        """The styles that a prompt may ask for; may be empty."""
        return list(self.card.get("condition", {}).get("styles", []))

    def styled(self, prompt: str, style: str) -> str:
        """A prompt in a style: ``"red apple"`` in ``"noto"`` is ``"red apple, noto style"``.

        Raises:
            ValueError: if the model has no such style, or the prompt asks for another itself.
        """
        for name, value in (("prompt", prompt), ("style", style)):
            if not isinstance(value, str):
                raise ValueError(f"{name}={shown(value)}: must be a text")
        if not self.styles:
            raise ValueError(
                f"style {short(style)}: model {self.name!r} has no styles; leave it out"
            )
        if style not in self.styles:
            near = get_close_matches(style, self.styles, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"style {short(style)}: not a style of model {self.name!r}; {hint}"
                f"styles: {', '.join(self.styles)}"
            )
        said = said_style(prompt, self.styles)
        if said not in (None, style):
            raise ValueError(
                f"style {style!r}: prompt {short(prompt)} asks for {said} itself; leave one out"
            )
        return prompt if said else styled(prompt, style)

    def condition(self, prompts: Sequence[str | int]) -> Tensor:
        """Labels or prompts to the condition of as many images, on the model's device.

        A label is its name or, where no label has that name, its index. An empty string is the
        unconditional condition. Unknown words beside known ones are told in a warning.

        Raises:
            ValueError: for a label, or a prompt of words, that the model does not know, naming the
                nearest; for a prompt that is too long.
        """
        said = texts(prompts)
        kind = self.card.get("condition", {}).get("kind")
        if kind == "class":
            ids = torch.tensor([self._label(p) for p in said], dtype=torch.long)
        elif kind == "text":
            ids = self._encode(said)
        else:
            raise ValueError(f"model {self.name!r} takes no condition; leave the prompts out")
        return ids.to(self.device)

    def random_condition(self, n: int, generator: torch.Generator) -> Tensor | None:
        """Conditions of ``n`` images, labels or prompts of the card drawn evenly; None if none."""
        n = checks.whole("n", n, 0)
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"generator={shown(generator)}: must be a torch.Generator")
        names, styles = self.names, self.styles or [""]
        if not names:
            return None
        rows = torch.randint(len(names), (n,), generator=generator).tolist()
        which = torch.randint(len(styles), (n,), generator=generator).tolist()
        return self.condition(
            [styled(names[i], styles[s]) for i, s in zip(rows, which, strict=True)]
        )

    def null_condition(self, cond: Tensor) -> Tensor:
        """The unconditional condition, shaped like ``cond``."""
        checks.tensor("cond", cond)
        return self.network.null_condition(cond)  # type: ignore[operator, no-any-return]

    @property
    def codec(self) -> Codec:
        """What turns its states into pictures; an autoencoder is loaded when first asked for.

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
        """Of states, beyond which `decode` clips them; None of latents."""
        pixels = self.card.get("codec", PIXELS)["kind"] == "pixels"
        return Pixels.limits if pixels else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures; raises as ``codec``."""
        return self.codec.image_shape(self.shape)

    def decode(self, x: Tensor) -> Tensor:
        """States (B, C, H, W) to pictures (B, 1 or 3, H, W) in [0, 1]; raises as ``codec``."""
        checks.tensor("x", x, ("B", *self.shape), dtypes=checks.DTYPES)
        return self.codec.decode(x)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 1 or 3, H, W) in [0, 1] to states, float32; raises as ``codec``.

        Of latents, the mean of the autoencoder's distribution: the same each time.
        """
        return self.codec.encode(pictures)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer on the card of a text model."""
        return Tokenizer.from_json(self.card["condition"]["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights as they were read, whatever device and precision."""
        return fingerprint(self.network)

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, after the style where the network takes it apart from the words."""
        apart = bool(getattr(getattr(self.network, "config", None), "styles", 0))
        parts = [split_style(p, self.styles) if apart else (p, 0) for p in prompts]
        said = [text for text, _ in parts]
        check_words(said, self.tokenizer, self.names, self.styles)
        ids = self.tokenizer.encode(said)
        styles = torch.tensor([style for _, style in parts], dtype=torch.long)
        return torch.cat([styles[:, None], ids], dim=1) if apart else ids

    def _label(self, label: str) -> int:
        plain = lambda name: normalize("NFC", str(name).strip())  # one spelling of each letter
        names, text = [plain(n) for n in self.names], plain(label)
        if text == "":
            return len(names)
        if text in names:
            return names.index(text)
        if text.isdecimal() and len(text) < 10 and int(text) < len(names):
            return int(text)
        if not names:
            raise ValueError(
                f"label {short(text)}: the card of model {self.name!r} lists none; list them under "
                '"labels" of its "condition"'
            )
        near = get_close_matches(text, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {_some(names)}"
        raise ValueError(
            f"label {short(text)}: model {self.name!r} has {len(names)} labels; {hint}"
        )


def texts(prompts: Any) -> list[str]:
    """Prompts, or labels and their indices, as texts."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts={shown(prompts)}: pass a list of them, [{shown(prompts)}]")
    try:
        listed = list(prompts)
    except (TypeError, RuntimeError):  # of nested tensors
        listed = None
    if listed is None or isinstance(prompts, (bytes, Mapping, Set)):
        raise ValueError(f"prompts={shown(prompts)}: must be a list of labels or prompts")
    return [text(f"prompts[{i}]", prompt) for i, prompt in enumerate(listed)]


def text(name: str, prompt: Any) -> str:
    """A prompt, or a label or its index, as a text."""
    if isinstance(prompt, str):
        return prompt
    try:
        return str(checks.whole(name, prompt))
    except ValueError:
        raise ValueError(
            f"{name}={shown(prompt)}: must be a text, or a whole number of a label"
        ) from None


def _some(names: Sequence[str], most: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plans_of(folder: Path) -> dict[str, Plan]:
    """The plans in a model's folder, by name."""
    return {p.stem: Plan.load(p) for p in sorted((folder / "plans").glob("*.json"))}
