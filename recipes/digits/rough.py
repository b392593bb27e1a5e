"""A `digits` whose velocity is rough in time, to test methods on: not bundled.

    python recipes/digits/rough.py --data mnist.npz --out runs/rough

starts from the weights of `digits`, with times multiplied by 1000 before they are embedded, as
waves with several periods in 2 % of time, and with the network's output taken as the clean image,
so that velocities are its error divided by the remaining time. The network has to learn both again,
and is stopped before it has, after 2 minutes on one CPU core. An interrupted run is resumed. It
prints the relative change of the guided velocity over the last 2 % of time, next to that of
`digits`: .96 and .36. Changing the times alone is not enough, since a network learns to do without
them. Then

    python benchmarks/method.py --model runs/rough --out benchmarks/records/method-rough.json

measures the same on it as on other models. Check the error of the reference solution that it prints
first: a rougher field needs a finer ``--reference``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import flowturbo as ft
from flowturbo.training import TrainConfig, load_data
from flowturbo.training.flow import FlowMatching
from flowturbo.training.loop import run
from flowturbo.training.processes import Processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from trial import Trial

TRAINING = TrainConfig(
    steps=100, batch=128, lr=5e-4, warmup=50, tail=0.5, ema=0.98, save_every=50, preview_every=100,
)  # fmt: skip
NOISES, GUIDANCE = 32, 2.0


def change(model: ft.Model) -> float:
    """The relative change of the guided velocity over the last 2 % of time."""
    with tempfile.TemporaryDirectory() as folder:
        return Trial(model, GUIDANCE, NOISES, "E1", folder).roughness()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="mnist.npz: images (N, 28, 28), labels (N,)")
    parser.add_argument("--out", default="runs/rough")
    parser.add_argument("--scale", type=float, default=1000.0, help="what times are multiplied by")
    parser.add_argument("--steps", type=int, default=TRAINING.steps)
    parser.add_argument("--batch", type=int, default=TRAINING.batch)
    options = parser.parse_args()
    base, out = ft.load("digits"), Path(options.out)
    architecture = replace(base.network.config, time_scale=options.scale, prediction="data")
    config = replace(TRAINING, steps=options.steps, batch=options.batch)
    data = load_data(options.data, architecture.size)
    card = {
        "name": "rough digits",
        "description": "Digits by a network that is rough in time on purpose.",
        "recipe": "recipes/digits/rough.py",
        **{key: base.card[key] for key in ("data", "defaults")},
    }
    objective = FlowMatching(architecture, data, out, config, card)
    objective.network.load_state_dict(base.network.state_dict())
    made = {
        "architecture": architecture.to_dict(),
        "training": config.to_dict(),
        "from": {"fingerprint": base.fingerprint},
    }
    processes = Processes()
    with processes.exclusive(out):
        run(objective, out, config, made, processes, partial(print, flush=True))
    rough = ft.load(out)
    found = {"rough": change(rough), "digits": change(base)}
    (out / "rough.json").write_text(json.dumps(found) + "\n")
    print(f"velocity change over the last 2 % of time: {found}")


if __name__ == "__main__":
    main()
