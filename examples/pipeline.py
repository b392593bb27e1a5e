"""A diffusers pipeline: a second-order scheduler, then a plan tuned to its network.

The pipeline is a tiny one with random weights, so that nothing is downloaded; for a real one only
``pipeline`` changes.
"""

import diffusers
import torch

import flowturbo as ft
from flowturbo.integrations.diffusers import FlowTurboScheduler, disable, enable, summary


def pipeline():
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipe = diffusers.AuraFlowPipeline(**parts, transformer=transformer, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main():
    pipe = pipeline()
    x0, text = torch.randn(36, 4, 8, 8), torch.randn(36, 5, 16)
    mask = torch.ones(36, 5)

    def draw(steps):
        call = {"prompt_embeds": text[:4], "prompt_attention_mask": mask[:4], "guidance_scale": 1.0}
        size = {"height": 64, "width": 64, "num_inference_steps": steps}
        return pipe(latents=x0[:4], output_type="latent", **size, **call).images

    euler = draw(4)
    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config)
    exact, second = draw(100), draw(4)
    prompts = {"prompt_embeds": text[4:], "prompt_attention_mask": mask[4:]}  # or texts
    plan = ft.tune(pipe, prompts=prompts, guidance=1.0, size=64, nfe=4, noise=x0[4:])
    enable(pipe, plan=plan)
    print(summary(pipe), *plan.info["notes"], sep="\n")
    for name, images in {"Euler": euler, "AB2": second, "tuned": draw(4)}.items():
        print(f"{name}, 4 evaluations: error {(images - exact).square().mean().sqrt():.5f}")
    disable(pipe)


if __name__ == "__main__":
    main()
