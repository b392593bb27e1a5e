"""A small diffusers text-to-image pipeline: emoji of 128 x 128 in five styles.

    python recipes/emoji-sd3/autoencoder.py --data emoji-data128 --out runs/emoji-sd3/autoencoder
    python recipes/emoji-sd3/train.py --data emoji-data128 --out runs/emoji-sd3

trains an `SD3Transformer2DModel` of 11 million parameters on latents, and with it the text
encoder, a small `CLIPTextModelWithProjection` that is used as both of the pipeline's encoders. An
interrupted run is resumed. The result is ``pipeline``, a folder for
``StableDiffusion3Pipeline.from_pretrained``.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention import JointAttention
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import ByteLevelBPETokenizer, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from flowturbo.images import image_grid, save_png
from flowturbo.path import interpolate, velocity
from flowturbo.training import TrainConfig
from flowturbo.training.devices import to_device
from flowturbo.training.loop import run
from flowturbo.training.objectives import draw_times
from flowturbo.training.processes import Processes

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
from augment import augment
from data import canonical, caption, load, weights

CAPTIONS, LENGTH, VOCABULARY = 24, 20, 3000
COPIES = 4  # encoded of each picture: as it is, and moved a little
REPEATS = (1, 16, 77, 256)  # how often the pipeline may repeat the token of zeros
TRAINING = TrainConfig(
    steps=11_000, batch=128, lr=2e-3, optimizer="muon", warmup=200, tail=0.4, ema=0.999,
    save_every=250, preview_every=1000,
)  # fmt: skip
TEXT: dict[str, Any] = dict(
    hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=LENGTH, projection_dim=96, hidden_act="gelu",
)  # fmt: skip
TRANSFORMER: dict[str, Any] = dict(
    sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=8,
    attention_head_dim=32, num_attention_heads=6, joint_attention_dim=192,
    caption_projection_dim=192, pooled_projection_dim=192, pos_embed_max_size=8,
    qk_norm="rms_norm",
)  # fmt: skip


class Velocity(nn.Module):
    """A velocity field on latents: (B, 16, 16, 16), times from noise to data, token ids (B, L)."""

    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__()
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=vocabulary,
                bos_token_id=end - 1,
                eos_token_id=end,
                pad_token_id=end,
                **TEXT,
            )
        )
        self.transformer = SD3Transformer2DModel(**TRANSFORMER)
        self.attention = JointAttention()
        self.transformer.set_attn_processor(self.attention)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        said = self.text(ids, output_hidden_states=True)
        words, pooled = said.hidden_states[-2], said.text_embeds
        context = torch.cat([words, words], -1)  # the pipeline has two such encoders
        zeros = torch.zeros_like(context[:, :1])  # and none of its third
        out = self.transformer(
            hidden_states=x,
            timestep=1000 * (1 - t),
            encoder_hidden_states=torch.cat([context, zeros], 1),
            pooled_projections=torch.cat([pooled, pooled], -1),
            return_dict=False,
        )[0]
        return -out


def silent() -> T5EncoderModel:
    """A third text encoder that gives zeros, as the pipeline gives without one; it cannot be loaded
    without one unless it is told so.
    """
    config = T5Config(
        vocab_size=VOCABULARY + 2,
        d_model=TRANSFORMER["joint_attention_dim"],
        d_kv=8,
        d_ff=8,
        num_layers=1,
        num_heads=1,
    )
    encoder = T5EncoderModel(config)
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder


def tokenizer_of(captions: list[str]) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind with pairs of letters joined as they are frequent here."""
    trained = ByteLevelBPETokenizer(lowercase=True, end_of_word_suffix="</w>")
    trained._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    special = ["<|startoftext|>", "<|endoftext|>"]
    trained.train_from_iterator(captions, vocab_size=VOCABULARY, min_frequency=2)
    import json

    made = json.loads(trained._tokenizer.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*made["vocab"], *special])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(m) for m in made["merges"]], model_max_length=LENGTH
    )


class Emoji:
    """Latents of pictures, moved a little or not, with captions drawn for each."""

    def __init__(self, folder: str | Path, vae: AutoencoderKL, kept: Path) -> None:
        images, concept, style, about = load(folder, 128)
        held = {tuple(pair) for pair in about["held"]}
        rows = [p not in held for p in zip(concept.tolist(), style.tolist(), strict=True)]
        images, concept, style = images[rows], concept[rows], style[rows]
        self.about, self.styles, concepts = about, list(about["styles"]), about["concepts"]
        self.weights = torch.from_numpy(weights(concepts, concept, style))
        rng = random.Random(0)
        pairs = list(zip(concept.tolist(), style.tolist(), strict=True))
        texts = [
            [caption(concepts[c], self.styles[s], rng) for _ in range(CAPTIONS)] for c, s in pairs
        ]
        self.tokenizer = tokenizer_of([t for some in texts for t in some])
        self.ids = torch.stack([self.encode(some) for some in texts])
        self.null = self.encode([""])
        if kept.is_file():
            self.latents = torch.load(kept, weights_only=True)
        else:
            self.latents = _encode(torch.from_numpy(images).permute(0, 3, 1, 2), vae)
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.latents, kept)

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids (B, LENGTH)."""
        return self.tokenizer(
            texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        copy = torch.randint(COPIES, (n,), generator=generator)
        which = torch.randint(CAPTIONS, (n,), generator=generator)
        dropped = torch.rand(n, 1, generator=generator) < TRAINING.dropout
        return self.latents[rows, copy].float(), torch.where(
            dropped, self.null, self.ids[rows, which]
        )

    def prompts(self) -> list[str]:
        """The names held out, in every style."""
        named = {c["name"]: c for c in self.about["concepts"]}
        return [canonical(named[n], s) for s in self.styles for n in self.about["held_names"]]


@torch.no_grad()
def _encode(pictures: Tensor, vae: AutoencoderKL) -> Tensor:
    """(N, COPIES, 16, 16, 16), half precision."""
    generator, parts = torch.Generator().manual_seed(0), []
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    for part in pictures.split(64):
        x = part.float() / 127.5 - 1
        copies = [x, *(augment(x, generator, share=1.0) for _ in range(COPIES - 1))]
        z = [(vae.encode(c).latent_dist.mean - shift) * scale for c in copies]
        parts.append(torch.stack(z, 1).half())
        print(f"encoded {sum(map(len, parts))} of {len(pictures)}", flush=True)
    return torch.cat(parts)


class Objective:
    """What `flowturbo.training.loop.run` needs."""

    def __init__(self, data: Emoji, vae: AutoencoderKL, out: Path) -> None:
        self.data, self.vae, self.out = data, vae, out
        torch.manual_seed(TRAINING.seed)
        end = data.tokenizer.eos_token_id
        self.network = Velocity(len(data.tokenizer), end)

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        x1, ids = self.data.batch(n, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        t = draw_times(len(x1), TRAINING.times, generator)
        which = int(torch.randint(len(REPEATS), (1,), generator=generator))
        return x0, x1, t, ids, REPEATS[which]

    def loss(
        self,
        forward: Any,
        batch: tuple[Tensor, Tensor, Tensor, Tensor, int],
        device: torch.device,
    ) -> Tensor:
        x0, x1, t, ids = (to_device(a, device) for a in batch[:4])
        self.network.attention.repeats = batch[4]
        v = forward(interpolate(x0, x1, t), t, ids)
        return (v.float() - velocity(x0, x1)).square().mean()

    def pipeline(self, network: Any) -> StableDiffusion3Pipeline:
        """The averaged network as a pipeline."""
        fresh = SD3Transformer2DModel(**TRANSFORMER)  # with diffusers' own attention
        fresh.load_state_dict(network.transformer.state_dict())
        pipe = StableDiffusion3Pipeline(
            transformer=fresh.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.6),
            vae=self.vae,
            text_encoder=network.text.eval(),
            tokenizer=self.data.tokenizer,
            text_encoder_2=network.text,
            tokenizer_2=self.data.tokenizer,
            text_encoder_3=silent(),
            tokenizer_3=self.data.tokenizer,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def export(self, network: Any, training: dict[str, Any]) -> None:
        pipe = self.pipeline(network)
        for part in (pipe.transformer, pipe.vae):  # which diffusers loads in float32
            part.half()
        pipe.save_pretrained(self.out / "pipeline")
        self.vae.float()

    @torch.no_grad()
    def preview(self, network: Any, step: int) -> None:
        pipe, images = self.pipeline(network), []
        for i, prompt in enumerate(self.data.prompts()):
            generator = torch.Generator().manual_seed(i)
            images += pipe(
                prompt, num_inference_steps=20, guidance_scale=3, generator=generator
            ).images
        page = image_grid(images, len(self.data.about["held_names"]))
        save_png(page, self.out / "previews" / f"step-{step:08d}.png", {"step": str(step)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made, of 128 px")
    parser.add_argument("--vae", type=Path, default=Path("runs/emoji-sd3/autoencoder/vae"))
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-sd3"))
    options = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(options.vae).eval().requires_grad_(False)
    data = Emoji(options.data, vae, options.out / "latents.pt")
    made = {"training": asdict(TRAINING), "transformer": TRANSFORMER, "text": TEXT}
    processes = Processes()
    with processes.exclusive(options.out):
        run(
            Objective(data, vae, options.out),
            options.out,
            TRAINING,
            made,
            processes,
            partial(print, flush=True),
        )


if __name__ == "__main__":
    main()
