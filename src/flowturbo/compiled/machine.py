"""The properties of a machine that a compiled library depends on."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["differences", "this_machine"]


def this_machine(device: torch.device) -> dict[str, str]:
    """The versions, the device and the instructions that a library is compiled for here."""
    if device.type == "cuda":
        version = ".".join(map(str, torch.cuda.get_device_capability(device)))
        kind = f"{torch.cuda.get_device_name(device)}, capability {version}"
    else:
        kind = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return {
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "kind": kind,
        "instructions": " ".join(_instructions()),
    }


def differences(wanted: Mapping[str, str], device: torch.device) -> list[str]:
    """How this machine differs from ``wanted``; additional instructions do not count."""
    here = this_machine(device)
    wrong = [
        f"{k} {wanted[k]}, this is {here[k]}"
        for k in here
        if k != "instructions" and here[k] != wanted[k]
    ]
    lacking = set(wanted["instructions"].split()) - set(here["instructions"].split())
    return [*wrong, *([f"instructions {' '.join(sorted(lacking))}, not here"] if lacking else [])]


def _instructions() -> list[str]:
    """The instruction sets of the processor; empty where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    sets = r"(?:amx|avx|asimd|bmi|f16c|fma|gfni|sse|sve|vaes|vpclmul)\w*"
    return sorted(w for w in flags[1].split() if re.fullmatch(sets, w)) if flags else []
