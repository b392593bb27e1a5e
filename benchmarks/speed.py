"""Timings of a plan and of diffusers schedulers at equal error.

    python benchmarks/speed.py --model digits --out benchmarks/records/speed-digits.json

For FlowMatchEuler and the best second-order scheduler, it finds the fewest evaluations at which the
error to the reference solution (RMSE on noise samples that nothing else uses) is not above the
plan's. Each scheduler runs at every shift of two grids, the best chosen on these noise samples, in
its favour. With ``--num-images`` the same is done for FD-EffNet to the reference images of the same
noise samples; the distance to ``--real-images`` is recorded too. Then the samplers are timed side
by side, in one run: as tables, uncompiled and with the network compiled, the same for all, and by
diffusers' own loops. An interrupted run is resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from math import ceil, log
from pathlib import Path
from typing import Any

from bench import drawing_compiled, seen_compiled
from method import adams, best, keep, rms
from schedulers import schedulers
from trial import Trial

import flowturbo as ft
from flowturbo.evaluate.benchmark import benchmark
from flowturbo.integrations.baselines import baselines
from flowturbo.refiner.resolve import resolve

EULER = "FlowMatchEuler"
SECOND = ("UniPC-2", "DPM-Solver++ 2M", "DEIS-2", "FlowMatchHeun")
KINDS = {"Euler": (EULER,), "second order": SECOND}
Measure = Callable[[int], tuple[float, str, ft.Plan]]
Distances = Callable[..., dict[str, float]]
LOOPS = {
    "UniPC-2": "UniPC",
    "DPM-Solver++ 2M": "DPM-Solver++",
    EULER: EULER,
}  # as baselines name them


def found(trial: Trial, names: tuple[str, ...], nfe: int) -> tuple[float, str, ft.Plan]:
    """(RMSE, label, plan) of the best of the schedulers ``names`` at ``nfe`` evaluations."""
    plans = {
        k: p for k, p in schedulers(nfe).items() if k.startswith(tuple(f"{n}," for n in names))
    }
    label, _ = best(trial, plans)
    error = rms(trial.errors(plans[label]))
    print(f"{names[0]}, {nfe}: {label}, {error:.4f}", flush=True)
    return error, label, plans[label]


def frechet(
    trial: Trial, distances: Distances, names: tuple[str, ...], nfe: int
) -> tuple[float, str, ft.Plan]:
    """(FD to the reference images, label, plan) of that best one."""
    _, label, plan = found(trial, names, nfe)
    value = distances(plan)["to_reference"]
    print(f"{names[0]}, {nfe}: {label}, FD {value:.4f}", flush=True)
    return value, label, plan


def equal(measure: Measure, target: float, least: int, most: int) -> Any:
    """(evaluations, value, label, plan) of the fewest where ``measure`` is at most ``target``.

    Those of ``most``, where it is more, if these are too few. It is looked for as if the measure
    fell in proportion to a power.
    """
    low, high, value = least - 1, least, float("inf")
    while (at := measure(high))[0] > target:  # farther, as a first order would need
        if high == most:
            return (most, *at)
        low, value = high, at[0]
        high = min(ceil(high * min(max(value / target, 1.25), 4)), most)
    reached = (high, *at)
    while reached[0] - low > 1:
        slope = log(value / target) / max(log(value / reached[1]), 1e-9)
        middle = ceil(low * (reached[0] / low) ** slope)
        middle = min(max(middle, low + 1), reached[0] - 1)
        at = measure(middle)
        if at[0] <= target:
            reached = (middle, *at)
        else:
            low, value = middle, at[0]
    return reached


def loops(each: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Diffusers' own loops of the schedulers found, for so many evaluations, and what is missing.

    Their grids do not bear on the time and are those of `baselines`.
    """
    made, missing = {}, {}
    for nfe, _, label, _ in each.values():
        of, missing = baselines(nfe)
        name = f"diffusers, {LOOPS.get(label.partition(',')[0], '')} {nfe}"
        made |= {name: of[name]} if name in of else {}
    return made, missing


def fd(
    draw: Callable[..., Any], folder: Path, plan: ft.Plan, refiner: Any = None
) -> dict[str, float]:
    """FD-EffNet of a plan's images, to the reference images and to real ones."""
    made = draw(
        plan, refiner=refiner, agreement=0, resamples=0, repeats=0, cache_dir=folder / "pictures"
    )
    return {k: made["frechet"][k] for k in ("to_reference", "plan", "reference")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="digits", help="a bundled name or a folder")
    add("--plan", help="a plan, or its file; by default the model's own")
    add("--guidance", type=float, help="by default the model's own")
    add("--noise-samples", type=int, default=256, help="to measure errors on")
    add("--reference", default="AB4RK:105@0.5", help="plan of the reference solution")
    add("--batch", type=int, default=8)
    add("--repeats", type=int, default=20)
    add("--scopes", default="none,network", help="what is compiled, of each sampler")
    add("--most", type=int, default=96, help="evaluations, to stop looking")
    add("--num-images", type=int, default=0, help="of each plan for FD-EffNet, 0 for none")
    add("--real-images", help="for FD-EffNet")
    add("--steps", type=int, default=64, help="intervals of the reference solution of images")
    add("--folder", help="for what is computed on the way; runs/speed/NAME by default")
    add("--out", "-o", required=True, help="the record")
    options = parser.parse_args()
    if options.num_images and not options.real_images:
        parser.error(f"--num-images {options.num_images}: needs --real-images")
    model = ft.load(options.model)
    given = options.plan
    if given and Path(given).is_file():
        given = ft.Plan.load(given)
    used = resolve(model, given, options.guidance)
    plan, guidance, refiner = used.plan, used.guidance, used.refiner
    folder = Path(options.folder or f"runs/speed/{Path(options.model).name}")
    trial = Trial(model, guidance, options.noise_samples, options.reference, folder)
    error = rms(trial.errors(plan, refiner=refiner))
    look = partial(equal, least=plan.nfe["model"], most=options.most)
    each = {kind: look(partial(found, trial, names), error) for kind, names in KINDS.items()}
    seen: dict[str, Any] = {}
    if options.num_images:
        shared = {"num_images": options.num_images, "guidance": guidance, "steps": options.steps}
        shared |= {"real_images": options.real_images, "features": seen_compiled()}
        distances = partial(
            fd, partial(ft.evaluate, drawing_compiled(options.model), **shared), folder
        )
        seen = {"images": options.num_images, "real_images": Path(options.real_images).name}
        seen |= (ours := distances(plan, refiner))
        print(f"the plan: FD {ours}", flush=True)
        for kind, names in KINDS.items():
            each[f"{kind}, FD"] = look(
                partial(frechet, trial, distances, names), ours["to_reference"]
            )
    plain = adams(plan.nfe["model"])["AB2"]
    control = plain[best(trial, plain)[0]]
    others, missing = loops(each)
    names = ((model.names or [""]) * options.batch)[: options.batch]
    timed = benchmark(
        model,
        [plan.with_info({}), *(at[3] for at in each.values()), control],
        refiner,
        cond=model.condition(names) if model.conditioning else None,
        batch=options.batch,
        guidance=guidance,
        scopes=options.scopes.split(","),
        baselines=others,
        missing=missing,
        repeats=options.repeats,
        reference=None,
    )
    ms = [row["ms"]["median"] for row in timed["methods"]]
    scopes = options.scopes.split(",")
    record = {
        "kind": "speed",
        "conditions": trial.conditions,
        "plan": trial.entry(plan, refiner),
        "control": trial.entry(control),
        "equal": {
            kind: {
                "evaluations": at[0],
                "value": float(f"{at[1]:.5g}"),
                "reached": at[1] <= (seen["to_reference"] if kind.endswith("FD") else error),
                "chosen": at[2],
                **({"real": distances(at[3])["plan"]} if kind.endswith("FD") else {}),
            }
            for kind, at in each.items()
        },
        "frechet": seen,
        "faster": {
            kind: {s: ms[(1 + i) * len(scopes) + j] / ms[j] for j, s in enumerate(scopes)}
            for i, kind in enumerate(each)
        },
        "timed": timed,
    }
    keep(Path(options.out), record)
    print({"equal": record["equal"], "faster": record["faster"]})
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()
