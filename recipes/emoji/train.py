"""The bundled model `emoji`: text-to-image, 32x32.

    python recipes/emoji/data.py --out emoji-data
    python recipes/emoji/train.py --data emoji-data --out runs/emoji

goes on where it was interrupted. The folder it leaves is the model: copy `card.json` and
`model.safetensors` to `src/flowturbo/models/bundled/emoji`.

    python recipes/emoji/train.py --data emoji-data --model emoji64 --out runs/emoji64

is one of 64x64 pixels and 31 million parameters, for a GPU.

    python recipes/emoji/train.py --data emoji-data --compare 600 --record architectures.json

trains each of the architectures below for 600 seconds instead and writes their errors.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import aliases, canonical, caption, load, weights

from flowturbo.files import write_json
from flowturbo.models.sit import SiTConfig
from flowturbo.models.text import Tokenizer, build_vocabulary
from flowturbo.train import TrainConfig, train
from flowturbo.train.loop import FlowMatching, Run
from flowturbo.train.objectives import draw_times, flow_loss

LENGTH = 16
VOCABULARY = 4000
CAPTIONS = 24  # drawn for each picture, once
BASE: dict[str, Any] = dict(
    size=32, channels=3, patch=4, width=192, depth=12, heads=6, text_length=LENGTH
)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "patch 4": {},
    "convolutional stem and head": {"stem": "conv"},
    "shared modulation": {"modulation": "shared"},
    "clean-image prediction": {"prediction": "data"},
}
CHOSEN: dict[str, Any] = {"modulation": "shared"}  # the lowest error, benchmarks/records
TRAINING = TrainConfig(
    steps=4300, batch=128, lr=2e-3, optimizer="muon", warmup=150, tail=0.4, ema=0.999,
    save_every=100, preview_every=500,
)  # fmt: skip

LARGE: dict[str, Any] = dict(size=64, width=448, depth=11, heads=7)  # 256 tokens
LARGE_TRAINING = replace(TRAINING, steps=20_000, batch=256, lr=1e-3, save_every=500)


class EmojiData:
    """Pictures with random captions, drawn by the weights of `data.weights`; none held out."""

    def __init__(self, folder: str | Path, size: int = 32, *, held: bool = False) -> None:
        images, concept, style, about = load(folder, size)
        pairs = {(c, s) for c, s in about["held"]}
        kept = [(int(c), int(s)) in pairs for c, s in zip(concept, style, strict=True)]
        rows = np.flatnonzero(np.array(kept) == held)
        self.concepts, self.styles, self.about = about["concepts"], list(about["styles"]), about
        self.concept, self.style = concept[rows], style[rows]
        self.images = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).contiguous()
        self.weights = torch.from_numpy(weights(self.concepts, self.concept, self.style))
        rng = random.Random(0)
        texts = [
            [caption(self.concepts[c], self.styles[s], rng) for _ in range(CAPTIONS)]
            for c, s in zip(self.concept, self.style, strict=True)
        ]
        every = [canonical(c, s) for c in self.concepts for s in self.styles]
        vocabulary = build_vocabulary([*every, *(t for ts in texts for t in ts)], VOCABULARY)
        self.tokenizer = Tokenizer(vocabulary, LENGTH, aliases(self.concepts))
        self.cond = torch.stack([self._encode(t) for t in texts])
        groups: dict[str, list[str]] = {}
        for c in sorted(self.concepts, key=lambda c: (not c["group"], c["group"])):
            groups.setdefault(c["group"] or "Other", []).append(c["name"])
        self.condition = {
            "kind": "text",
            "styles": self.styles,
            "groups": groups,
            "tokenizer": self.tokenizer.to_json(),
        }

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def batch(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        which = torch.randint(CAPTIONS, (n,), generator=generator)
        return self.images[rows].float() / 127.5 - 1, self.cond[rows, which]

    def examples(self, n: int) -> torch.Tensor:
        """The names held out, in every style."""
        names = list(self.about["held_names"])
        by_name = {c["name"]: c for c in self.concepts}
        prompts = [canonical(by_name[m], s) for s in self.styles for m in names]
        return self.tokenizer.encode([prompts[i % len(prompts)] for i in range(n)])

    def _encode(self, texts: list[str]) -> torch.Tensor:
        """Captions to ids; a caption too long for the network loses its first words."""
        rows = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        wide = Tokenizer(self.tokenizer.vocabulary, 4 * LENGTH)
        for row, text in zip(rows, texts, strict=True):
            try:
                ids = wide.encode([text])[0]
            except ValueError:  # another name, alone, of no known word: trained as no condition
                continue
            ids = ids[ids != 0][-LENGTH:]
            row[: len(ids)] = ids
        return rows


def card(data: EmojiData, name: str = "emoji") -> dict[str, Any]:
    return {
        "name": name,
        "description": "Emoji from words, in four styles.",
        "data": {
            "name": "Noto Emoji, Fluent Emoji, Fluent Emoji Flat, FxEmojis, rendered on white",
            "images": len(data),
            "packages": {
                k: f"{p['version']}, {p['licence']}" for k, p in data.about["packages"].items()
            },
            "licence": "Apache-2.0 (Noto, FxEmojis), MIT (Fluent)",
        },
        "recipe": "recipes/emoji/train.py",
        "defaults": {"guidance": 2.0, "plan": "AB2:12@1.6"},
    }


def architecture(data: EmojiData, **changes: Any) -> SiTConfig:
    return SiTConfig(**{**BASE, "vocabulary": len(data.tokenizer), **changes})


def compare(data: EmojiData, held: EmojiData, seconds: float, record: Path) -> None:
    """Train each architecture for as many steps as take ``seconds`` on this machine when idle.

    Steps are timed first, in turns, and the fastest of five counts, so that other work on the
    machine does not favour one. An interrupted comparison goes on with the next architecture.
    """
    if record.is_file():
        made = json.loads(record.read_text())
    else:
        made = {
            "conditions": {
                "seconds": seconds, "batch": 128, "optimizer": "muon", "lr": 2e-3, "ema": 0.995,
                "torch": torch.__version__, "threads": torch.get_num_threads(),
                "error": "flow-matching loss of the averaged weights, uniform times, same noise",
            },
            "seconds_a_step": time_steps(data),
            "results": {},
        }  # fmt: skip
        write_json(record, made)
    for name, changes in ARCHITECTURES.items():
        if name in made["results"]:
            continue
        steps = int(seconds / made["seconds_a_step"][name])
        with tempfile.TemporaryDirectory() as folder:
            run = start(data, changes, steps, Path(folder))
            run.loop(lambda step, loss: print(f"{step} {loss:.4f}", flush=True))
            network = run.average.module
        made["results"][name] = {
            "parameters_m": round(sum(p.numel() for p in network.parameters()) / 1e6, 2),
            "steps": steps,
            "error_seen": evaluate(network, data),
            "error_held_out": evaluate(network, held, data.tokenizer),
        }
        write_json(record, made)
        print(name, made["results"][name], flush=True)
        torch._dynamo.reset()


def start(data: EmojiData, changes: dict[str, Any], steps: int, out: Path) -> Run:
    options = TrainConfig(
        steps=steps, batch=128, lr=2e-3, optimizer="muon", warmup=100, ema=0.995, tail=0.3,
        save_every=steps, preview_every=0,
    )  # fmt: skip
    return Run(
        FlowMatching(architecture(data, **changes), data, out, options, {}), out, options, {}
    )


def time_steps(data: EmojiData) -> dict[str, float]:
    """Seconds of a training step of each architecture: the fastest of five, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {n: start(data, c, 9, Path(folder, n)) for n, c in ARCHITECTURES.items()}
        best = dict.fromkeys(runs, float("inf"))
        for turn in range(6):
            for name, run in runs.items():
                begin = time.perf_counter()
                run.advance()
                if turn:  # the first compiles
                    best[name] = min(best[name], time.perf_counter() - begin)
    torch._dynamo.reset()
    return {n: round(t, 4) for n, t in best.items()}


@torch.no_grad()
def evaluate(network: Any, data: EmojiData, tokenizer: Tokenizer | None = None) -> float:
    """Flow-matching loss on fixed pictures, canonical captions, noise and times."""
    generator = torch.Generator().manual_seed(12345)
    rows = torch.randperm(len(data), generator=generator)[:256]
    texts = [canonical(data.concepts[data.concept[i]], data.styles[data.style[i]]) for i in rows]
    cond = (tokenizer or data.tokenizer).encode(texts).repeat(4, 1)
    x1 = (data.images[rows].float() / 127.5 - 1).repeat(4, 1, 1, 1)
    x0 = torch.randn(x1.shape, generator=generator)
    t = draw_times(len(x1), "uniform", generator)
    losses = [
        flow_loss(network, *(a[i : i + 128] for a in (x0, x1, t, cond)))
        for i in range(0, 1024, 128)
    ]
    return round(float(torch.stack(losses).mean()), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    parser.add_argument("--model", choices=("emoji", "emoji64"), default="emoji")
    parser.add_argument("--steps", type=int, help="by default the model's own")
    parser.add_argument("--out", help="runs/MODEL by default")
    parser.add_argument("--compare", type=float, help="seconds for each architecture")
    parser.add_argument("--record", default="architectures.json")
    options = parser.parse_args()
    large = options.model == "emoji64" and not options.compare
    data = EmojiData(options.data, LARGE["size"] if large else BASE["size"])
    if options.compare:
        compare(data, EmojiData(options.data, held=True), options.compare, Path(options.record))
        return
    chosen, training = (CHOSEN | LARGE, LARGE_TRAINING) if large else (CHOSEN, TRAINING)
    if options.steps:
        training = replace(training, steps=options.steps)
    report = lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True)
    out, about = options.out or f"runs/{options.model}", card(data, options.model)
    train(architecture(data, **chosen), data, out, training, card=about, report=report)


if __name__ == "__main__":
    main()
