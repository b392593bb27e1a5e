"""The contrast to `digits`: a diffusion model that predicts the noise, on the same digits.

    python recipes/digits/diffusion.py --data mnist.npz --out runs/digits-diffusion

trains the network of `digits`, for as many steps and with the same optimizer, to predict the noise
along the variance-preserving path of DDPM and DiT. A step costs as much as one of `digits`, and an
interrupted run is resumed. The folder is a model like any other, whose velocity follows from the
noise; it is not bundled. Then

    flowturbo analyze --model digits --compare-model runs/digits-diffusion -o analysis

compares their trajectories.
"""

import argparse
from dataclasses import replace
from functools import partial

from train import ARCHITECTURE, CARD, TRAINING

from flowturbo.training import load_data, train

NETWORK = replace(ARCHITECTURE, prediction="noise")
HOW = replace(TRAINING, times="diffusion")
TOLD = {
    **CARD,
    "name": "digits-diffusion",
    "description": "Handwritten digits by a diffusion model that predicts the noise.",
    "recipe": "recipes/digits/diffusion.py",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="mnist.npz: images (N, 28, 28), labels (N,)")
    parser.add_argument("--out", default="runs/digits-diffusion")
    options = parser.parse_args()
    data = load_data(options.data, NETWORK.size)
    train(NETWORK, data, options.out, HOW, card=TOLD, report=partial(print, flush=True))


if __name__ == "__main__":
    main()
