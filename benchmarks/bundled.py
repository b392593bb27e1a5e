"""The bundled plans compared with the best diffusers scheduler at the same number of passes.

    python benchmarks/bundled.py --model emoji --out benchmarks/records/bundled-emoji.json

measures, at the guidance scale of the model, on noise samples that nothing else uses: with random
conditions, and for `emoji` also with the names that people are likely to try first, those of
``recipes/emoji/common.txt``. The scheduler is chosen on the test noise samples themselves, in its
favour. An interrupted run is resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bundled_page import ANY, COMMON
from method import best, check_alike, keep
from schedulers import schedulers
from trial import Trial

import flowturbo as ft

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
from plans import common


def measure(options: argparse.Namespace) -> None:
    model = ft.load(options.model, device=options.device)
    refiner, guidance = ft.load_refiner(options.model), float(model.defaults["guidance"])
    record = json.loads(options.out.read_text()) if options.out.is_file() else {}
    of_text = model.conditioning is not None and model.conditioning.kind == "text"
    for prompts in (ANY, COMMON) if of_text else (ANY,):
        cond = common(model, options.noise_samples) if prompts == COMMON else None
        folder = options.folder / model.name / prompts.replace(" ", "-")
        trial = Trial(model, guidance, options.noise_samples, options.reference, folder, cond)
        part = record.setdefault(prompts, {"conditions": trial.conditions, "plans": {}})
        check_alike(options.out, part["conditions"], trial)
        part["reference"] = trial.reference_error()
        for name, plan in model.plans.items():
            passes = plan.passes(guidance)
            tried = schedulers(passes // 2)
            label, _ = best(trial, tried)
            part["plans"][name] = {
                "passes": passes,
                "plan": trial.entry(plan, refiner),
                "scheduler": trial.entry(tried[label], chosen=label),
            }
            keep(options.out, record)
            errors = [part["plans"][name][k]["rmse"] for k in ("plan", "scheduler")]
            print(f"{prompts}: {name}, {passes} passes: {errors[0]}, {label} {errors[1]}")
    print(f"-> {options.out}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="a bundled name")
    add("--noise-samples", type=int, default=480, help="to test on, of either kind")
    add("--reference", default="AB4RK:105@0.5", help="plan of the reference solution")
    add("--device", default="cpu", help="where to compute")
    add("--folder", type=Path, default=Path("runs/bundled"), help="keeps what is computed")
    add("--out", "-o", type=Path, required=True, help="the record")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
