"""Digests of content: of weights, and of arbitrarily nested tensors, strings and numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["content", "fingerprint", "hexdigest", "rounded"]

_DIGESTS: WeakKeyDictionary[nn.Module, tuple[object, list[ref[Tensor]], str]] = WeakKeyDictionary()
_ROUNDED: dict[
    str, str
] = {}  # fingerprints of weights that were rounded at loading, which are those of the file


def hexdigest(*parts: Any, length: int = 16) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of bytes, arrays and texts joined."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:length]


def content(value: object) -> str:
    """16 hexadecimal digits of a condition: tensors, arrays, strings and numbers, however nested.

    Raises:
        ValueError: if it contains anything else.
    """
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()[:16]


def fingerprint(network: nn.Module) -> str:
    """16 hexadecimal digits of the weights in half precision, whatever the device.

    Weights that were rounded to lower precision at loading keep the fingerprint of the file.

    It is computed again only if a weight was replaced or changed in place (but not through its
    ``.data``, which leaves no trace).
    """
    weights = sorted(network.state_dict(keep_vars=True).items())
    state = None
    if not any(p.is_inference() for _, p in weights):  # those count no changes
        state = [(name, p.data_ptr(), p.dtype, p._version) for name, p in weights]
    known, tensors, found = _DIGESTS.get(network, (None, [], ""))
    same = state is not None and known == state  # but an address may be another's by now
    if same and all(of() is p for of, (_, p) in zip(tensors, weights, strict=True)):
        return found
    digest = _digest(dict(weights))
    found = _ROUNDED.get(digest, digest)
    _DIGESTS[network] = (state, [ref(p) for _, p in weights], found)
    return found


def rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in ``dtype``; a network with them keeps the fingerprint of ``tensors``."""
    made = {name: p.to(dtype) for name, p in tensors.items()}
    if dtype not in (torch.float16, torch.float32, torch.float64):
        _ROUNDED[_digest(made)] = _digest(tensors)
    return made


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, p in sorted(weights.items()):  # one at a time: the copies of a large model add up
        digest.update(name.encode())
        digest.update(p.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, value: object) -> None:
    if isinstance(value, Mapping):
        digest.update(f"dict {len(value)}".encode())
        for key in sorted(value, key=repr):
            digest.update(repr(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (tuple, list)):
        digest.update(f"list {len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex, np.generic)):
        digest.update(repr(value).encode())
    else:
        raise ValueError(
            f"a condition with a {type(value).__name__} cannot be identified, which a folder of "
            "results needs; pass tensors, texts and numbers, or leave the folder out"
        )
