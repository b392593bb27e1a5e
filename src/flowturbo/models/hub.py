"""Folders on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowturbo.messages import reason

__all__ = ["fetch", "push", "repository"]


def repository(name: str, what: str) -> tuple[str, str | None]:
    """What "hf:owner/repo" or "hf:owner/repo@revision" names: "owner/repo", and the revision.

    Args:
        name: as above.
        what: the kind of thing it names, for the message: "model".

    Raises:
        ValueError: if the name is not written so.
    """
    repo, _, revision = name.removeprefix("hf:").partition("@")
    if repo.count("/") != 1:
        raise ValueError(
            f"{what} {name!r}: on the hub it is written hf:owner/repo or hf:owner/repo@tag"
        )
    return repo, revision or None


def fetch(name: str, files: Sequence[str], what: str) -> Path:
    """The folder of a name on the hub, fetched unless it is in the cache.

    Args:
        name: as `repository` takes it.
        files: patterns of the files to fetch.
        what: the kind of thing it names, for messages: "model".

    Raises:
        ValueError: if the name is not written so, or cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, revision = repository(name, what)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise ValueError(f"{what} {name!r} could not be fetched from the hub: {reason(e)}") from e


def push(folder: Path, name: str, files: Sequence[str], message: str, *, private: bool) -> str:
    """Upload some files of ``folder`` to "hf:owner/repo", which is created if it does not exist.

    Args:
        folder: with the files.
        name: as above; "hf:" may be left out.
        files: their names.
        message: of the commit.
        private: whether a newly created repository is private.

    Returns:
        the address of the commit.

    Raises:
        ValueError: if the name is not written so, or the upload is refused or fails.
    """
    from huggingface_hub import create_repo, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo = name.removeprefix("hf:")
    if repo.count("/") != 1 or "@" in repo:
        raise ValueError(f"repo={name!r}: must be owner/repo")
    try:
        create_repo(repo, private=private, exist_ok=True)
        made = upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(files), commit_message=message
        )
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        raise ValueError(f"repo={name!r}: could not be uploaded to the hub: {reason(e)}") from e
    return str(made.commit_url)
