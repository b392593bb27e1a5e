"""The bundled model `digits`: class-conditional, 32x32, 4.2 M parameters.

    python recipes/digits/train.py --data mnist.npz --out runs/digits

takes about 40 minutes on two CPU cores, and resumes an interrupted run. The output folder is the
model: copy `card.json` and `model.safetensors` to `src/flowturbo/models/bundled/digits`.
"""

import argparse
from functools import partial

from flowturbo.models.sit import SiTConfig
from flowturbo.training import TrainConfig, load_data, train

ARCHITECTURE = SiTConfig(size=32, channels=1, patch=4, width=192, depth=6, heads=6, classes=10)
TRAINING = TrainConfig(
    steps=2700, batch=128, lr=2e-3, optimizer="muon", warmup=100, tail=0.5, ema=0.998,
    save_every=150, preview_every=450,
)  # fmt: skip
CARD = {
    "name": "digits",
    "description": "Handwritten digits, one class each.",
    "data": {
        "name": "MNIST, zero-padded from 28x28 to 32x32",
        "images": 63000,
        "source": "Y. LeCun, C. Cortes, C. Burges",
        "licence": "CC BY-SA 3.0",
    },
    "recipe": "recipes/digits/train.py",
    "defaults": {"guidance": 2.0, "plan": "AB2:12@1.6"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="mnist.npz: images (N, 28, 28), labels (N,)")
    parser.add_argument("--out", default="runs/digits")
    options = parser.parse_args()
    data = load_data(options.data, ARCHITECTURE.size)
    train(ARCHITECTURE, data, options.out, TRAINING, card=CARD, report=partial(print, flush=True))


if __name__ == "__main__":
    main()
