"""A tiny text-to-image pipeline with a text encoder, which takes prompts; its weights are random.

It is one of a U-Net, whose prompts have few tokens: the calls of its network are fast.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
from integrations.pipelines import EULER, WIDTH, made, unet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
PROMPTS = ["a red apple", "a tiger", "two foxes in snow"]


@cache
def encoder() -> Any:
    config = CLIPTextConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return made(CLIPTextModel(config))


def pipeline() -> Any:
    """Its states are (4, 8, 8), of 16 pixels."""
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    parts = unet() | {"text_encoder": encoder(), "tokenizer": tokenizer}
    pipe = diffusers.StableDiffusionPipeline(scheduler=EULER(shift=3.0), **parts)
    pipe.set_progress_bar_config(disable=True)
    return smooth(pipe, "unet")


def smooth(pipe: Any, name: str) -> Any:
    """``pipe`` with a network of its own that changes slowly in time, as trained ones do."""
    network = copy.deepcopy(getattr(pipe, name))
    for key, p in network.named_parameters():
        if "time" in key and p.ndim > 1:
            p.mul_(0.1)
    setattr(pipe, name, network)
    return pipe
