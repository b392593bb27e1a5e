"""Models by name: bundled, in a local folder, or on the Hugging Face hub."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch

from flowturbo import checks
from flowturbo.models.checkpoint import CARD, WEIGHTS, load_folder
from flowturbo.models.hub import fetch
from flowturbo.models.model import Model
from flowturbo.models.tokenizer import short

__all__ = ["bundled", "find", "load"]

_HOME = Path(__file__).parent / "bundled"


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in _HOME.glob(f"*/{CARD}"))


@checks.known_keywords
def load(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
) -> Model:
    """Load a model for inference.

    Args:
        name: a bundled name ("digits"), a folder with ``card.json`` and ``model.safetensors``, or
            "hf:owner/repo" (optionally "hf:owner/repo@revision") for such a folder on the hub.
        device: where to put it.
        dtype: of the weights.
        vae: for a latent model, the autoencoder to decode with: a folder or "hf:owner/repo" with an
            ``AutoencoderKL`` or ``AutoencoderTiny`` of diffusers; by default the card's.

    Raises:
        ValueError: if there is no such model, its files are damaged, or ``vae`` does not fit; names
            the file.
        ImportError: if ``vae`` is given and diffusers is missing.
    """
    device, dtype = checks.device("device", device), checks.dtype("dtype", dtype)
    return load_folder(find(name), device=device, dtype=dtype, vae=vae)


def find(name: str | Path, what: str = "model") -> Path:
    """The folder of a model, fetched from the hub if ``name`` begins with hf:."""
    text = str(checks.path("name", name))
    if text.startswith("hf:"):
        return fetch(text, ["*.json", "*.safetensors", "plans/*"], "model")
    if text in bundled():
        return _HOME / text
    try:
        path = Path(text).expanduser()
    except RuntimeError as e:  # "~" of a user that there is not
        raise ValueError(f"{what} {text!r}: {e}") from e
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as e:  # a name that is too long, a folder that may not be entered
        raise ValueError(f"{what} {short(text)}: {e.strerror}") from e
    if is_folder:
        return path
    if is_file:
        raise ValueError(f"{what} {text!r} is a file; give the folder with {CARD} and {WEIGHTS}")
    near = get_close_matches(text, bundled(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"{what} {text!r}: no such model or folder; {hint}"
        f"bundled models: {', '.join(bundled()) or 'none'}; others: a folder, or hf:owner/repo"
    )
