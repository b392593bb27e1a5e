"""Schedulers, caches and plans in a diffusers pipeline, with the same weights and the same noise.

    pip install cache-dit
    python benchmarks/caches.py --pipeline runs/emoji-sd3/pipeline --prompts prompts.txt \\
        --out benchmarks/records/caches.json

runs a `StableDiffusion3Pipeline` with guidance: Euler, UniPC and DPM-Solver++ with fewer steps,
each at its best shift; FirstBlockCache, TaylorSeer and MagCache of diffusers, and cache-dit, on the
best scheduler; guidance that reuses its last difference of the branches after a gate; and plans
tuned by `flowturbo.tune`, also with a refiner if ``--refiner`` names one. For each it records the
error of the latents to the reference solution (RMSE) and, with ``--real``, FD-EffNet of
``--images`` decoded images. Existing entries of the record are kept. At the end all are timed in
turns, a batch each, ``--rounds`` times.

Caches are meant for many steps, so they run at ``--long`` steps too. A cache may skip any part of
any call, so they are compared by the clock, not by evaluations.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor
from trial import FIRST, summarized, versions

import flowturbo as ft
from flowturbo.evaluate.features import EffNetFeatures
from flowturbo.evaluate.frechet import Moments, frechet_distance
from flowturbo.files import write_json
from flowturbo.integrations.diffusers import disable, enable

REFERENCE = "AB4RK:105@1.6"
SHIFTS = (1.0, 1.6, 2.5, 4.0)
GATES = (0.5, 0.7)  # shares of the steps with both branches
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, Callable[[float], Any]] = {
    "Euler": lambda s: diffusers.FlowMatchEulerDiscreteScheduler(shift=s),
    "UniPC-2": lambda s: diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=s),
    "DPM-Solver++ 2M": lambda s: diffusers.DPMSolverMultistepScheduler(**FLOW, flow_shift=s),
}


@dataclass(frozen=True)
class Method:
    """A way to run the pipeline: a scheduler and steps, or a plan, within a context."""

    steps: int
    scheduler: Any = None  # by default the pipeline's own
    plan: ft.Plan | None = None
    refiner: Any = None
    cache: Callable[[Any, int], AbstractContextManager[None]] = lambda pipe, steps: nullcontext()
    about: dict[str, Any] = field(default_factory=dict)


class Bench:
    """The pipeline, its prompts encoded once, and the same initial noise for every method."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(options.pipeline)
        self.pipe.to(options.device).set_progress_bar_config(disable=True)
        self.guidance, self.batch, self.real = options.guidance, options.batch, options.real
        self.prompts = [p for p in options.prompts.read_text("utf-8").splitlines() if p.strip()]
        size = self.pipe.transformer.config.sample_size
        self.shape = (self.pipe.transformer.config.in_channels, size, size)

    def run(self, method: Method, n: int) -> tuple[Tensor, float]:
        """The latents of the first ``n`` noise samples, and the seconds of the denoising loops."""
        parts, seconds = [], 0.0
        with self._prepared(method) as call:
            for i in range(0, n, self.batch):
                given = self._given(i, min(i + self.batch, n))
                start = time.perf_counter()
                parts.append(call(**given))
                seconds += time.perf_counter() - start
        return torch.cat(parts), seconds

    @contextmanager
    def _prepared(self, method: Method) -> Iterator[Callable[..., Tensor]]:
        """The pipeline run by a method; afterwards it is as it was."""
        scheduler, transformer = self.pipe.scheduler, self.pipe.transformer
        self.pipe.scheduler = method.scheduler or scheduler
        self.pipe.transformer = copy.deepcopy(transformer)  # hooks stay in the copy
        try:
            with ExitStack() as stack:
                if method.plan is not None:
                    guidance = None if method.refiner is None else self.guidance
                    enable(self.pipe, method.plan, method.refiner, guidance=guidance)
                    stack.callback(disable, self.pipe)
                stack.enter_context(method.cache(self.pipe, method.steps))
                stack.enter_context(torch.no_grad())
                yield lambda **given: self.pipe(num_inference_steps=method.steps, **given)[0]
        finally:
            self.pipe.scheduler, self.pipe.transformer = scheduler, transformer

    def _given(self, start: int, end: int) -> dict[str, Any]:
        """Arguments of a call: encoded prompts and initial noise."""
        texts = [self.prompts[i % len(self.prompts)] for i in range(start, end)]
        with torch.no_grad():
            words, no_words, pooled, no_pooled = self.pipe.encode_prompt(texts, None, None)
        noise = ft.noise.draw(range(FIRST + start, FIRST + end), self.shape)
        return {
            "prompt_embeds": words, "negative_prompt_embeds": no_words,
            "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": no_pooled,
            "latents": noise.to(self.pipe.device, words.dtype), "guidance_scale": self.guidance,
            "output_type": "latent", "return_dict": False,
        }  # fmt: skip

    @torch.no_grad()
    def images(self, latents: Tensor) -> Tensor:
        """Latents (N, ...) decoded, (N, 3, H, W) in [0, 1]."""
        vae, parts = self.pipe.vae, []
        for z in latents.split(self.batch):
            z = z / vae.config.scaling_factor + vae.config.shift_factor
            parts.append(vae.decode(z, return_dict=False)[0].clamp(-1, 1) / 2 + 0.5)
        return torch.cat(parts).float()

    def distance(self, method: Method, n: int) -> float:
        """FD-EffNet of ``n`` decoded images to the real ones."""
        drawn = self.images(self.run(method, n)[0])
        return frechet_distance(Moments(self._features(drawn)), self._real_moments)

    @cached_property
    def _features(self) -> EffNetFeatures:
        return EffNetFeatures()

    @cached_property
    def _real_moments(self) -> Moments:
        images = next(iter(np.load(self.real).values()))
        return Moments(self._features(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255))


def _return_context(transformer: Any) -> None:
    """Let the last block, too, return a context: caches ask for one, and SD3's returns None."""
    last = transformer.transformer_blocks[-1]
    block = last.forward

    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **more: Any):
        return encoder_hidden_states, block(hidden_states, encoder_hidden_states, *args, **more)[1]

    last.forward = forward


@contextmanager
def _hooked(config: Any, pipe: Any, steps: int) -> Iterator[None]:
    """A cache of diffusers; the classes of SD3 lack the methods for it, so they are added."""
    transformer, scheduler = pipe.transformer, pipe.scheduler
    _return_context(transformer)
    transformer.__class__ = type("Cached", (type(transformer), CacheMixin), {})
    transformer.enable_cache(config(steps))
    forward, set_timesteps = transformer.forward, scheduler.set_timesteps

    def in_context(*args: Any, **kwargs: Any) -> Any:
        with transformer.cache_context("both branches"):
            return forward(*args, **kwargs)

    def start(*args: Any, **kwargs: Any) -> Any:
        transformer._reset_stateful_cache()  # other images
        return set_timesteps(*args, **kwargs)

    transformer.forward, scheduler.set_timesteps = in_context, start
    try:
        yield
    finally:
        del scheduler.set_timesteps


@contextmanager
def _cache_dit(threshold: float, pipe: Any, steps: int) -> Iterator[None]:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=min(4, steps // 3),
        residual_diff_threshold=threshold, num_inference_steps=steps,
    )  # fmt: skip
    _return_context(pipe.transformer)
    taylor = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=taylor)
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)


def caches(ratios: Callable[[int], Tensor], with_cache_dit: bool) -> dict[str, Any]:
    """Every cache at several of its settings; MagCache needs the ``ratios`` of so many steps."""
    found: dict[str, Any] = {}
    for threshold in (0.05, 0.1, 0.2, 0.4):
        config = partial(diffusers.FirstBlockCacheConfig, threshold=threshold)
        found[f"FirstBlockCache {threshold:g}"] = partial(_hooked, lambda steps, c=config: c())
    for interval in (2, 3, 4):
        config = partial(
            diffusers.TaylorSeerCacheConfig, cache_interval=interval, max_order=1,
            taylor_factors_dtype=torch.float32,
        )  # fmt: skip
        found[f"TaylorSeer {interval}"] = partial(_hooked, lambda steps, c=config: c())
    for threshold in (0.06, 0.12, 0.24):
        config = partial(diffusers.MagCacheConfig, threshold=threshold)
        make = lambda steps, c=config: c(num_inference_steps=steps, mag_ratios=ratios(steps))
        found[f"MagCache {threshold:g}"] = partial(_hooked, make)
    for threshold in (0.08, 0.16, 0.32) if with_cache_dit else ():
        found[f"cache-dit {threshold:g}"] = partial(_cache_dit, threshold)
    return found


def magnitudes(bench: Bench, scheduler: Callable[[], Any], steps: int) -> Tensor:
    """The ratios that MagCache needs: of the norms of the blocks' residuals, step by step."""
    kept: list[Tensor] = []

    @contextmanager
    def watched(pipe: Any, steps: int) -> Iterator[None]:
        blocks, start = pipe.transformer.transformer_blocks, []
        blocks[0].register_forward_pre_hook(
            lambda m, args, kwargs: start.append(kwargs["hidden_states"]), with_kwargs=True
        )
        blocks[-1].register_forward_hook(lambda m, a, out: kept.append(out[1] - start.pop()))
        yield

    bench.run(Method(steps, scheduler(), cache=watched), bench.batch)
    norms = torch.stack([r.float().norm(dim=-1).mean() for r in kept])
    return torch.cat([torch.ones(1), norms[1:] / norms[:-1]])


def measure(options: argparse.Namespace) -> None:
    bench = Bench(options)
    record = json.loads(options.out.read_text()) if options.out.is_file() else {}
    conditions = {
        "pipeline": Path(options.pipeline).name, "guidance": options.guidance,
        "prompts": len(bench.prompts), "noise_samples": options.noise_samples,
        "batch": options.batch, "reference": REFERENCE, "threads": torch.get_num_threads(),
        "versions": versions(),
    }  # fmt: skip
    if record.setdefault("conditions", conditions) != conditions:
        raise SystemExit(f"{options.out} was measured under {record['conditions']}: give another")
    found = record.setdefault("methods", {})
    plan = ft.Plan.parse(REFERENCE)
    exact, _ = bench.run(Method(len(plan), plan=plan), options.noise_samples)

    def errors(latents: Tensor) -> Any:
        off = (latents - exact[: len(latents)]).double().flatten(1)
        return off.square().mean(1).sqrt().cpu().numpy()

    methods: dict[str, Method] = {}

    def add(name: str, method: Method) -> None:
        methods[name] = method
        if name in found:
            return
        latents, _ = bench.run(method, options.noise_samples)
        entry = {**summarized(errors(latents)), "steps": method.steps}
        if options.real:
            entry["fd_effnet"] = round(bench.distance(method, options.images), 3)
        found[name] = {**entry, **method.about}
        write_json(options.out, record)
        print(f"{name}: RMSE {entry['rmse']:.4f}", flush=True)

    def best_shift(name: str, steps: int) -> float:
        probe = min(32, options.noise_samples)
        score = lambda s: float(
            np.square(errors(bench.run(Method(steps, SCHEDULERS[name](s)), probe)[0])).mean()
        )
        return min(SHIFTS, key=score)

    for steps in (*options.steps, *options.long):
        shifts = {name: best_shift(name, steps) for name in SCHEDULERS}
        for name, make in SCHEDULERS.items():
            about = {"shift": shifts[name]}
            add(f"{name}, {steps}", Method(steps, make(shifts[name]), about=about))
        best = min(SCHEDULERS, key=lambda name: found[f"{name}, {steps}"]["rmse"])
        make = partial(SCHEDULERS[best], shifts[best])
        known: dict[int, Tensor] = {}

        def ratios(steps: int, make: Any = make, known: Any = known) -> Tensor:
            if steps not in known:
                known[steps] = magnitudes(bench, make, steps)
            return known[steps]

        for name, cache in caches(ratios, not options.no_cache_dit).items():
            about = {"shift": shifts[best], "scheduler": best}
            add(f"{name}, {steps}", Method(steps, make(), cache=cache, about=about))
        for gate in GATES:
            full = max(2, round(gate * steps))
            gated = ft.Plan.parse(f"AB2:{'F' * full}{'C' * (steps - full)}@1.6")
            add(f"gated guidance {gate:g}, {steps}", Method(steps, plan=gated))
    for path in options.plans:
        plan = ft.Plan.load(path)
        refiner = ft.load_refiner(options.refiner) if plan.nfe["refiner"] else None
        about = {"passes": plan.passes(options.guidance), "nfe": plan.nfe}
        add(f"tuned, {path.stem}", Method(len(plan), plan=plan, refiner=refiner, about=about))
    for name, milliseconds in timed(bench, methods, options.rounds).items():
        found[name]["milliseconds"] = milliseconds
    write_json(options.out, record)
    print(f"-> {options.out}")


def timed(bench: Bench, methods: dict[str, Method], rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds an image of every method, run in turns: the median and the quartiles."""
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            _, seconds = bench.run(method, bench.batch)
            taken[name].append(1000 * seconds / bench.batch)
    shown = lambda values: [round(float(v), 2) for v in np.quantile(values, (0.5, 0.25, 0.75))]
    return {name: dict(zip(("median", "from", "to"), shown(v))) for name, v in taken.items()}  # noqa: B905


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pipeline", required=True, help="folder of a StableDiffusion3Pipeline")
    add("--prompts", type=Path, required=True, help="a file of prompts, one a line")
    add("--steps", type=int, nargs="+", default=[4, 6, 8, 12], help="few")
    add("--long", type=int, nargs="*", default=[20, 30, 50], help="many")
    add("--plans", type=Path, nargs="*", default=[], help="files of tuned plans")
    add("--refiner", help="folder of the refiner that plans call")
    add("--guidance", type=float, default=2.0)
    add("--noise-samples", type=int, default=256, help="to measure errors on")
    add("--batch", type=int, default=8)
    add("--real", type=Path, help="npz of real images (N, H, W, 3) uint8, for FD-EffNet")
    add("--images", type=int, default=2000, help="drawn for FD-EffNet")
    add("--rounds", type=int, default=5, help="to time all methods in turns")
    add("--no-cache-dit", action="store_true", help="leave cache-dit out")
    add("--device", default="cpu")
    add("--out", "-o", type=Path, default=Path("caches.json"))
    options = parser.parse_args()
    if not options.no_cache_dit and importlib.util.find_spec("cache_dit") is None:
        parser.error("cache-dit is missing: pip install cache-dit, or pass --no-cache-dit")
    measure(options)


if __name__ == "__main__":
    main()
