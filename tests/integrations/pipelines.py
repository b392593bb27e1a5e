"""Tiny real pipelines of every family, random weights, no files and no text encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch

EULER = diffusers.FlowMatchEulerDiscreteScheduler
BATCH, TOKENS, WIDTH = 2, 5, 16


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
    guided: str = "guidance_scale"

    def build(self, scheduler: Any) -> Any:
        """The pipeline, silent; its networks are shared by all of the same parts."""
        cls = getattr(diffusers, self.pipeline)
        pipe = cls(scheduler=scheduler, **globals()[self.parts]())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, steps: int, seed: int = 0, **given: Any) -> torch.Tensor:
        """The latents it ends with."""
        arguments = {
            "num_inference_steps": steps,
            "height": self.size,
            "width": self.size,
            self.guided: 3.0,
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
        with torch.no_grad():
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
    "Z-Image": Cell("ZImagePipeline", "z_image"),
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
WITHOUT_FAMILY = {  # networks of no family in FAMILIES
    "Wan": Cell("WanPipeline", "wan", dynamic=False, arguments={"num_frames": 5}),
    "Flux2": Cell("Flux2Pipeline", "flux2"),
    "LTX": Cell("LTXPipeline", "ltx", size=32, arguments={"num_frames": 9}),
    "LTX condition": Cell(
        "LTXConditionPipeline", "ltx", size=32, dynamic=False, arguments={"num_frames": 9}
    ),
    "HunyuanVideo": Cell(
        "HunyuanVideoPipeline", "hunyuan", dynamic=False, arguments={"num_frames": 5}
    ),
    "Chroma": Cell("ChromaPipeline", "chroma"),
    "CogView4": Cell("CogView4Pipeline", "cogview4"),
    "Mochi": Cell("MochiPipeline", "mochi", dynamic=False, arguments={"num_frames": 7}),
    "SkyReels": Cell(
        "SkyReelsV2DiffusionForcingPipeline",
        "skyreels",
        dynamic=False,
        arguments={"prompt": None, "num_frames": 5, "base_num_frames": 5},
    ),
    "EasyAnimate": Cell("EasyAnimatePipeline", "easy_animate", arguments={"num_frames": 5}),
}


def scheduler(name: str, **config: Any) -> Any:
    """The scheduler of such a pipeline of ``WITHOUT_FAMILY``."""
    if name in ("Wan", "SkyReels"):
        return diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=3.0, **config)
    own = {"Mochi": {"invert_sigmas": True}, "LTX condition": {"shift": 1.0}}
    return EULER(**own.get(name, {"shift": 3.0}), **config)


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
    if parts in ("sd3", "flux", "hunyuan"):
        pooled = torch.randn(2, BATCH, WIDTH, generator=made)
        given |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    if parts in ("lumina2", "sana", "aura_flow", "qwen"):
        ones = torch.ones(BATCH, TOKENS, dtype=torch.long)
        name = "embeds_mask" if parts == "qwen" else "attention_mask"
        given |= {f"prompt_{name}": ones, f"negative_prompt_{name}": ones}
    if parts in ("ltx", "hunyuan", "chroma", "mochi", "easy_animate"):
        mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
        given |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    if parts in ("flux2", "hunyuan"):
        given = {name: value for name, value in given.items() if "negative" not in name}
    if parts == "sana":
        given["negative_prompt"] = None
    if parts == "z_image":
        given = {name: list(value) for name, value in given.items()}
    return given


def made(module: Any) -> Any:
    """The network with weights that make its output lively, the same each time."""
    generator = torch.Generator().manual_seed(1)
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
def flux(distilled: bool = False) -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        guidance_embeds=distilled,
        in_channels=16,
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
def skyreels() -> dict[str, Any]:
    transformer = made(diffusers.SkyReelsV2Transformer3DModel(**VIDEO, inject_sample_info=False))
    return {"transformer": transformer, "vae": wan_vae(), **absent(*TEXT)}


@cache
def flux2() -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
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
