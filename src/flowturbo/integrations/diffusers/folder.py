"""The plan of a pipeline as a folder: ``plan.json``, its refiner, and a model card, ``README.md``.

`enable` takes such a folder, or one on the Hugging Face hub. It contains nothing of the pipeline.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from flowturbo import checks
from flowturbo.files import atomic_write, printable
from flowturbo.integrations.diffusers.fit import refit
from flowturbo.models.hub import fetch, push
from flowturbo.plan import Plan
from flowturbo.refiner.binding import scales_text
from flowturbo.refiner.checkpoint import (
    REFINER_CARD,
    REFINER_WEIGHTS,
    load_refiner,
    save_refiner,
)
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.refiner.paper import PaperRefiner
from flowturbo.types import JsonObject, ReadOnlyJson

__all__ = ["is_folder", "push_to_hub", "read_folder", "save_folder"]

PLAN, CARD = "plan.json", "README.md"
REFINER = (REFINER_WEIGHTS, REFINER_CARD)
MADE_BY = "flowturbo tune --pipeline PATH --prompts FILE -o FOLDER writes one"


def save_folder(
    folder: str | Path,
    plan: Plan,
    refiner: VelocityRefiner | PaperRefiner | None = None,
    *,
    licence: str = "apache-2.0",
) -> None:
    """Write a plan that was tuned to a pipeline, with its refiner and a model card.

    Args:
        folder: where to write; each file in it is written whole or left untouched.
        plan: from ``flowturbo.tune(pipe, prompts=...)``.
        refiner: for its refiner evaluations; left out if it has none.
        licence: of the table and the refiner, by its identifier on the hub; the pipeline's weights,
            which are not in the folder, keep their own licence.

    Raises:
        ValueError: if the plan was not tuned to a pipeline, or needs a refiner and there is none.
        OSError: if the folder cannot be written.
    """
    folder, needed = checks.path("folder", folder), plan.nfe["refiner"]
    if not {"pipeline", "guidance", "trajectories", "error", "baseline"} <= plan.info.keys():
        raise ValueError(
            f"plan {plan.name!r}: was not tuned to a pipeline; flowturbo.tune(pipe, prompts=...) "
            "makes such a plan, and plan.save(...) writes any other"
        )
    if needed and refiner is None:
        raise ValueError(
            f"plan {plan.name!r} has {needed} refiner evaluations, and refiner=None; pass the "
            "refiner that it was tuned with"
        )
    if needed and refiner is not None:
        save_refiner(folder, refiner)
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(_card(plan, licence), encoding="utf-8")
    plan.save(folder / PLAN)


def is_folder(plan: object) -> bool:
    """Whether ``plan`` names a folder: a path that is no .json file, or one on the hub."""
    if isinstance(plan, Path):
        return plan.suffix != ".json" and not plan.is_file()
    if not isinstance(plan, str) or plan.endswith(".json"):
        return False
    path = plan.startswith("hf:") or "/" in plan or "\\" in plan
    return path or (len(plan) < 256 and os.path.isdir(plan))  # notation may be longer


def read_folder(
    source: str | Path | object,
) -> tuple[Plan, VelocityRefiner | PaperRefiner | None]:
    """The plan in a folder, or in one on the hub ("hf:owner/repo"), and the refiner it needs.

    Raises:
        ValueError: if there is no such folder, it cannot be fetched, contains no plan, or lacks the
            plan's refiner.
    """
    name = str(source)
    if name.startswith("hf:"):
        folder = fetch(name, [PLAN, CARD, *REFINER], "plan")
    else:
        folder = checks.path("plan", source).expanduser()
        if not folder.is_dir():
            raise ValueError(f"plan={name!r}: no such folder; {MADE_BY}")
    if not (folder / PLAN).is_file():
        raise ValueError(f"plan={name!r}: the folder holds no {PLAN}; {MADE_BY}")
    plan = Plan.load(folder / PLAN)
    return plan, load_refiner(folder) if plan.nfe["refiner"] else None


def push_to_hub(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload the folder of a plan to the Hugging Face hub, as `enable` takes it.

    Args:
        folder: a folder written by `save_folder` or ``flowturbo tune --pipeline``.
        repo: "owner/repo", or "hf:owner/repo"; it is created if it does not exist. The token is
            that of ``hf auth login`` or of the environment.
        private: whether a newly created repository is private.

    Returns:
        the address of the commit.

    Raises:
        ValueError: if the folder contains no such plan, or it cannot be uploaded.
    """
    plan, refiner = read_folder(checks.path("folder", folder))
    files = [PLAN, CARD, *(REFINER if refiner is not None else ())]
    missing = [name for name in files if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(f"folder={str(folder)!r}: holds no {missing[0]}; {MADE_BY}")
    return push(Path(folder), repo, files, f"plan {plan.name!r} by FlowTurbo", private=private)


def _card(plan: Plan, licence: str) -> str:
    """The model card of a plan, Markdown with metadata in YAML."""
    info, about = plan.info, plan.info["pipeline"]
    base = printable(str(about["base_model"]))
    front: JsonObject = {
        "license": licence,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["flowturbo", "flow-matching", "few-step"],
    }
    if base.count("/") == 1:
        front["base_model"] = base
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    rows = "\n".join(f"| {name} | {text} |" for name, text in _facts(plan, base).items())
    height, width = about["size"]
    call = {"num_inference_steps": len(plan), "height": height, "width": width, **about["call"]}
    arguments = ", ".join(f"{key}={value!r}" for key, value in call.items())
    notes = "".join(f"\n- {printable(note)}" for note in info.get("notes", ()))
    return f"""---
{yaml}
---

# {len(plan)} evaluations for {base}

A sampling plan of FlowTurbo for `{about["class"]}`: a table of times and weights that replaces \
the scheduler{", and a light network for some evaluations" if plan.nfe["refiner"] else ""}\
. It was fitted to the pipeline's own trajectories, without images.

| | |
|---|---|
{rows}

The error is the root mean square distance of the final latents from the converged solution for \
the same noise, with its 95 % interval.
{notes}

## Use

```python
from diffusers import {about["class"]}
from flowturbo.integrations.diffusers import enable

pipe = {about["class"]}.from_pretrained({base!r})
enable(pipe, "FOLDER")  # this folder, or "hf:owner/repo"
image = pipe("a prompt", {arguments}).images[0]
```

With other weights, such as a fine-tune, a LoRA or another precision, `enable` warns; fit a plan
again:

```bash
{refit(plan)}
```

## Licence

`{licence}` is the licence of the table{" and the refiner" if plan.nfe["refiner"] else ""} alone. \
The weights of {base} are not here, and keep theirs.
"""


def _facts(plan: Plan, base: str) -> dict[str, str]:
    """The rows of the table of a card."""
    info, about = plan.info, plan.info["pipeline"]
    trajectories = info["trajectories"]
    tell = lambda e: f"{_with_interval(e, 'rmse')}; median {_with_interval(e, 'median')}"
    passes = plan.passes(2.0 if about["branches"] == 2 else 1.0)
    height, width = about["size"]
    return {
        "base model": base,
        "weights": f"`{info['fingerprint']}`, {about['dtype']}",
        "evaluations": ", ".join(f"{n} of the {name}" for name, n in plan.nfe.items() if n),
        "passes of the network per image": str(passes),
        "guidance": scales_text(*info["guidance"]),
        "size": f"{width} x {height}",
        "error": tell(info["error"]),
        f"error of {info['baseline']['name']}, the best plain solver": tell(info["baseline"]),
        "error of the reference solution": f"{info['reference_error']:.4f}",
        "prompts": str(about["prompts"]),
        "trajectories": f"{trajectories['fit']} to fit on, {trajectories['choose']} to choose on, "
        f"{trajectories['test']} for the error",
        "made by": printable(str(info["made_by"])),
    }


def _with_interval(error: ReadOnlyJson, name: str) -> str:
    low, high = error[f"{name}_95"]
    return f"{error[name]:.4f} ({low:.4f} to {high:.4f})"
