"""Tiny autoencoders of diffusers with weights that make pictures lively, and folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch


def kl(**changes: Any) -> Any:
    """An ``AutoencoderKL`` of 4 channels at half the size."""
    config = dict(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    return _lively(diffusers.AutoencoderKL(**{**config, **changes}))


def tiny(**changes: Any) -> Any:
    """An ``AutoencoderTiny`` of 4 channels at half the size."""
    config = dict(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return _lively(diffusers.AutoencoderTiny(**{**config, **changes}))


def folder(path: Path, vae: Any) -> Path:
    """``path``, with ``vae`` in it."""
    vae.save_pretrained(path)
    return path


def _lively(network: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for name, p in sorted(network.named_parameters()):
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.6 / p[0].numel() ** 0.5, generator=generator)
        elif name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.2, generator=generator)
    return network.eval().requires_grad_(False)
