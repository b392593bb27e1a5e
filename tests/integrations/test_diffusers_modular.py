"""Modular pipelines whose scheduler and guider are a plan, against our own loop."""

import json
import pkgutil

import pytest
import torch

import flowturbo as ft

diffusers = pytest.importorskip("diffusers")

from diffusers import ClassifierFreeGuidance, ComponentsManager  # noqa: E402
from diffusers.modular_pipelines import ComponentSpec  # noqa: E402
from diffusers.modular_pipelines.stable_diffusion_3 import (  # noqa: E402
    modular_blocks_stable_diffusion_3 as blocks,
)
from integrations.pipelines import CELLS, EULER, embeds, sd3  # noqa: E402

from flowturbo.integrations.diffusers import (  # noqa: E402
    FlowTurboGuider,
    FlowTurboScheduler,
    disable,
    enable,
)

SCALE = 3.0


def pair(plan, **options):
    scheduler = FlowTurboScheduler.from_config(EULER(shift=3.0), plan=plan, guider=True)
    return scheduler, FlowTurboGuider(**{"guidance_scale": SCALE, **options})


def built(scheduler, guider, step=blocks.StableDiffusion3T2ICoreDenoiseStep, **options):
    pipe = step().init_pipeline(**options)
    pipe.update_components(transformer=sd3()["transformer"], scheduler=scheduler, guider=guider)
    for part in (pipe, *pipe.blocks.sub_blocks.values()):
        if hasattr(part, "set_progress_bar_config"):
            part.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def branches(monkeypatch):
    """How often the network was called for one branch of guidance."""
    network = sd3()["transformer"]
    calls, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    return calls


def noise():
    channels = sd3()["transformer"].config.in_channels
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def call(pipe, steps, **options):
    given = {"latents": noise(), "height": 16, "width": 16, **embeds("sd3"), **options}
    return pipe(num_inference_steps=steps, output="latents", **given)


def expected(plan, scale=SCALE, x0=None):
    network, given = sd3()["transformer"], embeds("sd3")

    def field(x, t, cond):
        times = (1000 * (1 - torch.as_tensor(t))).expand(len(x))
        return -network(
            hidden_states=x,
            timestep=times,
            encoder_hidden_states=cond[0],
            pooled_projections=cond[1],
            return_dict=False,
        )[0]

    names = "prompt_embeds", "pooled_prompt_embeds"
    cond, null = (tuple(given[side + n] for n in names) for side in ("", "negative_"))
    x0 = noise() if x0 is None else x0
    return ft.sample(plan, field, x0, cond, guidance=scale, negative=null)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def differences():
    """A plan with guidance weights of its own, and every second evaluation conditional."""
    made = ft.Plan.parse("AB2:FFCFC@3")
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).tril().numpy() / 10
    weights[:, [2, 4]] = 0
    return ft.Plan(
        times=made.times,
        evaluators=made.evaluators,
        weights=made.weights,
        guidance_weights=weights.astype(float),
        name="differences",
    )


@pytest.mark.parametrize("plan", ["AB2:FFCFC@3", "UNIPC2:6@3", differences()], ids=str)
def test_the_pair_is_the_plan(plan, branches, tmp_path):
    scheduler, guider = pair(plan)
    scheduler.save_pretrained(tmp_path / "scheduler")
    guider.save_pretrained(tmp_path / "guider")
    saved = json.loads((tmp_path / "guider" / "guider_config.json").read_text())
    assert saved["guidance_scale"] == SCALE
    loaded = built(
        FlowTurboScheduler.from_pretrained(tmp_path / "scheduler"),
        FlowTurboGuider.from_pretrained(tmp_path / "guider"),
    )
    table = ft.Plan.parse(plan) if isinstance(plan, str) else plan
    for pipe in (built(scheduler, guider), loaded):
        branches.clear()
        result = call(pipe, len(table))
        assert len(branches) == table.passes(SCALE)
        close(result, expected(plan))


def test_other_schedulers_may_be_made_meanwhile(monkeypatch):
    made, step = [], FlowTurboScheduler.step

    def making(self, *arguments, **options):
        result = step(self, *arguments, **options)
        made.append(FlowTurboScheduler())
        return result

    monkeypatch.setattr(FlowTurboScheduler, "step", making)
    close(call(built(*pair("AB2:FFCFC@3")), 5), expected("AB2:FFCFC@3"))
    assert len(made) == 5


@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [
        ("Qwen-Image", "qwenimage.modular_blocks_qwenimage.QwenImageCoreDenoiseStep", 3.0),
        ("Z-Image", "z_image.modular_blocks_z_image.ZImageCoreDenoiseStep", 4.0),
    ],
)
def test_modular_pipelines_do_what_others_do(name, steps, scale, monkeypatch):
    """Of a pipeline that gives velocities the norm of others, and one that negates them."""
    states, step = [], FlowTurboScheduler.step

    def recorded(self, output, timestep, sample, **options):
        result = step(self, output, timestep, sample, **options)
        states.append((sample, result[0]))
        return result

    monkeypatch.setattr(FlowTurboScheduler, "step", recorded)
    cell, plan = CELLS[name], "AB2:FFCFC@3"
    pipe = cell.build(EULER(shift=3.0))
    enable(pipe, plan=plan)
    cell.call(pipe, 5)
    parts = {part: module for part, module in pipe.components.items() if module is not None}
    disable(pipe)
    expected = [*states]
    states.clear()
    scheduler, guider = pair(plan, guidance_scale=scale)
    modular = pkgutil.resolve_name(f"diffusers.modular_pipelines.{steps}")().init_pipeline()
    parts |= {"scheduler": scheduler, "guider": guider}
    modular.update_components(
        **{part: parts[part] for part in modular.component_names if part in parts}
    )
    side = 4 * cell.size  # without an autoencoder, 8 pixels to a latent in place of 2
    sizes = {"height": side, "width": side, "num_inference_steps": 5}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        modular(**sizes, **embeds(cell.parts), generator=generator)
    assert len(states) == len(expected) == 5
    assert torch.equal(states[0][0], expected[0][0])
    close(states[-1][1], expected[-1][1])


def test_components_of_a_manager(tmp_path):
    for part, folder in zip(pair("AB2:FFCFC@3"), ("scheduler", "guider"), strict=True):
        part.save_pretrained(tmp_path / folder)
    manager = ComponentsManager()
    for cls, name in ((FlowTurboScheduler, "scheduler"), (FlowTurboGuider, "guider")):
        spec = ComponentSpec(name, cls, pretrained_model_name_or_path=str(tmp_path), subfolder=name)
        manager.add(name, spec.load())
    pipe = built(manager.get_one(name="scheduler"), manager.get_one(name="guider"))
    close(call(pipe, 5), expected("AB2:FFCFC@3"))


def test_without_guidance_nothing_is_evaluated_twice(branches):
    pipe = built(*pair("AB2:FFCFC@3", guidance_scale=1.0))
    result = call(pipe, 5)
    assert len(branches) == 5
    close(result, expected("AB2:5@3", 1.0))


def test_guidance_in_a_part_of_the_steps(branches):
    """Outside of it, a conditional evaluation is one without guidance."""
    call(built(*pair("AB2:FFCCF@3", stop=0.6)), 5)
    assert len(branches) == 2 + 2 + 1 + 1 + 1


def test_image_to_image_starts_in_the_middle(branches):
    pipe = built(*pair("AB2:FFFCFC@3"), step=blocks.StableDiffusion3I2ICoreDenoiseStep)
    image = torch.randn(2, *noise().shape[1:], generator=torch.Generator().manual_seed(6))
    result = call(pipe, 6, image_latents=image, strength=0.7)
    rest = ft.Plan.parse("AB2:FFFCFC@3")
    begin = float(rest.times[1])  # int(6 - 0.7 * 6)
    rest = rest.restrict(begin)
    assert len(branches) == rest.passes(SCALE)
    close(result, expected(rest, x0=begin * image + (1 - begin) * noise()))


def test_one_without_the_other_is_refused():
    scheduler, guider = pair("AB2:FFC@3")
    with pytest.raises(ValueError, match=r"no FlowTurboGuider has guided this step"):
        call(built(scheduler, ClassifierFreeGuidance(guidance_scale=SCALE)), 3)
    with pytest.raises(ValueError, match=r"not of a FlowTurboScheduler of this thread"):
        call(built(EULER(shift=3.0), guider), 3)
    unaware = FlowTurboScheduler(plan="AB2:FFC@3")
    with pytest.raises(ValueError, match=r"1 conditional evaluations.*guider=True"):
        call(built(unaware, guider), 3)
    refined = FlowTurboScheduler(plan="H1P1R1", guider=True)
    with pytest.raises(ValueError, match=r"2 refiner evaluations.*call enable"):
        call(built(refined, guider), len(ft.Plan.parse("H1P1R1")))
    with pytest.raises(ValueError, match=r"guider='yes': must be True or False"):
        FlowTurboScheduler(guider="yes")
