"""The archive of an exported sampler, and its manifest.

The file is the ``.pt2`` archive of AOTInductor, with one library for each batch size that contains
the weights, and a manifest, ``extra/flowturbo.json``: what it was made from, and the machine that
it was compiled for. Before anything in the archive is loaded, the manifest is checked and compared,
and the archive is tested for damage. Nothing in it is unpickled, but a library is native code: load
only files that you would run as a program.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowturbo.digests import hexdigest
from flowturbo.plan import Plan
from flowturbo.types import JsonObject, ReadOnlyJson

__all__ = [
    "FORMAT",
    "MANIFEST",
    "archive_digest",
    "condition_example",
    "manifest_null",
    "manifest_plan",
    "named_dtype",
    "read_manifest",
]

FORMAT = 1
MANIFEST = "extra/flowturbo.json"


def archive_digest(manifest: ReadOnlyJson, entries: Sequence[zipfile.ZipInfo]) -> str:
    """16 hexadecimal digits of a manifest and of the rest of its archive, which belong together.

    A library only accepts the shapes that it was compiled for, whatever a manifest says.
    """
    content = {key: value for key, value in manifest.items() if key != "digest"}
    rest = sorted((entry.filename.partition("/")[2], entry.CRC) for entry in entries)
    return hexdigest(json.dumps([content, rest], sort_keys=True))


def read_manifest(path: str | Path) -> JsonObject:
    """The manifest of an exported sampler; nothing else of the file is read.

    Raises:
        ValueError: if it is not such a file, is damaged, or is of a later version.
        OSError: if it cannot be read.
    """
    from flowturbo.compiled.manifest import Manifest
    from flowturbo.schema import MOST_BYTES, check, open_archive, parse_json

    again = "export it again"
    try:
        with open_archive(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.endswith(f"/{MANIFEST}")]
            if len(entries) != 1 or entries[0].file_size > MOST_BYTES:
                raise ValueError(f"it has {len(entries)} manifests, or too large a one")
            content = archive.read(entries[0])
            rest = [e for e in archive.infolist() if e is not entries[0]]
    except ValueError as e:
        raise ValueError(f"{e}; not a sampler that this library exported") from e
    manifest: JsonObject = parse_json(content, f"{path}: {MANIFEST}", again)
    check(manifest, Manifest, f"{path}: {MANIFEST}", again)
    if manifest["digest"] != archive_digest(manifest, rest):
        raise ValueError(f"{path}: the manifest is not that of these libraries; {again}")
    manifest_null(manifest, path, torch.device("cpu"))
    return manifest


def manifest_plan(manifest: ReadOnlyJson) -> Plan:
    """The plan."""
    return Plan.from_json(json.dumps(manifest["plan"]))


def manifest_null(manifest: ReadOnlyJson, path: str | Path, device: torch.device) -> Tensor | None:
    """The unconditional condition, of one row; ``ValueError`` unless it is like the condition."""
    example = condition_example(manifest["cond"], "meta")
    if manifest["null"] is None or example is None:
        return None
    try:
        null = torch.tensor(manifest["null"], dtype=example.dtype, device=device)
    except (ValueError, TypeError, RuntimeError) as e:
        raise ValueError(f"{path}: {MANIFEST}: null: {e}; export it again") from e
    if null.shape != example.shape:
        shapes = f"null of shape {tuple(null.shape)}, cond of {tuple(example.shape)}"
        raise ValueError(f"{path}: {MANIFEST}: {shapes}; export it again")
    return null


def condition_example(entry: ReadOnlyJson | None, device: torch.device | str) -> Tensor | None:
    """A condition of one row, as the entry "cond" describes it."""
    if entry is None:
        return None
    return torch.zeros(1, *entry["shape"], dtype=named_dtype(entry["dtype"]), device=device)


def named_dtype(name: str) -> torch.dtype:
    """The dtype of "torch.float32"."""
    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype
