"""Tiny real pipelines of every family, random weights, no files and no text encoders.

The prompts are random embeddings, so that tokenizers and processors are not needed. Of ACE-Step,
which takes none, the function that encodes them is replaced; of LTX-2 both autoencoders are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import diffusers
import torch

from flowturbo.images import to_pil
from flowturbo.integrations.diffusers import FlowTurboScheduler

EULER = diffusers.FlowMatchEulerDiscreteScheduler
BATCH, TOKENS, WIDTH = 2, 5, 16
NUMBER = "num_train_timesteps"


@dataclass(frozen=True)
class Cell:
    """A pipeline class with what it is built of and called with."""

    pipeline: str
    parts: str  # the function below that makes the components
    size: int = 16  # pixels
    dynamic: bool = True  # whether the pipeline shifts by the image size
    arguments: dict[str, Any] = field(default_factory=dict)
    image: bool = False
    mask: bool = False
    reference: bool = False  # an image that is not noised
    linear: bool = True  # whether guidance is u + w*(c - u), without memory
    guided: str | None = "guidance_scale"  # the argument of the scale, if there is one
    scheduler: dict[str, Any] = field(default_factory=lambda: {"shift": 3.0})
    attributes: dict[str, Any] = field(default_factory=dict)  # of the pipeline
    patched: dict[str, Any] = field(default_factory=dict)  # of modules, during a call
    off: dict[str, Any] = field(default_factory=dict)  # what else differs without guidance

    def unguided(self) -> Cell:
        """The same without guidance."""
        arguments = self.arguments | ({self.guided: 1.0} if self.guided else {})
        return replace(self, **{"arguments": arguments, **self.off})

    def build(self, scheduler: Any) -> Any:
        """The pipeline, silent; its networks are shared by all of the same parts."""
        cls = getattr(diffusers, self.pipeline)
        pipe = cls(scheduler=scheduler, **globals()[self.parts]())
        pipe.set_progress_bar_config(disable=True)
        for name, value in self.attributes.items():
            setattr(pipe, name, value)
        return pipe

    def call(self, pipe: Any, steps: int, seed: int = 0, **given: Any) -> torch.Tensor:
        """The latents it ends with."""
        arguments = {
            "num_inference_steps": steps,
            **({"height": self.size, "width": self.size} if self.size else {}),
            **({self.guided: 3.0} if self.guided else {}),
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "latent",
            "return_dict": False,
            **embeds(self.parts),
            **self.arguments,
        }
        if self.image:
            arguments |= {"image": random_image(self.size), "strength": 0.6}
        if self.mask:
            arguments |= {"mask_image": mask(self.size)}
        if self.reference:
            arguments |= {"image": to_pil(random_image(16))[0]}
        with torch.no_grad(), ExitStack() as stack:
            for name, value in self.patched.items():
                stack.enter_context(patch(name, value))
            return pipe(**{**arguments, **given})[0]


CELLS = {
    "SD3": Cell("StableDiffusion3Pipeline", "sd3"),
    "SD3 img2img": Cell("StableDiffusion3Img2ImgPipeline", "sd3", image=True),
    "SD3 inpaint": Cell("StableDiffusion3InpaintPipeline", "sd3", image=True, mask=True),
    "Flux": Cell("FluxPipeline", "flux", guided="true_cfg_scale"),
    "Flux img2img": Cell("FluxImg2ImgPipeline", "flux", guided="true_cfg_scale", image=True),
    "Flux inpaint": Cell(
        "FluxInpaintPipeline", "flux", guided="true_cfg_scale", image=True, mask=True
    ),
    "Lumina2": Cell("Lumina2Pipeline", "lumina2", size=64),
    "Qwen-Image": Cell("QwenImagePipeline", "qwen", guided="true_cfg_scale"),
    "Qwen-Image img2img": Cell(
        "QwenImageImg2ImgPipeline", "qwen", guided="true_cfg_scale", image=True
    ),
    "Qwen-Image inpaint": Cell(
        "QwenImageInpaintPipeline", "qwen", guided="true_cfg_scale", image=True, mask=True
    ),
    "Z-Image": Cell("ZImagePipeline", "z_image", off={"arguments": {"guidance_scale": 0.0}}),
    "Z-Image img2img": Cell("ZImageImg2ImgPipeline", "z_image", image=True),
    "Z-Image inpaint": Cell("ZImageInpaintPipeline", "z_image", image=True, mask=True),
    "Sana": Cell(
        "SanaPipeline", "sana", size=32, dynamic=False, arguments={"use_resolution_binning": False}
    ),
    "AuraFlow": Cell("AuraFlowPipeline", "aura_flow", dynamic=False),
    "U-Net": Cell("StableDiffusionPipeline", "unet", dynamic=False),
    "U-Net img2img": Cell("StableDiffusionImg2ImgPipeline", "unet", dynamic=False, image=True),
    "U-Net inpaint": Cell(
        "StableDiffusionInpaintPipeline", "unet", dynamic=False, image=True, mask=True
    ),
}

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
UNIPC = {"scheduler": FLOW | {"flow_shift": 3.0}, "dynamic": False}
FLUX2 = "diffusers.pipelines.flux2.image_processor.Flux2ImageProcessor"
QWEN = "diffusers.pipelines.qwenimage.pipeline_qwenimage"
MORE = {  # editing and video
    "Wan": Cell("WanPipeline", "wan", arguments={"num_frames": 5}, **UNIPC),
    "Wan 2.2": Cell(
        "WanPipeline", "wan22", arguments={"num_frames": 5, "guidance_scale_2": 2.0}, **UNIPC
    ),
    "Wan I2V": Cell(
        "WanImageToVideoPipeline",
        "wan_i2v",
        reference=True,
        arguments={"num_frames": 5},
        attributes={"vae_scale_factor_temporal": 2, "vae_scale_factor_spatial": 2},
        **UNIPC,
    ),
    "Flux2": Cell("Flux2Pipeline", "flux2"),
    "Flux2 Klein": Cell(
        "Flux2KleinPipeline",
        "klein",
        reference=True,
        # else it refuses images below 64 px
        patched={f"{FLUX2}.check_image_input": lambda *_: None},
    ),
    "Qwen-Image-Edit": Cell(
        "QwenImageEditPipeline",
        "qwen_edit",
        guided="true_cfg_scale",
        reference=True,
        # else it scales its image to a million pixels
        patched={f"{QWEN}_edit.calculate_dimensions": lambda area, ratio: (16, 16, None)},
    ),
    "FLUX Kontext": Cell(
        "FluxKontextPipeline",
        "flux",
        guided="true_cfg_scale",
        reference=True,
        arguments={"max_area": 16 * 16, "_auto_resize": False},
    ),
    "FLUX Fill": Cell("FluxFillPipeline", "flux_fill", mask=True, reference=True),
    "LTX": Cell("LTXPipeline", "ltx", size=96, arguments={"num_frames": 9}),
    "LTX condition": Cell(
        "LTXConditionPipeline",
        "ltx",
        size=32,
        dynamic=False,
        arguments={"num_frames": 9},
        scheduler={"shift": 1.0},
    ),
    "HunyuanVideo": Cell(
        "HunyuanVideoPipeline",
        "hunyuan",
        dynamic=False,
        guided="true_cfg_scale",
        arguments={"num_frames": 5},
    ),
    "Chroma": Cell("ChromaPipeline", "chroma"),
    "CogView4": Cell("CogView4Pipeline", "cogview4"),
    "HunyuanImage": Cell(
        "HunyuanImagePipeline",
        "hunyuan_image",
        size=128,
        dynamic=False,
        guided=None,
        off={"parts": "hunyuan_image_off"},
    ),
    "HiDream": Cell("HiDreamImagePipeline", "hidream", attributes={"default_sample_size": 8}),
    "Kandinsky 5": Cell(
        "Kandinsky5T2VPipeline", "kandinsky5", size=32, dynamic=False, arguments={"num_frames": 5}
    ),
    "Mochi": Cell(
        "MochiPipeline",
        "mochi",
        dynamic=False,
        arguments={"num_frames": 7},
        scheduler={"invert_sigmas": True},
    ),
    "LTX2": Cell(
        "LTX2Pipeline",
        "ltx2",
        size=64,
        arguments={
            "num_frames": 9,
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
            "modality_scale": 1.0,
            "audio_modality_scale": 1.0,
            "guidance_rescale": 0.0,
            "audio_guidance_rescale": 0.0,
            "audio_guidance_scale": None,
        },
        attributes={
            "vae": SimpleNamespace(
                latents_mean=torch.zeros(4),
                latents_std=torch.ones(4),
                config=SimpleNamespace(scaling_factor=1.0),
            ),
            "audio_vae": SimpleNamespace(
                latents_mean=torch.zeros(4),
                latents_std=torch.ones(4),
                config=SimpleNamespace(mel_bins=8, latent_channels=2),
            ),
        },
    ),
    "ACE-Step": Cell(
        "AceStepPipeline",
        "ace_step",
        size=0,
        dynamic=False,
        linear=False,
        arguments={"audio_duration": 8.0},
        scheduler={"shift": 1.0, NUMBER: 1},
        attributes={"latents_per_second": 1.0, "encode_prompt": lambda **_: ace_step_prompts()},
    ),
    "SkyReels": Cell(
        "SkyReelsV2DiffusionForcingPipeline",
        "skyreels",
        arguments={"prompt": None, "num_frames": 5, "base_num_frames": 5},
        **UNIPC,
    ),
    "EasyAnimate": Cell("EasyAnimatePipeline", "easy_animate", arguments={"num_frames": 5}),
}


def scheduler(name: str, **config: Any) -> Any:
    """The scheduler of such a pipeline of ``MORE``."""
    cls = diffusers.UniPCMultistepScheduler if "flow_shift" in MORE[name].scheduler else EULER
    return cls(**MORE[name].scheduler, **config)


class Ask(EULER):
    """Asks a pipeline for its guided velocity at a state and a time, in two steps of its loop.

    A copy, as LTX-2 makes one for its sound, asks for the same at the next of the states.
    """

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: torch.Tensor, timestep: object) -> torch.Tensor:
        return sample

    def ask(self, states: Sequence[torch.Tensor | None], t: float) -> Ask:
        scale = self.config.num_train_timesteps
        self.states, self.t, self.copies, self.seen = states, t, [], []
        self.timestep = scale * (t if self.config.invert_sigmas else 1 - t)
        return self

    def __deepcopy__(self, memo: object) -> Ask:
        self.copies.append(Ask.from_config(self.config).ask(self.states[1:], self.t))
        return self.copies[-1]

    def set_timesteps(
        self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None
    ):
        self.timesteps = torch.tensor([self.config.num_train_timesteps, self.timestep]).float()
        self.sigmas = torch.tensor([1.0, 0.5, 0.0])

    def step(self, model_output, timestep, sample, per_token_timesteps=None, **kwargs):
        sign = 1 if per_token_timesteps is None else -1
        self.seen.append((sample.clone(), sign * model_output))
        x = self.states[0] if len(self.seen) == 1 and self.states else None
        return (sample if x is None else x,)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One state, of several (B, ...) as (B, N)."""
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)


def velocity(cell: Cell, **given: Any) -> tuple[Callable[..., torch.Tensor], torch.Tensor]:
    """The field of the pipelines of ``cell``, and the initial noise of its run."""
    options = {k: v for k, v in cell.scheduler.items() if k in ("invert_sigmas", NUMBER)}

    def ask(states, t):
        asking = Ask(**options).ask(states, t)
        cell.call(cell.build(asking), 2, **given)
        return [(each.seen[0][0], each.seen[1][1]) for each in (asking, *asking.copies)]

    starts = [x.float() for x, _ in ask((), 0.5)]

    def field(x, t, cond=None):
        states = [x]
        if len(starts) > 1:
            flat = x.split([start[0].numel() for start in starts], 1)
            states = [part.view_as(start) for part, start in zip(flat, starts, strict=True)]
        u = joined([u for _, u in ask(states, float(t))])
        return u if cell.scheduler.get("invert_sigmas") or cell.parts == "unet" else -u

    return field, joined(starts)


def final(cell: Cell, pipe: Any, steps: int, **given: Any) -> torch.Tensor:
    """The state that a call of ``pipe``, with our scheduler, ends with."""
    states, inner = {}, FlowTurboScheduler.step

    @wraps(inner)
    def step(self, *args, **kwargs):
        out = inner(self, *args, **kwargs)
        states[id(self)] = out[0]
        return out

    with patch.object(FlowTurboScheduler, "step", step):
        cell.call(pipe, steps, **given)
    return joined([*states.values()])


def random_image(size: int) -> torch.Tensor:
    """Images (B, 3, size, size) in [0, 1]."""
    return torch.rand(BATCH, 3, size, size, generator=torch.Generator().manual_seed(7))


def mask(size: int) -> torch.Tensor:
    """(B, 1, size, size): 1, to be painted, in the left half."""
    left = torch.zeros(BATCH, 1, size, size)
    left[..., : size // 2] = 1
    return left


def embeds(parts: str) -> dict[str, Any]:
    """Prompts and negative prompts as the pipelines of ``parts`` take them."""
    made = torch.Generator().manual_seed(3)
    each = torch.randn(2, BATCH, TOKENS, WIDTH, generator=made)
    given: dict[str, Any] = {"prompt_embeds": each[0], "negative_prompt_embeds": each[1]}
    if parts in ("sd3", "flux", "flux_fill", "hunyuan"):
        pooled = torch.randn(2, BATCH, WIDTH, generator=made)
        given |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    if parts in ("lumina2", "sana", "aura_flow", "qwen", "qwen_edit"):
        ones = torch.ones(BATCH, TOKENS, dtype=torch.long)
        name = "embeds_mask" if "qwen" in parts else "attention_mask"
        given |= {f"prompt_{name}": ones, f"negative_prompt_{name}": ones}
    if parts in ("ltx", "ltx2", "hunyuan", "chroma", "mochi", "easy_animate"):
        mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        given |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    if parts in ("flux2", "flux_fill"):
        given = {name: value for name, value in given.items() if "negative" not in name}
    if parts == "sana":
        given["negative_prompt"] = None
    if parts == "hidream":
        given = hidream_embeds(made)
    if parts == "kandinsky5":
        given = kandinsky5_embeds(made)
    if parts.startswith("hunyuan_image"):
        mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
        given |= {
            f"{sign}prompt_embeds_2": value
            for sign, value in zip(("", "negative_"), each.flip(-1), strict=True)
        }
        for sign in ("", "negative_"):
            given |= {f"{sign}prompt_embeds_mask": mask, f"{sign}prompt_embeds_mask_2": mask}
    if parts == "ace_step":
        given = {"prompt": ["a"] * BATCH, "lyrics": ["b"] * BATCH}
    if parts == "z_image":
        given = {name: list(value) for name, value in given.items()}
    return given


def hidream_embeds(made: torch.Generator) -> dict[str, Any]:
    given = {}
    for sign in ("", "negative_"):
        given |= {
            f"{sign}prompt_embeds_t5": torch.randn(BATCH, TOKENS, WIDTH, generator=made),
            f"{sign}prompt_embeds_llama3": torch.randn(2, BATCH, TOKENS, WIDTH, generator=made),
            f"{sign}pooled_prompt_embeds": torch.randn(BATCH, WIDTH, generator=made),
        }
    return given


def kandinsky5_embeds(made: torch.Generator) -> dict[str, Any]:
    given = {}
    for sign in ("", "negative_"):
        given |= {
            f"{sign}prompt_embeds_qwen": torch.randn(BATCH, TOKENS, WIDTH, generator=made),
            f"{sign}prompt_embeds_clip": torch.randn(BATCH, WIDTH, generator=made),
            f"{sign}prompt_cu_seqlens": torch.arange(BATCH + 1) * TOKENS,
        }
    return given


def made(module: Any, seed: int = 1) -> Any:
    """The network with weights that make its output lively, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.6 / p[0].numel() ** 0.5, generator=generator)
        elif name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.05, generator=generator)
    return module.eval().requires_grad_(False)


@cache
def vae(channels: int = 4) -> Any:
    return made(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=1,
            latent_channels=channels,
            shift_factor=0.1,
            scaling_factor=0.9,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
    )


@cache
def qwen_vae() -> Any:
    network = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return made(network)


def absent(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


TEXT = ("text_encoder", "tokenizer")


@cache
def sd3() -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    text = absent(*TEXT, "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    return {"transformer": made(transformer), "vae": vae(16), **text}


@cache
def flux(distilled: bool = False, in_channels: int = 16) -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        guidance_embeds=distilled,
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    text = absent(*TEXT, "text_encoder_2", "tokenizer_2")
    return {"transformer": made(transformer), "vae": vae(), **text}


def flux_fill() -> dict[str, Any]:
    """Its network is shown the masked image (16 channels) and the mask (16) too."""
    return flux(distilled=True, in_channels=48)


@cache
def lumina2() -> dict[str, Any]:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(32, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return {"transformer": made(transformer), "vae": vae(), **absent(*TEXT)}


@cache
def qwen() -> dict[str, Any]:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return {"transformer": made(transformer), "vae": qwen_vae(), **absent(*TEXT)}


@cache
def qwen_edit() -> dict[str, Any]:
    return {**qwen(), "processor": None}


@cache
def z_image() -> dict[str, Any]:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )
    network = made(transformer)
    return {"transformer": network, "vae": vae(), **absent(*TEXT)}


@cache
def sana() -> dict[str, Any]:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return {"transformer": made(transformer), "vae": made(autoencoder), **absent(*TEXT)}


@cache
def aura_flow() -> dict[str, Any]:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    return {"transformer": made(transformer), "vae": vae(), **absent(*TEXT)}


@cache
def unet() -> dict[str, Any]:
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    rest = absent(*TEXT, "safety_checker", "feature_extractor")
    return {"unet": made(network), "vae": vae(), "requires_safety_checker": False, **rest}


@cache
def wan_vae() -> Any:
    network = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return made(network)


VIDEO = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


@cache
def wan() -> dict[str, Any]:
    transformer = made(diffusers.WanTransformer3DModel(**VIDEO))
    return {"transformer": transformer, "vae": wan_vae(), **absent(*TEXT)}


@cache
def wan_i2v() -> dict[str, Any]:
    """Its network is shown a mask (2 channels) and the latents of the first frame (4) too."""
    transformer = made(diffusers.WanTransformer3DModel(**VIDEO | {"in_channels": 10}))
    return {"transformer": transformer, "vae": wan_vae(), **absent(*TEXT)}


@cache
def wan22() -> dict[str, Any]:
    """Two networks, the second of which runs below noise level 0.6."""
    second = made(diffusers.WanTransformer3DModel(**VIDEO), seed=2)
    return {**wan(), "transformer_2": second, "boundary_ratio": 0.6}


@cache
def skyreels() -> dict[str, Any]:
    transformer = made(diffusers.SkyReelsV2Transformer3DModel(**VIDEO, inject_sample_info=False))
    return {"transformer": transformer, "vae": wan_vae(), **absent(*TEXT)}


@cache
def flux2(distilled: bool = True) -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        guidance_embeds=distilled,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=16,
    )
    return {"transformer": made(transformer), "vae": made(autoencoder), **absent(*TEXT)}


def klein() -> dict[str, Any]:
    return flux2(distilled=False)


@cache
def ltx() -> dict[str, Any]:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        num_layers=1,
        caption_channels=WIDTH,
    )
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return {"transformer": made(transformer), "vae": made(autoencoder), **absent(*TEXT)}


@cache
def hunyuan() -> dict[str, Any]:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    text = absent(*TEXT, "text_encoder_2", "tokenizer_2")
    return {"transformer": made(transformer), "vae": made(autoencoder), **text}


@cache
def chroma() -> dict[str, Any]:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return {"transformer": made(transformer), "vae": vae(), **absent(*TEXT)}


@cache
def cogview4() -> dict[str, Any]:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    return {"transformer": made(transformer), "vae": vae(), **absent(*TEXT)}


@cache
def mochi() -> dict[str, Any]:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=WIDTH,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    return {"transformer": made(transformer), "vae": vae(), **absent(*TEXT)}


@cache
def easy_animate() -> dict[str, Any]:
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        patch_size=2,
        add_norm_text_encoder=False,
    )
    autoencoder = diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=1,
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
    )
    return {"transformer": made(transformer), "vae": made(autoencoder), **absent(*TEXT)}


def hunyuan_image_with(scale: float) -> dict[str, Any]:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
    )
    parts = absent(*TEXT, "text_encoder_2", "tokenizer_2", "vae")
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=scale)
    return {"transformer": made(transformer), "guider": guider, **parts}


@cache
def hunyuan_image() -> dict[str, Any]:
    """Its guidance is a component; its default has a memory, and this one has not."""
    return hunyuan_image_with(3.0)


@cache
def hunyuan_image_off() -> dict[str, Any]:
    return hunyuan_image_with(1.0)


@cache
def hidream() -> dict[str, Any]:
    """All of its experts are active, since a choice among them jumps."""
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=WIDTH,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    text = [f"{part}{i}" for part in TEXT for i in ("", "_2", "_3", "_4")]
    return {"transformer": made(transformer), "vae": vae(), **absent(*text)}


@cache
def kandinsky5() -> dict[str, Any]:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 4),
    )
    parts = absent(*TEXT, "text_encoder_2", "tokenizer_2")
    return {"transformer": made(transformer), "vae": hunyuan()["vae"], **parts}


@cache
def ltx2() -> dict[str, Any]:
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        caption_channels=WIDTH,
        num_layers=1,
        rope_double_precision=False,
    )
    connectors = diffusers.pipelines.ltx2.connectors.LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
    )
    parts = absent(*TEXT, "vae", "audio_vae", "vocoder")
    return {"transformer": made(transformer), "connectors": made(connectors), **parts}


@cache
def ace_step() -> dict[str, Any]:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    transformer = diffusers.AceStepTransformer1DModel(
        **sizes, num_hidden_layers=1, in_channels=12, audio_acoustic_hidden_dim=4
    )
    encoder = diffusers.pipelines.ace_step.modeling_ace_step.AceStepConditionEncoder(
        **sizes,
        text_hidden_dim=WIDTH,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    parts = absent(*TEXT, "vae")
    return {"transformer": made(transformer), "condition_encoder": made(encoder), **parts}


def ace_step_prompts() -> tuple[torch.Tensor, ...]:
    """Prompts and lyrics, each with its mask."""
    made, ones = torch.Generator().manual_seed(3), torch.ones(BATCH, TOKENS, dtype=torch.long)
    text, lyrics = torch.randn(2, BATCH, TOKENS, WIDTH, generator=made)
    return text, ones, lyrics, ones
