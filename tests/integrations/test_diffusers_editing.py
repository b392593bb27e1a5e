"""Editing by pipelines: what the methods compute, count, refuse and leave alone."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fields import gaussian

import flowturbo as ft
from flowturbo import noise
from flowturbo.images import to_pil
from flowturbo.models.vae import standards
from flowturbo.path import interpolate
from flowturbo.tasks.fields import noised_afresh

diffusers = pytest.importorskip("diffusers")

from integrations import pipelines  # noqa: E402
from integrations.pipelines import BATCH, CELLS, EULER  # noqa: E402

from flowturbo.integrations.diffusers import (  # noqa: E402
    FAMILIES,
    FlowTurboScheduler,
    disable,
    edit,
    enable,
)
from flowturbo.integrations.diffusers.families import pack, unpack  # noqa: E402

NAMES = ("SD3", "Flux", "Qwen-Image", "Z-Image", "Sana")
METHODS = ("inversion", "flowedit", "sdedit")
PASSES = {"inversion": (6, 9), "flowedit": (6, 12), "sdedit": (3, 6)}  # of 3 rows, guided or not


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


class Case:
    """A pipeline with images, source and target prompts; its autoencoder standardises latents."""

    def __init__(self, name):
        self.cell = CELLS[name]
        self.pipe = self.cell.build(EULER(shift=3.0))
        if name == "Qwen-Image":
            self.pipe.vae = copy.deepcopy(self.pipe.vae)
            self.pipe.vae.register_to_config(
                latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.0, 1.2]
            )
        self.images = to_pil(pipelines.random_image(self.cell.size))
        given = pipelines.embeds(self.cell.parts)
        self.source = {k: v for k, v in given.items() if not k.startswith("negative_")}
        self.target = {**given, **{k: self.other(v) for k, v in self.source.items()}}
        self.packed = name in ("Flux", "Qwen-Image")

    @staticmethod
    def other(rows):
        if isinstance(rows, list):
            return [-row for row in rows]
        return -rows if rows.is_floating_point() else rows

    def scale(self, w):
        """Guidance as the pipeline takes it."""
        return {self.cell.guided: w - 1 if self.cell.parts == "z_image" else w}

    def edit(self, target=None, w=1.0, **given):
        sides = {"height": self.cell.size, "width": self.cell.size}
        arguments = {**self.scale(w), **sides, **self.cell.arguments, **given}
        target = self.target if target is None else target
        image = arguments.pop("image", self.images)
        return edit(self.pipe, image, target, self.source, **arguments)

    def one(self):
        """The same with the first image and its prompts alone."""
        self.images = self.images[:1]
        self.source, self.target = (
            {k: v[:1] for k, v in prompts.items()} for prompts in (self.source, self.target)
        )
        return self

    def encoded(self):
        """(B, C, h, w)."""
        x = 2 * pipelines.random_image(self.cell.size).mul(255).round() / 255 - 1
        qwen = self.cell.parts == "qwen"
        out = self.pipe.vae.encode(x[:, :, None] if qwen else x)
        z = out.latent if self.cell.parts == "sana" else out.latent_dist.mode()
        z = z[:, :, 0] if qwen else z
        scale, shift = standards(self.pipe.vae.config, z.shape[1])
        return (z - shift) * scale

    def decoded(self, z):
        """Images, by the pipeline, of a run that does not move."""
        return self.run(ft.Plan.parse("E1", start=1 - 1e-7), z, self.source, 1.0, "pil")

    def run(self, plan, z, prompts, w, output="latent"):
        own = copy.copy(self.pipe)
        own.scheduler = FlowTurboScheduler.from_config(self.pipe.scheduler)
        own.scheduler.set_plan(plan)
        z = pack(z) if self.packed else z
        made = self.cell.call(
            own, len(plan), latents=z, output_type=output, **{**prompts, **self.scale(w)}
        )
        if output == "latent" and self.packed:
            return unpack(made, (self.cell.size // 4,) * 2)
        return made

    def velocity(self, z, t, prompts, w):
        """Of one Euler step, by the pipeline; towards noise from where data are nearer."""
        if t > 0.5:
            plan = ft.Plan.parse("E1", direction="backward", times=[t, 0.0])
            return (z - self.run(plan, z, prompts, w)) / t
        plan = ft.Plan.parse("E1", times=[t, 1.0])
        return (self.run(plan, z, prompts, w) - z) / (1 - t)


def pixels(image):
    return np.asarray(image).astype(int)


def apart(some, others):
    """The largest difference of pixels."""
    return max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(some, others, strict=True))


@pytest.fixture(params=NAMES)
def case(request):
    return Case(request.param)


# -- what is computed -----------------------------------------------------------------------------


def distance_after_return(case, plan):
    """RMSE of the latents after an unguided inversion with one prompt to those of the image."""
    ends = []

    def callback(pipe, i, t, kept):
        ends.append(kept["latents"])
        return kept

    made = case.edit(case.source, plan=plan, keep=0.5, callback_on_step_end=callback)
    assert len(ends) == made.evaluations / 2  # it is not called on the way back
    end = unpack(ends[-1], (case.cell.size // 4,) * 2) if case.packed else ends[-1]
    return (end - case.encoded()).square().mean().sqrt().item()


def test_an_inversion_with_the_same_prompt_returns_to_the_latents_of_the_image(case):
    few, many, high = (distance_after_return(case, plan) for plan in ("AB2:8", "AB2:32", "RK4:32"))
    assert few > 2 * many > 4 * high
    assert high < 2e-3 * case.encoded().std()


def test_an_inversion_converges_by_the_order_of_the_solver(monkeypatch):
    case = Case("SD3")
    monkeypatch.setattr(
        case.pipe.transformer,
        "forward",
        lambda hidden_states, timestep, **_: (
            -gaussian(hidden_states, 1 - timestep.reshape(-1, 1, 1, 1) / 1000),
        ),
    )
    counts = np.array([4, 8, 16])
    errors = [distance_after_return(case, f"AB2:{n}") for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.25


def test_the_image_that_returns_is_that_of_the_autoencoder(case):
    expected = case.decoded(case.encoded())
    assert apart(case.edit(case.source, plan="RK4:32", keep=0.5), expected) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_what_they_are_said_to_be(case, method):
    """Euler, row by row, with the velocities of calls of the pipeline for a single step."""
    keep, n, w = 0.25, 3, 2.5
    start = keep**1.1 if method == "flowedit" else keep
    times, z = np.linspace(start, 1, n + 1), case.encoded()
    negative = {k: v for k, v in case.target.items() if k.startswith("negative_")}
    source = {**negative, **case.source}
    x = z
    if method == "flowedit":
        for t, to in pairwise(times):
            y = noised_afresh(z, t, range(5, 5 + BATCH))
            new = case.velocity(x + y - z, t, case.target, w)
            x = x + (to - t) * (new - case.velocity(y, t, source, 1.0))
    else:
        if method == "sdedit":
            x = interpolate(noise.draw(range(5, 5 + BATCH), z.shape[1:]), z, start)
        else:
            for t, to in pairwise(times[::-1]):
                x = x + (to - t) * case.velocity(x, t, source, 1.0)
        for t, to in pairwise(times):
            x = x + (to - t) * case.velocity(x, t, case.target, w)
    made = case.edit(w=w, method=method, keep=keep, plan=f"E{n}", seed=5)
    assert apart(made, case.decoded(x)) <= 1
    assert apart(made, case.images) > 30


def test_flowedit_to_the_same_prompt_returns_the_image_of_the_autoencoder(case):
    made = case.edit(case.source, method="flowedit", plan="AB2:3", keep=0.1)
    assert apart(made, case.decoded(case.encoded())) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_guidance_that_flux_takes_is_the_targets_alone(method):
    case = Case("Flux")
    case.pipe = diffusers.FluxPipeline(scheduler=EULER(), **pipelines.flux(distilled=True))
    case.pipe.set_progress_bar_config(disable=True)
    seen, inner = [], case.pipe.transformer.forward

    def forward(*args, **kwargs):
        seen.append(kwargs["guidance"].tolist())
        return inner(*args, **kwargs)

    case.pipe.transformer.forward = forward
    try:
        case.edit(method=method, plan="E2", guidance=3.5, true_cfg_scale=1.0)
    finally:
        del case.pipe.transformer.forward
    ones, scale = [1.0] * BATCH, [3.5] * BATCH
    expected = {
        "inversion": [ones, ones, scale, scale],
        "flowedit": [scale + ones] * 2,
        "sdedit": [scale] * 2,
    }
    assert seen == expected[method]


def test_guidance_is_the_scale_of_the_library(case):
    if case.cell.parts == "flux":
        pytest.skip("its guidance is an input of the network")
    by_name = case.edit(w=3.0, plan="E2")
    scale = case.scale
    case.scale = lambda w: {}
    assert apart(case.edit(plan="E2", guidance=3.0), by_name) == 0
    case.scale = scale
    assert apart(case.edit(w=1.0, plan="E2"), by_name) > 0


def test_texts_are_encoded_by_the_pipeline_and_one_goes_with_all_images(monkeypatch):
    case, asked = Case("SD3"), []

    def encode_prompt(**given):
        guided, times = given["do_classifier_free_guidance"], len(given["prompt"]) // BATCH
        asked.append((given["prompt"], given["negative_prompt"] if guided else None))
        parts = ("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
        return [torch.cat([case.target[f"{part}_embeds"]] * times) for part in parts]

    monkeypatch.setattr(case.pipe, "encode_prompt", encode_prompt)
    sides = {"height": 16, "width": 16}
    made = edit(case.pipe, case.images, "a fox", ["a dog", "a cat"], negative_prompt="x", **sides)
    assert asked == [(["a dog", "a cat"], None), (["a fox"] * 2, ["x"] * 2)]
    assert len(made) == 2
    asked.clear()
    edit(case.pipe, case.images[0], ["a fox", "a wolf"], "a dog", **sides)
    assert asked == [(["a dog"] * 2, None), (["a fox", "a wolf"], None)]
    asked.clear()
    edit(case.pipe, case.images, "a fox", "a dog", method="flowedit", **sides)
    assert asked == [(["a fox"] * 2 + ["a dog"] * 2, None)]  # the pipeline's default is ""
    asked.clear()
    prompts = {"prompt": "a fox", "prompt_2": "red"}
    monkeypatch.setattr(
        case.pipe,
        "encode_prompt",
        lambda **given: asked.append(given["prompt_2"]) or encode_prompt(**given),
    )
    edit(case.pipe, case.images, prompts, "a dog", method="sdedit", **sides)
    assert asked[0] == ["red"] * 2


# -- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_and_passes_are_those_of_the_network(case, method, monkeypatch):
    rows, inner = [], case.pipe.transformer.forward

    def forward(*args, **kwargs):
        rows.append(len(args[0] if args else kwargs.get("hidden_states")))
        return inner(*args, **kwargs)

    monkeypatch.setattr(case.pipe.transformer, "forward", forward)
    for w, passes in zip((1.0, 3.0), PASSES[method], strict=True):
        rows.clear()
        made = case.edit(w=w, method=method, plan="AB2:3")
        assert made.passes == passes == sum(rows) / BATCH
        assert made.evaluations == PASSES[method][0]


def test_another_thread_that_uses_the_network_is_not_counted():
    case, other = Case("SD3"), Case("SD3")
    alone = case.edit(w=3.0, method="flowedit")
    expected = other.cell.call(other.pipe, 2)
    found = []

    def meanwhile(*_):
        thread = threading.Thread(target=lambda: found.append(other.cell.call(other.pipe, 2)))
        thread.start()
        thread.join()

    handle = case.pipe.transformer.register_forward_pre_hook(
        lambda *_: meanwhile() if threading.current_thread() is threading.main_thread() else None
    )
    with handle:
        made = case.edit(w=3.0, method="flowedit")
    assert made.passes == alone.passes
    assert apart(made, alone) == 0
    assert len(found) == 4
    assert all(torch.equal(x, expected) for x in found)


def test_a_compiled_network_is_counted_and_edits_the_same():
    case = Case("SD3")
    expected = {method: case.edit(w=3.0, method=method) for method in METHODS}
    case.pipe.transformer = copy.deepcopy(case.pipe.transformer)
    torch._dynamo.reset()
    case.pipe.transformer.compile(backend="eager", fullgraph=True)
    case.cell.call(case.pipe, 2)
    for method, before in expected.items():
        made = case.edit(w=3.0, method=method)
        assert (made.evaluations, made.passes) == (before.evaluations, before.passes)
        assert apart(made, before) <= 1


# -- what is left alone ---------------------------------------------------------------------------


def state(pipe):
    """All that a run could leave behind; diffusers itself adds its registry of hooks."""
    network = {k: v for k, v in vars(pipe.transformer).items() if k != "_diffusers_hook"}
    hooks = {k: dict(v) for k, v in network.items() if k.endswith("_hooks")}
    return dict(vars(pipe)), dict(vars(pipe.scheduler)), dict(pipe.config), network, hooks


@pytest.mark.parametrize("method", METHODS)
def test_the_pipeline_is_left_as_it_was(case, method):
    before, seed = state(case.pipe), torch.get_rng_state()
    case.edit(w=3.0, method=method)
    assert state(case.pipe) == before
    assert torch.equal(torch.get_rng_state(), seed)

    def stop(*_):
        raise RuntimeError("stopped")

    for register in ("register_forward_hook", "register_forward_pre_hook"):
        with (
            getattr(case.pipe.transformer, register)(stop),
            pytest.raises(RuntimeError, match="stopped"),
        ):
            case.edit(w=3.0, method=method)
        assert state(case.pipe) == before


def test_an_enabled_pipeline_edits_and_stays_enabled():
    case, calls = Case("SD3"), []

    def refiner(x, t, cond, history):
        calls.append(t)
        return history[-1][1]

    expected = case.edit(w=3.0)
    plan = ft.Plan.parse("H1P1R1")
    enable(case.pipe, plan=plan, refiner=refiner)
    try:
        scheduler = case.pipe.scheduler
        images = case.cell.call(case.pipe, len(plan))
        count = len(calls)
        assert apart(case.edit(w=3.0), expected) == 0
        assert len(calls) == count > 0
        assert case.pipe.scheduler is scheduler
        assert torch.equal(case.cell.call(case.pipe, len(plan)), images)
    finally:
        disable(case.pipe)


def test_cpu_offload():
    """From the CPU to the CPU: accelerate's hooks come and go as with an accelerator."""
    case = Case("SD3")
    expected = case.edit(w=3.0)
    case.pipe.transformer, case.pipe.vae = map(
        copy.deepcopy, (case.pipe.transformer, case.pipe.vae)
    )
    original = case.cell.call(case.pipe, 2)
    case.pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert apart(case.edit(w=3.0), expected) == 0
        assert torch.equal(case.cell.call(case.pipe, 2), original)
    assert hasattr(case.pipe.transformer, "_hf_hook")
    case.pipe.remove_all_hooks()
    assert not hasattr(case.pipe.transformer, "_hf_hook")


def test_half_precision_stays():
    case = Case("SD3")
    for name in ("transformer", "vae"):
        setattr(case.pipe, name, copy.deepcopy(getattr(case.pipe, name)).bfloat16())
    case.source, case.target = (
        {k: v.bfloat16() for k, v in prompts.items()} for prompts in (case.source, case.target)
    )
    ends = []

    def callback(pipe, i, t, kept):
        ends.append(kept["latents"])
        return kept

    case.edit(case.source, plan="RK4:8", keep=0.5, callback_on_step_end=callback)
    z = Case("SD3").encoded()
    assert ends[-1].dtype == torch.bfloat16
    assert (ends[-1] - z).square().mean().sqrt() < 0.05 * z.std()
    assert {len(case.edit(w=3.0, method=method)) for method in METHODS} == {BATCH}


# -- images ---------------------------------------------------------------------------------------


def photo(width, height):
    made = torch.Generator().manual_seed(0)
    return to_pil(torch.rand(1, 3, height, width, generator=made))[0]


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_is_placed_into_the_image_and_the_rest_keeps_its_bits(method):
    case, image = Case("SD3").one(), photo(48, 20)
    (made,) = case.edit(image=image, method=method, plan="E2")
    before, after = pixels(image), pixels(made)
    assert made.size == image.size
    changed = np.abs(after - before).max((0, 2)) > 0
    assert changed[14:34].all()
    assert not changed[:14].any()
    assert not changed[34:].any()
    (drawn,) = case.edit(image=image, method=method, plan="E2", size="model")
    assert drawn.size == (16, 16)


def test_by_default_the_whole_image_is_edited_in_the_area_of_the_pipeline(monkeypatch):
    case, shapes, image = Case("SD3").one(), [], photo(50, 21)
    inner = case.pipe.transformer.forward

    def forward(*args, **kwargs):
        shapes.append(tuple(kwargs["hidden_states"].shape[2:]))
        return inner(*args, **kwargs)

    monkeypatch.setattr(case.pipe.transformer, "forward", forward)
    (made,) = case.edit(image=image, plan="E2", height=None, width=None)
    assert set(shapes) == {(6, 12)}  # in tokens 3 x 6, of the area of 4 x 4
    assert (np.abs(pixels(made) - pixels(image)).max((0, 2)) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_kept_whole_it_is_the_image_and_nothing_runs(case, method):
    made = case.edit(keep=1.0, method=method)
    assert [i.tobytes() for i in made] == [i.tobytes() for i in case.images]
    assert (made.evaluations, made.passes) == (0, 0)


def test_the_noise_of_an_image_is_that_of_its_seed():
    case = Case("SD3")
    both = case.edit(method="sdedit", seed=3)
    case.images, case.source = case.images[1], {k: v[1:] for k, v in case.source.items()}
    second = {k: v[1:] for k, v in case.target.items()}
    assert apart(case.edit(second, method="sdedit", seed=4), both[1:]) <= 1
    assert apart(case.edit(second, method="sdedit", seed=3), both[1:]) > 1


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "magic"}, "method='magic'.*inversion"),
        ({"keep": 1.5}, "keep=1.5.*0.*1"),
        ({"size": "big"}, "size='big'"),
        ({"plan": "nonsense"}, "'nonsense'"),
        ({"plan": "H1P1R1"}, "R"),
        ({"plan": ft.Plan.euler(2)}, "must lead from data"),
        ({"plan": "AB2:FFC"}, r"conditional \(C\)"),
        ({"guidance": "high"}, "guidance='high'"),
        ({"guidance": 0.5}, "guidance=0.5: must be a finite number"),
        ({"guidance": 3.0}, "guidance=3.0, guidance_scale=1.0: are the same"),
        ({"seed": -1}, "seed=-1"),
        ({"height": 16, "width": None}, "height=16, width=None: give both"),
        ({"height": 18}, "height=18: must be a multiple of 4"),
        ({"image": 3}, "image=3: must be a PIL image"),
        ({"image": "absent.png"}, "absent.png: not a readable image"),
        ({"image": [photo(4, 4)] * 3}, "prompt: 2 for 3"),
        ({"prompt": 2.5}, "prompt=2.5"),
        ({"prompt": []}, r"prompt=\[\]: give at least one"),
        ({"prompt": {}}, r"prompt=\{\}: must have a prompt or its embeddings"),
        ({"prompt": {"negative_prompt": "x"}}, "must have a prompt or its embeddings"),
        ({"prompt": {"promt": "x"}}, r"has no argument 'promt'; did you mean 'prompt'\?"),
        ({"prompt": {"prompt": 3}}, "prompt: prompt=3: must be texts or embeddings"),
        ({"source_prompt": ["a", "b", "c"]}, "source_prompt: 3 of prompt for 2 images"),
        ({"negative_prompt": 3}, "negative_prompt=3: must be texts"),
        ({"negative_prompt": ["a"] * 3}, "prompt: 3 of negative_prompt for 2"),
        ({"max_sequence_lenght": 3}, "did you mean 'max_sequence_length'"),
        ({"latents": 3}, "edit.*has no argument 'latents'"),
        ({"generator": 3}, "has no argument 'generator'.*seed"),
        ({"prompt_embeds": 3}, "has no argument 'prompt_embeds'"),
        ({"method": "flowedit", "source_prompt": "a"}, "needs the same arguments for both"),
        ({"method": "flowedit", "callback_on_step_end": print}, "callback_on_step_end with"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_arguments_are_refused_before_anything_runs(given, message, monkeypatch):
    case = Case("SD3")
    for part in (case.pipe.transformer, case.pipe.vae):
        monkeypatch.setattr(part, "forward" if part is case.pipe.transformer else "encode", None)
    positional = {"image": case.images, "prompt": case.target, "source_prompt": case.source}
    sides = {"height": 16, "width": 16, "guidance_scale": 1.0}
    with pytest.raises(ValueError, match=message) as error:
        edit(case.pipe, **{**positional, **sides, **given})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: object(), "pipe=object: must be a diffusers pipeline"),
        (lambda: CELLS["SD3 img2img"].build(EULER()), "AutoPipelineForText2Image"),
        (lambda: CELLS["Flux inpaint"].build(EULER()), "AutoPipelineForText2Image"),
        (lambda: CELLS["Lumina2"].build(EULER()), "Lumina2Pipeline.*of SD3, FLUX.1, Sana"),
        (lambda: pipelines.MORE["Wan"].build(EULER()), "WanPipeline with a WanTrans"),
        (lambda: CELLS["SD3"].build(diffusers.DDIMScheduler()), "a diffusion, not a flow"),
    ],
    ids=["object", "img2img", "inpaint", "Lumina2", "Wan", "DDIM"],
)
def test_other_pipelines_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        edit(make(), photo(16, 16), "a fox", "a dog")


def test_a_pipeline_without_its_autoencoder_is_refused():
    pipe = CELLS["SD3"].build(EULER())
    pipe.vae = None
    with pytest.raises(ValueError, match="has no autoencoder"):
        edit(pipe, photo(16, 16), "a fox", "a dog")


def test_guidance_that_would_change_nothing_is_refused():
    for name, message in (
        ("Flux", "this FLUX.1 takes none.*true_cfg_scale"),
        ("Qwen-Image", "guidance=3.0.*negative_prompt"),
    ):
        case = Case(name)
        case.scale = lambda w: {}
        with pytest.raises(ValueError, match=message):
            case.edit({**case.source}, guidance=3.0)


def test_flowedit_needs_to_know_where_the_conditional_branch_is(monkeypatch):
    case = Case("SD3")
    family = FAMILIES["SD3Transformer2DModel"]
    monkeypatch.setitem(FAMILIES, "SD3Transformer2DModel", replace(family, conditional=None))
    with pytest.raises(ValueError, match=r"where SD3 has the conditional branch.*another method"):
        case.edit(method="flowedit")
    assert case.edit().evaluations == 8


def test_results_that_are_not_finite_are_refused(monkeypatch):
    case = Case("SD3")
    monkeypatch.setattr(
        case.pipe.transformer,
        "forward",
        lambda hidden_states, **_: (torch.full_like(hidden_states, torch.nan),),
    )
    with pytest.raises(ValueError, match=r"not finite.*plan 'AB2:4@1.6'"):
        case.edit()


def test_a_model_of_ours_and_a_pipeline_are_not_confused():
    with pytest.raises(ValueError, match=r"flowturbo.integrations.diffusers.edit"):
        ft.edit(CELLS["SD3"].build(EULER()), photo(16, 16), "a fox", "a dog")
