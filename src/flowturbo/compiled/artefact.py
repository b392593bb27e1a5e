"""A compiled sampler in a file: exported ahead of time, loaded where nothing is compiled.

The file is the ``.pt2`` archive of AOTInductor, one library for each number of rows with the
weights in it, and a manifest, ``extra/flowturbo.json``: what it was made of, and what it was made
for. That is checked, compared, and the archive tested for damage, before anything of it is loaded.
Nothing in it is unpickled, but a library is native code: load only files that you would run as a
program.
"""

from __future__ import annotations

import io
import json
import platform
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flowturbo import checks
from flowturbo._version import __version__
from flowturbo.compiled.backend import inductor_options
from flowturbo.compiled.sampler import compile, prepare
from flowturbo.compiled.shapes import Inputs, Sampler, Shapes
from flowturbo.digests import hexdigest
from flowturbo.field import Field
from flowturbo.files import atomic_write
from flowturbo.models.model import Model
from flowturbo.models.sit import check_indices
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner

__all__ = ["LoadedSampler", "export", "load_compiled", "read_manifest"]

FORMAT = 1
_MANIFEST = "extra/flowturbo.json"


@checks.known_keywords
def export(
    path: str | Path,
    model: Field,
    plan: Plan | str,
    refiner: Refiner | None = None,
    *,
    batch: int | Sequence[int] = 8,
    dtype: torch.dtype | None = None,
    guidance: float | None = None,
    shape: Sequence[int] | None = None,
    cond: Any = None,
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compile the sampling of a plan ahead of time, for this kind of machine.

    Arguments are those of ``compile``. The condition must be a tensor or None, and the null
    condition the same for all; it goes into the manifest.

    Returns:
        The manifest.

    Raises:
        ValueError: as ``compile``, and if the condition cannot go into a file.
        OSError: if the file cannot be written.
    """
    path = checks.path("path", path)
    checks.flag("progress", progress)
    if path.suffix != ".pt2":
        raise ValueError(f"path={str(path)!r}: a compiled sampler is written as .pt2")
    function, shapes, null_of = prepare(
        model,
        plan,
        refiner,
        batch=batch,
        dtype=dtype,
        guidance=guidance,
        shape=shape,
        cond=cond,
        device=device,
    )
    if not (shapes.cond is None or isinstance(shapes.cond, Tensor)):
        raise ValueError("cond: only a tensor, or None, can be exported; use flowturbo.compile")
    options = inductor_options(options)
    null = None if shapes.guidance is None else null_of(shapes.cond)
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti

    manifest = _manifest(function, shapes, null, model)
    files: dict[str, Any] = {}
    with torch.no_grad(), warnings.catch_warnings(), atomic_write(path) as temporary:
        warnings.simplefilter("ignore", FutureWarning)  # of torch, at itself
        quiet = None if progress else True
        for size in tqdm(shapes.batch, desc=f"export {function.plan.name}", disable=quiet):
            inputs = shapes.example(size, null)
            program = torch.export.export(function, inputs, strict=False)
            files[f"rows{size}"] = aot_compile(
                _module(program),
                inputs,
                options={**options, "aot_inductor.package": True},
            )
        packed = io.BytesIO()  # torch's own writer aborts the process where the disk is full
        package_aoti(packed, files)
        with zipfile.ZipFile(packed, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            manifest["digest"] = _digest(manifest, archive.infolist())
            archive.writestr(f"{root}/{_MANIFEST}", json.dumps(manifest, indent=1))
        temporary.write_bytes(packed.getbuffer())
    return manifest


def _digest(manifest: Mapping[str, Any], parts: Sequence[zipfile.ZipInfo]) -> str:
    """16 hexadecimal digits of a manifest and of the rest of its archive, which belong together.

    A library takes the shapes that it was compiled for, whatever a manifest says.
    """
    told = {key: value for key, value in manifest.items() if key != "digest"}
    rest = sorted((part.filename.partition("/")[2], part.CRC) for part in parts)
    return hexdigest(json.dumps([told, rest], sort_keys=True))


def _module(program: Any) -> Any:
    try:
        return program.module(check_guards=False)
    except TypeError:  # before torch 2.9 there were none
        return program.module()


def _manifest(function: Any, shapes: Shapes, null: Any, model: Any) -> dict[str, Any]:
    row = lambda c: None if c is None else c.tolist()
    cond = shapes.cond
    kind: dict[str, Any] | None = None
    if cond is not None:
        kind = {"dtype": str(cond.dtype), "shape": list(cond.shape[1:])}
        kind["largest"] = getattr(getattr(model, "network", None), "largest_indices", None)
    refiner = function.refiner
    return {
        "format": FORMAT,
        "flowturbo": __version__,
        "made_for": _here(shapes.device),
        "model": {"name": getattr(model, "name", None), "fingerprint": _fingerprint(model)},
        "refiner": refiner and {
            "fingerprint": _fingerprint(refiner),
            "guidance_range": getattr(refiner, "guidance_range", None),
        },
        "plan": json.loads(function.plan.to_json()),
        "dtype": None if function.dtype is None else str(function.dtype),
        "state": {"shape": list(shapes.shape), "dtype": str(shapes.dtype)},
        "batch": list(shapes.batch),
        "cond": kind,
        "null": row(null),
        "guidance": shapes.guidance,
    }  # fmt: skip


def _fingerprint(module: Any) -> str | None:
    return getattr(module, "fingerprint", None)


def _here(device: torch.device) -> dict[str, str]:
    """What a library depends on, of this machine."""
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


def _instructions() -> list[str]:
    """What the processor can do; the compiler uses all of it. Empty where that is not told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    told = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    sets = r"(?:amx|avx|asimd|bmi|f16c|fma|gfni|sse|sve|vaes|vpclmul)\w*"
    return sorted(w for w in told[1].split() if re.fullmatch(sets, w)) if told else []


def _differences(wanted: Mapping[str, str], device: torch.device) -> list[str]:
    """In what this machine is not the one that an artefact was made for."""
    here = _here(device)
    wrong = [
        f"{k} {wanted[k]}, this is {here[k]}"
        for k in here
        if k != "instructions" and here[k] != wanted[k]
    ]
    lacking = set(wanted["instructions"].split()) - set(here["instructions"].split())
    return [*wrong, *([f"instructions {' '.join(sorted(lacking))}, not here"] if lacking else [])]


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of an exported sampler; nothing else of the file is read.

    Raises:
        ValueError: if it is no such file, is damaged, or is of a later version.
        OSError: if it cannot be read.
    """
    from flowturbo.compiled.manifest import Manifest
    from flowturbo.schema import MOST_BYTES, check, open_archive, parse_json

    again = "export it again"
    try:
        with open_archive(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.endswith(f"/{_MANIFEST}")]
            if len(entries) != 1 or entries[0].file_size > MOST_BYTES:
                raise ValueError(f"it has {len(entries)} manifests, or too large a one")
            content = archive.read(entries[0])
            parts = [e for e in archive.infolist() if e is not entries[0]]
    except ValueError as e:
        raise ValueError(f"{e}; not a sampler that this library exported") from e
    manifest = parse_json(content, f"{path}: {_MANIFEST}", again)
    check(manifest, Manifest, f"{path}: {_MANIFEST}", again)
    if manifest["digest"] != _digest(manifest, parts):
        raise ValueError(f"{path}: the manifest is not that of these libraries; {again}")
    _null(manifest, path, torch.device("cpu"))
    return manifest  # type: ignore[no-any-return]


@checks.known_keywords
def load_compiled(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    fallback: Field | None = None,
    refiner: Refiner | None = None,
) -> Sampler:
    """Load an exported sampler, where it was made for; nothing is compiled.

    Args:
        path: the ``.pt2``.
        device: where to run it, of the kind that it was made for; by default the first.
        fallback: the model. Where the file was not made for, its plan is then run by it,
            uncompiled, with a warning that tells the reason.
        refiner: for the same.

    Returns:
        A function of tensors, like ``flowturbo.compile`` returns.

    Raises:
        ValueError: with the reason, if the file was made for another torch, system or device and
            there is no fallback; if it is damaged; if ``fallback`` has other weights.
        OSError: if it cannot be read.
    """
    path = checks.path("path", path)
    if device is not None:
        device = checks.device("device", device)
    if fallback is not None:
        checks.function("fallback", fallback, "x, t, cond")
    if refiner is not None:
        checks.function("refiner", refiner, "x, t, cond, history")
    manifest = read_manifest(path)
    wanted = manifest["made_for"]
    try:
        place = torch.empty(0, device=device or wanted["device"]).device
        wrong = _differences(wanted, place)
    except (RuntimeError, AssertionError) as e:
        wrong = [f"{wanted['device']} ({str(e).splitlines()[0]})"]
    if not wrong:
        return LoadedSampler(path, manifest, place)
    reason = f"{path}: made for {'; '.join(wrong)}"
    if fallback is None:
        raise ValueError(
            f"{reason}; export it here, or pass fallback=model to run the plan uncompiled"
        )
    return _fallback(reason, manifest, fallback, refiner)


def _fallback(
    reason: str, manifest: Mapping[str, Any], model: Any, refiner: Refiner | None
) -> Sampler:
    for name, given in (("model", model), ("refiner", refiner)):
        made_for = (manifest[name] or {}).get("fingerprint")
        if given is not None and made_for and _fingerprint(given) not in (None, made_for):
            raise ValueError(
                f"{reason}; and the fallback has other weights, {_fingerprint(given)}, than its "
                f"{name}, {made_for}"
            )
    checks.warn(f"{reason}; the plan is run uncompiled")
    dtype = manifest["dtype"]
    return compile(
        model,
        _plan(manifest),
        refiner,
        batch=manifest["batch"],
        dtype=dtype and _dtype(dtype),
        guidance=1.0 if manifest["guidance"] is None else manifest["guidance"],
        shape=getattr(model, "shape", manifest["state"]["shape"]),
        cond=None if isinstance(model, Model) else _example(manifest["cond"], "cpu"),
        scope="none",
        progress=False,
    )


class LoadedSampler(Sampler):
    """What ``load_compiled`` returns; threads may share it.

    Attributes:
        manifest: of the file.
    """

    def __init__(self, path: str | Path, manifest: dict[str, Any], device: torch.device) -> None:
        from flowturbo.schema import open_archive

        refiner = manifest["refiner"] or {}
        known = _Refiner() if refiner.get("guidance_range") else None
        if known:
            known.guidance_range = refiner["guidance_range"]
        shapes = Shapes(
            shape=tuple(manifest["state"]["shape"]),
            batch=tuple(manifest["batch"]),
            dtype=_dtype(manifest["state"]["dtype"]),
            device=device,
            cond=_example(manifest["cond"], device),
            guidance=manifest["guidance"],
        )
        super().__init__(_plan(manifest), shapes, known, self._check_indices)
        self.manifest = manifest
        self._null = _null(manifest, path, device)
        with open_archive(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged; copy or export it again")
        self._calls = {size: _library(path, f"rows{size}", device) for size in shapes.batch}

    def _check_indices(self, x: Tensor, *conds: Tensor | None) -> None:
        kind = self.manifest["cond"]
        if kind and (largest := kind.get("largest")):
            for name, cond in zip(("cond", "negative"), conds, strict=True):
                if cond is not None:
                    wanted = f"0 to {largest[0] if len(largest) == 1 else largest}"
                    check_indices(name, cond, largest, wanted)

    def null_condition(self, cond: Any) -> Any:
        """The unconditional condition, of one row."""
        return self._null

    def _call(self, size: int, inputs: Inputs) -> Tensor:
        return self._calls[size]([c for c in inputs if isinstance(c, Tensor)])[0]


def _library(path: str | Path, name: str, device: torch.device) -> Any:
    """A list of tensors to a list of them; without the compiler, whose import takes seconds."""
    loader: Any = torch._C._aoti.AOTIModelPackageLoader  # type: ignore[attr-defined]
    index = -1 if device.index is None else device.index
    try:
        try:
            return loader(str(path), name, False, 1, index).run
        except TypeError:  # earlier versions of torch take two
            return loader(str(path), name).run
    except RuntimeError as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"{path}: {name} cannot be loaded ({reason}); export it again") from e


class _Refiner:
    """The range of guidance of the refiner in an artefact."""

    distinct_times = 0
    guidance_range: tuple[float, float]


def _plan(manifest: Mapping[str, Any]) -> Plan:
    return Plan.from_json(json.dumps(manifest["plan"]))


def _null(manifest: Mapping[str, Any], path: str | Path, device: torch.device) -> Tensor | None:
    """The unconditional condition, of one row."""
    example = _example(manifest["cond"], "meta")
    if manifest["null"] is None or example is None:
        return None
    try:
        made = torch.tensor(manifest["null"], dtype=example.dtype, device=device)
    except (ValueError, TypeError, RuntimeError) as e:
        raise ValueError(f"{path}: {_MANIFEST}: null: {e}; export it again") from e
    if made.shape != example.shape:
        shapes = f"null of shape {tuple(made.shape)}, cond of {tuple(example.shape)}"
        raise ValueError(f"{path}: {_MANIFEST}: {shapes}; export it again")
    return made


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name.removeprefix("torch."))


def _example(kind: Mapping[str, Any] | None, device: Any) -> Tensor | None:
    if kind is None:
        return None
    return torch.zeros(1, *kind["shape"], dtype=_dtype(kind["dtype"]), device=device)
