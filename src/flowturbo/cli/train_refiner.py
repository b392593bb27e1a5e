"""`flowturbo train-refiner`: a light network that stands in for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from flowturbo.checks import whole
from flowturbo.cli.options import (
    Device,
    ModelName,
    check_folder,
    read_lines,
    read_plan,
    resolve_device,
    resolve_guidance,
)
from flowturbo.cli.output import say
from flowturbo.models.tokenizer import Tokenizer
from flowturbo.models.zoo import load

__all__ = ["run"]


def _option(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", help=text)  # type: ignore[no-any-return]


def run(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder, the model's say; resumes.")],
    guidance: Annotated[
        str, typer.Option("--guidance", "-g", help="A scale, or a range of them as 1-4.")
    ] = "1-4",
    plan: Annotated[
        str | None, _option("plan", "Go on with the states of this plan: MMRMRMRM, or a .json.")
    ] = None,
    kind: Annotated[
        str, _option("kind", "velocity: a block of the model; conv: a small network.")
    ] = "velocity",
    prompts: Annotated[
        Path | None, _option("prompts", "A file of prompts, one a line, for a text model.")
    ] = None,
    trajectories: Annotated[int, _option("trajectories", "To draw.")] = 2048,
    steps: Annotated[int, _option("steps", "Evaluations of the model on each.")] = 16,
    minutes: Annotated[float, _option("minutes", "Of training, about.")] = 10.0,
    iterations: Annotated[
        int | None, _option("iterations", "Of training, instead; of the paper 30000.")
    ] = None,
    batch: Annotated[int | None, _option("batch", "64; of the paper 18.")] = None,
    lr: Annotated[float | None, _option("lr", "Peak learning rate.")] = None,
    block: Annotated[int, _option("block", "Of the model to start from; -1 is the last.")] = -1,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's refiner, on data.")] = False,
    data: Annotated[
        Path | None, _option("data", "With --paper: an .npz or a folder of images.")
    ] = None,
    vae: Annotated[
        str | None, _option("vae", "With --paper: encode the images by this instead of the card's.")
    ] = None,
    seed: Annotated[int, _option("seed", "Of everything random.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Run the refiner in bfloat16.")] = False,
    compile: Annotated[bool, typer.Option(help="Compile the refiner.")] = False,
    save_every: Annotated[int, _option("save-every", "Iterations between checkpoints.")] = 500,
    device: Device = "auto",
) -> None:
    """Train a velocity refiner from the model alone, or the paper's on data; resumes.

    Example: flowturbo train-refiner --model digits --guidance 1-4 --minutes 10 -o runs/refiner
    """
    from flowturbo.training import (
        as_states,
        load_data,
        paper_config,
        train_paper_refiner,
        train_refiner,
    )

    if paper != (data is not None):
        raise ValueError("--paper and --data go together: the paper's refiner is trained on data")
    if vae is not None and not paper:
        raise ValueError(f"--vae {vae}: only the training on data encodes; leave --vae out")
    if paper and (plan or prompts):
        raise ValueError(f"{'--plan' if plan else '--prompts'}: not of the paper's refiner")
    check_folder(out)
    pattern, lines = read_plan(plan), read_lines(prompts) if prompts else []
    teacher = load(model, device=resolve_device(device), vae=vae)
    options: dict[str, Any] = dict(seed=seed, bf16=bf16, compile=compile, save_every=save_every)
    given = {k: v for k, v in (("batch", batch), ("lr", lr)) if v is not None}
    bars: dict[str, tqdm] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, desc=what, disable=None)
        bars[what].update(done - bars[what].n)

    if data is not None:
        condition = teacher.card.get("condition", {})
        tokenizer = condition.get("tokenizer")
        known = Tokenizer.from_json(tokenizer) if tokenizer else None
        images = load_data(data, teacher.image_shape[1], known)
        say(images.describe())
        states = as_states(images, teacher.codec, out / "refiner-run" / "latents")
        number = 30_000 if iterations is None else whole("iterations", iterations, 1)
        config = paper_config(steps=number, **given, **options)
        told = lambda step, loss: report("iterations", step, config.steps)
        train_paper_refiner(teacher, states, out, config, block=block, report=told)
        measured = {}
    else:
        refiner = train_refiner(
            teacher,
            cond=teacher.condition(lines) if prompts else None,
            folder=out,
            plan=pattern,
            report=report,
            kind=kind,
            guidance=resolve_guidance(guidance),
            trajectories=trajectories,
            steps=steps,
            minutes=minutes,
            iterations=iterations,
            block=block,
            **{"batch": 64, **given, **options},
        )
        measured = refiner.card["measured"]
    for bar in bars.values():
        bar.close()
    for what, errors in measured.items():
        say(f"{what}: {', '.join(f'{name} {error}' for name, error in errors.items())}")
    say(f"refiner of {teacher.name} -> {out}")
