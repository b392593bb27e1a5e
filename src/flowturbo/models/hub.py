"""Folders on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["fetch"]


def fetch(name: str, files: Sequence[str], what: str) -> Path:
    """The folder "hf:owner/repo" (or "hf:owner/repo@revision"), fetched unless it is in the cache.

    Args:
        name: as above.
        files: patterns of the files wanted.
        what: is there, for messages: "model".

    Raises:
        ValueError: if the name is not written so, or cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.removeprefix("hf:").partition("@")
    if repo.count("/") != 1:
        raise ValueError(
            f"{what} {name!r}: on the hub it is written hf:owner/repo or hf:owner/repo@tag"
        )
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ValueError(f"{what} {name!r} could not be fetched from the hub: {reason}") from e
