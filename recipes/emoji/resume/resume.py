"""A run of train.py from the averaged weights in this folder, of the last step before the decay.

    python recipes/emoji/resume/resume.py --out runs/emoji --steps 6500
    python recipes/emoji/train.py --data emoji-data --out runs/emoji

With more steps, those of TRAINING in train.py, the learning rate stays high for longer. The folder
goes when the model is bundled.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from flowturbo.stores import write_tensors

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="the run, a new folder")
    parser.add_argument("--steps", type=int, default=6500, help="of the whole run")
    options = parser.parse_args()
    out = Path(options.out)
    if out.exists():
        parser.error(f"--out {out}: exists already; take a new folder")
    made = json.loads((HERE / "config.json").read_text("utf-8"))
    made["training"]["steps"] = options.steps
    step = json.loads((HERE / "step.json").read_text("utf-8"))["step"]
    weights = {k: v.float() for k, v in load_file(HERE / "model.safetensors").items()}
    tensors = {f"network/{k}": v.clone() for k, v in weights.items()}
    tensors |= {f"average/module.{k}": v for k, v in weights.items()}
    tensors["average/n_averaged"] = torch.tensor(step)
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(made, indent=1), "utf-8")
    target = out / "checkpoints" / f"step-{step:08d}.safetensors"
    write_tensors(target, tensors, json.dumps(made, sort_keys=True))
    print(f"{target}: goes on at step {step}, with fresh optimizers")


if __name__ == "__main__":
    main()
