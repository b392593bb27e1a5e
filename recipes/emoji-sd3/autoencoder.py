"""The autoencoder of `emoji-sd3`: pictures of 128 x 128 to latents of 16 x 16 x 16 and back.

    python recipes/emoji/data.py --size 128 --out emoji-data128
    python recipes/emoji-sd3/autoencoder.py --data emoji-data128 --out runs/emoji-sd3/vae

An `AutoencoderKL` of diffusers, trained as `recipes/emoji/autoencoder.py` trains its own: without a
Kullback-Leibler term, so its posterior is made a point. It goes on where it was interrupted; the
folder holds the autoencoder, with its scale and shift, for ``from_pretrained``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from flowturbo.train import TrainConfig
from flowturbo.train.loop import run

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
import autoencoder as recipe  # type: ignore[import-not-found]

CHANNELS = 16
TRAINING = TrainConfig(
    steps=4000, batch=16, lr=1e-3, warmup=200, tail=0.4, ema=0.998, weight_decay=1e-4,
    save_every=200, preview_every=1000,
)  # fmt: skip
CONFIG: dict[str, Any] = dict(
    in_channels=3, out_channels=3, latent_channels=CHANNELS, block_out_channels=(24, 48, 96, 96),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1, norm_num_groups=8, sample_size=128, mid_block_add_attention=False,
    use_quant_conv=False, use_post_quant_conv=False, force_upcast=False,
)  # fmt: skip


def make() -> AutoencoderKL:
    """A new autoencoder whose posterior has no width."""
    torch.manual_seed(TRAINING.seed)
    vae = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        vae.encoder.conv_out.weight[CHANNELS:] = 0
        vae.encoder.conv_out.bias[CHANNELS:] = -30
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made, of 128 px")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-sd3/vae"))
    options = parser.parse_args()

    def save(vae: AutoencoderKL, pictures: Tensor, training: dict[str, Any]) -> None:
        z = torch.cat([vae.encode(x).latent_dist.mean for x in recipe.batches(pictures[::20])])
        scale = {"shift_factor": float(z.mean()), "scaling_factor": float(1 / z.std())}
        vae.register_to_config(**scale)
        vae.save_pretrained(options.out)

    vae = make()
    network = recipe.Reconstruction(vae, vae.encoder, vae.decoder, pool=8)
    there_and_back = lambda vae, x: vae.decode(vae.encode(x).latent_dist.mean).sample
    objective = recipe.Objective(
        network, recipe.split(options.data, 128), (CHANNELS, 16, 16), TRAINING, options.out, save,
        there_and_back,
    )  # fmt: skip
    made = {"training": asdict(TRAINING), "autoencoder": CONFIG}
    report = lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True)
    run(objective, options.out, TRAINING, made, report)


if __name__ == "__main__":
    main()
