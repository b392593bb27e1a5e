"""The cost of `enable` and of a refiner in pipelines of the size of SD3 medium and FLUX.1.

    python benchmarks/gpu/pipelines.py --out benchmarks/records/gpu-pipelines.json

Random weights, in bfloat16, no text encoders and no decoding: times do not depend on weights, and
image quality is not measured. At 512 and 1024 px, batch 1, it times side by side: the unchanged
pipeline with diffusers' Euler, with as many and with twice as many evaluations as the plan; and the
enabled pipeline, with the plan alone and with refiner calls between its evaluations, where enabling
is part of each call. The overhead of `enable`, and the cost of a refiner call as a share of an
evaluation, are derived from these times. An existing record is extended.

``--device cpu --tiny`` tests the script.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

import flowturbo as ft
from flowturbo.files import write_json
from flowturbo.integrations.diffusers import disable, enable
from flowturbo.provenance import conditions
from flowturbo.refiner import VelocityRefiner
from flowturbo.timing import interleaved, spread

EVALUATIONS, REFINED = 6, "AB2:FFRFRFRFRFR@3"
TOKENS = {"SD3": 333, "FLUX": 512}  # of the prompt, as their pipelines have by default
SD3: dict[str, Any] = dict(  # the published configuration of SD3 medium
    sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24,
    attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
)  # fmt: skip
FLUX: dict[str, Any] = dict(  # and of FLUX.1 [dev]
    patch_size=1, in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128,
    num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768,
    guidance_embeds=True, axes_dims_rope=(16, 56, 56),
)  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "SD3": dict(num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
                caption_projection_dim=16, pooled_projection_dim=16),
    "FLUX": dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                 joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6)),
}  # fmt: skip


def pipeline(name: str, device: str, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """The pipeline, and the prompt it is called with."""
    config = {**(SD3 if name == "SD3" else FLUX), **(TINY[name] if tiny else {})}
    text = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    if name == "SD3":
        text += ["text_encoder_3", "tokenizer_3"]
    cls = diffusers.StableDiffusion3Pipeline if name == "SD3" else diffusers.FluxPipeline
    kind = diffusers.SD3Transformer2DModel if name == "SD3" else diffusers.FluxTransformer2DModel
    torch.manual_seed(0)
    with torch.device(device):
        transformer = kind(**config).to(torch.bfloat16).eval().requires_grad_(False)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = cls(scheduler=euler, transformer=transformer, vae=None, **dict.fromkeys(text))
    made.set_progress_bar_config(disable=True)
    like = dict(device=device, dtype=torch.bfloat16)
    prompt = torch.randn(2, 1, TOKENS[name], config["joint_attention_dim"], **like)
    pooled = torch.randn(2, 1, config["pooled_projection_dim"], **like)
    given = {"prompt_embeds": prompt[0], "pooled_prompt_embeds": pooled[0]}
    if name == "SD3":
        given["negative_prompt_embeds"] = prompt[1]
        given["negative_pooled_prompt_embeds"] = pooled[1]
    return made, given


def measured(name: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the pipeline in each of its ways, and what follows from them."""
    pipe, given = pipeline(name, options.device, options.tiny)
    shape = (16, size // 8, size // 8)
    refiner = VelocityRefiner.small(shape, (1.0, 8.0)).to(options.device, torch.bfloat16).eval()
    plan = ft.Plan.parse(REFINED)
    plain = ft.Plan.parse(f"AB2:{EVALUATIONS}@3")

    def call(steps: int) -> None:
        seed = torch.Generator(options.device).manual_seed(0)
        pipe(**given, num_inference_steps=steps, height=size, width=size, generator=seed,
             guidance_scale=4.5, output_type="latent", return_dict=False)  # fmt: skip

    def enabled(plan: ft.Plan, refiner: Any = None) -> None:
        enable(pipe, plan=plan, refiner=refiner, guidance=4.5 if refiner is not None else None)
        call(len(plan))
        disable(pipe)

    calls = {
        "Euler": partial(call, EVALUATIONS),
        "Euler, twice as many": partial(call, 2 * EVALUATIONS),
        "enabled": partial(enabled, plain),
        "enabled, refiner": partial(enabled, plan, refiner),
    }
    ms = interleaved(calls, options.device, repeats=options.repeats)
    middle = {key: spread(taken) for key, taken in ms.items()}
    median = {key: found["median"] for key, found in middle.items()}
    evaluation = (median["Euler, twice as many"] - median["Euler"]) / EVALUATIONS
    call_ms = (median["enabled, refiner"] - median["enabled"]) / plan.nfe["refiner"]
    return {
        "ms": middle,
        "ms_an_evaluation": evaluation,
        "overhead": median["enabled"] / median["Euler"] - 1,
        "refiner_share": call_ms / evaluation,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "evaluations": {"model": EVALUATIONS, "refiner": plan.nfe["refiner"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda")
    add("--tiny", action="store_true", help="two small blocks")
    add("--models", nargs="+", choices=("SD3", "FLUX"), default=["SD3", "FLUX"])
    add("--sizes", type=int, nargs="+", default=[512, 1024], help="of images, in pixels")
    add("--repeats", type=int, default=10)
    add("--out", "-o", type=Path, required=True, help="the record")
    options = parser.parse_args()
    about = conditions(None, None, torch.zeros(1, device=options.device))
    command = " ".join(["python", *sys.argv])
    record: dict[str, Any] = {"kind": "pipelines", "conditions": about, "command": command}
    if options.out.is_file():
        found = json.loads(options.out.read_text("utf-8"))
        where = lambda r: (r["kind"], *(r["conditions"][k] for k in ("device", "versions")))
        if where(found) != where(record):
            parser.error(f"--out {options.out}: is of {where(found)}, not this; give another")
        record = {**found, "command": f"{found['command']} && {command}"}
    for name in options.models:
        for size in options.sizes:
            found = record.setdefault(name, {})[str(size)] = measured(name, size, options)
            short = {k: round(found[k], 4) for k in ("overhead", "refiner_share")}
            print(f"{name}, {size} px: {short}", flush=True)
            write_json(options.out, record)


if __name__ == "__main__":
    main()
