"""A flow of point clouds: six kinds of solids, 256 points on the surface of each.

    python recipes/shapes/train.py --out runs/shapes

generates its own data, and takes half an hour on two CPU cores. The network is plain PyTorch; only
the loss is from this library.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import Cloud, clouds
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowturbo.files import atomic_write
from flowturbo.training.devices import autocast
from flowturbo.training.objectives import draw_times, drop_condition, flow_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/shapes", type=Path)
    parser.add_argument("--steps", default=4000, type=int)
    parser.add_argument("--batch", default=64, type=int)
    options = parser.parse_args()
    torch.manual_seed(0)
    network, generator = Cloud(), torch.Generator().manual_seed(0)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, options.steps, pct_start=0.05)
    forward = torch.compile(network)
    for step in range(1, options.steps + 1):
        x1, label = clouds(options.batch, generator)
        label = drop_condition(label, network.null_condition(label), 0.1, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        t = draw_times(len(x1), "logit-normal", generator)
        with autocast(x1.device, True):
            loss = flow_loss(forward, x0, x1, t, label)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        if step % 100 == 0 or step == options.steps:
            print(f"{step} of {options.steps}, loss {loss.item():.4f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out / "model.safetensors") as path:
        save_file(average.module.state_dict(), path)
    print(f"-> {options.out / 'model.safetensors'}")


if __name__ == "__main__":
    main()
