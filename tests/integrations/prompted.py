"""A tiny SD3 pipeline with tiny text encoders, which takes prompts; its weights are random."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from integrations.pipelines import EULER, made, sd3
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
PROMPTS = ["a red apple", "a tiger", "two foxes in snow"]


@cache
def encoder() -> Any:
    config = CLIPTextConfig(
        vocab_size=len(TOKENS),
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return made(CLIPTextModelWithProjection(config))


@cache
def t5() -> Any:
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return made(T5EncoderModel(config))


def pipeline() -> Any:
    """Its states are (16, 8, 8) for 16 pixels."""
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    parts = sd3() | {
        "text_encoder": encoder(),
        "text_encoder_2": encoder(),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "text_encoder_3": t5(),
        "tokenizer_3": T5Tokenizer(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -2.0) for c in LETTERS)],
            extra_ids=0,
        ),
    }
    pipe = diffusers.StableDiffusion3Pipeline(scheduler=EULER(shift=3.0), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, steps: int, **given: Any) -> torch.Tensor:
    """The latents of one prompt."""
    call = {"guidance_scale": 3.0, "height": 16, "width": 16, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    options = {**call, **given}
    return pipe(PROMPTS[0], num_inference_steps=steps, generator=generator, **options).images
