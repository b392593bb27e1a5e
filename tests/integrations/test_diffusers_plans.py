"""Plans in pipelines of editing and video: as the library's own loop runs them."""

import copy
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

import flowturbo as ft

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]

from integrations import pipelines  # noqa: E402
from integrations.pipelines import EULER, MORE, final, velocity  # noqa: E402

from flowturbo.integrations.diffusers import (  # noqa: E402
    FlowTurboScheduler,
    disable,
    enable,
    summary,
)

EARLIER = diffusers.__version__.startswith(("0.40.", "0.41."))  # FlowMatchEuler drops timesteps
PLAN = ft.Plan.parse("UNIPC2:3@2")
EACH = [name for name in MORE if name != "SkyReels"]  # which steps each frame on its own
OWN = (
    "Wan",
    "Wan 2.2",
    "Wan I2V",
    "HiDream",
    "Kandinsky 5",
    "EasyAnimate",
)  # leave the grid to the scheduler
GRID = [name for name in EACH if name not in OWN]


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def built(name, scheduler=None):
    cell = MORE[name]
    return cell, cell.build(pipelines.scheduler(name) if scheduler is None else scheduler)


@pytest.mark.filterwarnings("ignore:the pipeline's timesteps are not")
@pytest.mark.parametrize("name", EACH)
def test_any_flow_pipeline_takes_a_plan(name):
    cell, pipe = built(name)
    before, original = pipe.scheduler, cell.call(pipe, 2)
    enable(pipe, plan=PLAN)
    assert "enabled" in summary(pipe).splitlines()[1]
    asked = cell if cell.linear else cell.unguided()
    result = final(asked, pipe, len(PLAN))
    field, x0 = velocity(asked)
    assert torch.allclose(result, ft.sample(PLAN, field, x0), atol=2e-4)
    disable(pipe)
    enable(pipe, plan="E3@2")
    assert (final(asked, pipe, 3) - result).abs().max() > 1e-2
    disable(pipe)
    assert pipe.scheduler is before
    assert torch.equal(cell.call(pipe, 2), original)


@pytest.mark.parametrize("name", GRID)
def test_as_euler_it_does_what_flow_match_euler_does_on_the_grid_of_the_pipeline(name):
    if EARLIER and name in ("CogView4", "LTX condition"):
        pytest.skip("FlowMatchEuler drops their timesteps in this version")
    cell, pipe = built(name)
    theirs = cell.call(pipe, 4)
    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config, solver="E")
    assert torch.allclose(cell.call(pipe, 4), theirs, atol=1e-4)
    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config, solver="AB2")
    assert (cell.call(pipe, 4) - theirs).abs().max() > 1e-2


@pytest.mark.parametrize("name", OWN)
def test_a_plan_of_the_scheduler_does_what_the_scheduler_does(name):
    cell, pipe = built(name)
    theirs = cell.call(pipe, 4)
    enable(pipe, plan=ft.Plan.from_scheduler(pipe.scheduler, steps=4))
    assert torch.allclose(cell.call(pipe, 4), theirs, atol=1e-4)
    disable(pipe)
    enable(pipe, plan="AB2:4@2")
    assert (cell.call(pipe, 4) - theirs).abs().max() > 1e-2


def test_a_plan_is_refused_at_another_number_of_steps():
    for name in ("CogView4", "LTX condition"):
        cell, pipe = built(name)
        enable(pipe, plan=PLAN)
        with pytest.raises(ValueError, match=r"num_inference_steps=6.*3 evaluations"):
            cell.call(pipe, 6)


def test_timesteps_that_differ_from_the_noise_levels_warn():
    cell, pipe = built("CogView4", EULER(use_dynamic_shifting=True, base_shift=0.25))
    enable(pipe, plan=PLAN)
    with pytest.warns(UserWarning, match=r"timesteps are not 1000 times.*model_times=\.\.\."):
        cell.call(pipe, len(PLAN))
    given = {"timesteps": [1000.0, 600.0, 300.0], "sigmas": [1.0, 0.6, 0.3]}
    if not EARLIER:
        plan = ft.Plan.from_scheduler(EULER(shift=3.0), **given)
        scheduler = FlowTurboScheduler(plan=plan)
        scheduler.set_timesteps(**given)
        assert scheduler.timesteps.tolist() == pytest.approx([1000.0, 600.0, 300.0])


# -- each token, each frame -----------------------------------------------------------------------


def test_tokens_of_a_condition_stay_and_the_others_move_as_in_flow_match_euler():
    cell, pipe = built("LTX condition")
    frame = pipelines.random_image(cell.size)[0]
    given = {"image": frame.unsqueeze(0), "frame_index": 0, "image_cond_noise_scale": 0.0}
    theirs = cell.call(pipe, 4, **given)
    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config, solver="E")
    assert torch.allclose(cell.call(pipe, 4, **given), theirs, atol=1e-4)
    enable(pipe, plan=PLAN)
    result = cell.call(pipe, len(PLAN), **given)
    assert torch.allclose(result[:, :, 0], theirs[:, :, 0])
    assert (result[:, :, 1:] - theirs[:, :, 1:]).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"per_token_timesteps, some at 500: .*FlowMatchEuler"):
        cell.call(pipe, len(PLAN), **given, strength=0.5)


@pytest.mark.parametrize("levels", ["one for all", "some clean"])
def test_per_token_timesteps(levels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 3, generator=generator)
    clean = torch.tensor([True, False, True, False, False, False])
    ours, theirs = FlowTurboScheduler(solver="E", shift=2.0), EULER(shift=2.0)
    a = b = x
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3])
    for t, s in zip(ours.timesteps, theirs.timesteps, strict=True):
        u = torch.randn(2, 6, 3, generator=generator)
        each = t.expand(2, 1) if levels == "one for all" else torch.where(clean, 0.0, t)[None]
        a = ours.step(u, t, a, per_token_timesteps=each, return_dict=False)[0]
        b = theirs.step(u, s, b, per_token_timesteps=each, return_dict=False)[0]
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.equal(a[:, clean], x[:, clean]) == (levels == "some clean")


@pytest.mark.parametrize(
    ("each", "config", "message"),
    [
        (torch.full((1, 6), 500.0), {}, "some at 500"),
        (torch.full((6,), 1000.0), {}, r"of shape \(6,\): must be one for each token"),
        (torch.full((2, 5), 1000.0), {}, r"of shape \(2, 5\): must be one for each token"),
        (torch.full((1, 6), 1000.0), {"invert_sigmas": True}, "invert_sigmas=True: not supported"),
    ],
)
def test_tokens_anywhere_else_are_refused(each, config, message):
    scheduler, x = FlowTurboScheduler(**config), torch.zeros(2, 6, 3)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=message):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=each)
    assert scheduler.predicted is None


def test_frames_that_step_on_their_own_do_what_the_library_does(monkeypatch):
    cell, pipe = built("SkyReels")
    enable(pipe, plan=PLAN)
    calls, inner = [], pipe.transformer.forward

    def forward(hidden_states, timestep, **rest):
        out = inner(hidden_states=hidden_states, timestep=timestep, **rest)
        calls.append((hidden_states, timestep, out[0]))
        return out

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    result = cell.call(pipe, len(PLAN))
    assert len(calls) == 2 * len(PLAN)
    guided = [
        -(u + 3.0 * (c - u)) for (*_, c), (*_, u) in zip(calls[::2], calls[1::2], strict=True)
    ]
    x = calls[0][0]
    for k in range(len(PLAN)):
        assert torch.allclose(calls[2 * k][0], x, atol=1e-5)
        assert (calls[2 * k][1] == int(1000 - 1000 * PLAN.model_times[k])).all()
        x = x + sum(PLAN.weights[k, j] * guided[j] for j in range(k + 1)).float()
    assert torch.allclose(result, x, atol=1e-5)
    cell.call(pipe, len(PLAN), ar_step=2, causal_block_size=1)  # one frame after another


# -- time that runs the other way -----------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"num_train_timesteps": 1}], ids=str)
def test_inverted_levels_are_those_of_flow_match_euler(config):
    theirs = EULER(invert_sigmas=True, **config)
    ours = FlowTurboScheduler.from_config(theirs.config, solver="E")
    x = y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    assert ours.sigmas[-1] == 1
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-6)
    assert torch.allclose(ours.timesteps, theirs.timesteps, atol=1e-3)
    for t, s in zip(ours.timesteps, theirs.timesteps, strict=True):
        x = ours.step(torch.sin(5 * x), t, x).prev_sample
        y = theirs.step(torch.sin(5 * y), s, y).prev_sample
    assert torch.allclose(x, y, atol=1e-5)
    plan = FlowTurboScheduler(plan="AB2:4@2", invert_sigmas=True)
    plan.set_timesteps(4)
    assert np.allclose(plan.timesteps, 1000 * ft.Plan.parse("AB2:4@2").model_times)
    flipped = FlowTurboScheduler(invert_sigmas=True, sign=1, solver="E", **config)
    flipped.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for t in flipped.timesteps:
        z = flipped.step(-torch.sin(5 * z), t, z).prev_sample
    assert torch.equal(x, z)


# -- schedulers in other places -------------------------------------------------------------------


def test_pipelines_that_sample_through_others_are_refused():
    parts = pipelines.flux()
    pipe = diffusers.VisualClozePipeline(scheduler=EULER(shift=3.0), **parts)
    before = dict(vars(pipe))
    with pytest.raises(ValueError, match=r"VisualCloze.*enable\(pipe.generation_pipe, ...\) and"):
        enable(pipe)
    assert before == dict(vars(pipe))
    assert "not enabled" in summary(pipe)
    enable(pipe.generation_pipe, plan=PLAN)
    assert "UNIPC2:3" in summary(pipe.generation_pipe)
    disable(pipe.generation_pipe)


def test_a_pipeline_that_leaves_out_a_timestep_is_refused():
    pipe = diffusers.LTXI2VLongMultiPromptPipeline(scheduler=EULER(), **pipelines.ltx())
    with pytest.raises(ValueError, match="leaves out the last timestep"):
        enable(pipe, plan=PLAN)


def test_a_second_scheduler_is_refused():
    _, pipe = built("LTX")
    pipe.audio_scheduler = EULER()
    with pytest.raises(ValueError, match=r"LTXPipeline .* audio_scheduler too.*= None"):
        enable(pipe, plan=PLAN)
    pipe.audio_scheduler = None
    enable(pipe, plan=PLAN)


def test_a_pipeline_that_keeps_its_scheduler_is_refused():
    class Keeps(diffusers.LTXPipeline):
        def __setattr__(self, name, value):
            if not (name == "scheduler" and isinstance(value, FlowTurboScheduler)):
                super().__setattr__(name, value)

    pipe = Keeps(scheduler=EULER(), **pipelines.ltx())
    with pytest.raises(
        ValueError, match="Keeps accepts no other scheduler than its FlowMatchEuler"
    ):
        enable(pipe, plan=PLAN)
    assert "not enabled" in summary(pipe)


def test_summary_shows_that_the_scheduler_was_replaced():
    _, pipe = built("LTX")
    enable(pipe, plan=PLAN)
    pipe.scheduler = EULER()
    assert "NOT the enabled one" in summary(pipe)
    disable(pipe)


def test_unsupported_schedulers_are_refused_in_their_pipelines():
    for scheduler in (
        diffusers.FlowMatchLCMScheduler(),
        diffusers.UniPCMultistepScheduler(**pipelines.FLOW, final_sigmas_type="sigma_min"),
        EULER(stochastic_sampling=True),
    ):
        _, pipe = built("Wan", scheduler)
        with pytest.raises(ValueError, match=f"^WanPipeline: {type(scheduler).__name__}"):
            enable(pipe, plan=PLAN)
        assert pipe.scheduler is scheduler


def test_it_is_a_flow_match_euler_to_pipelines_that_ask():
    assert isinstance(FlowTurboScheduler(), EULER)
    parts = pipelines.ltx()
    cls = getattr(diffusers, "LongCatAudioDiTPipeline", None)
    if cls is not None:  # it puts another scheduler in the place of what is none
        scheduler = FlowTurboScheduler(invert_sigmas=True)
        assert cls(scheduler=scheduler, **parts).scheduler is scheduler
    cell, pipe = built("EasyAnimate", EULER(use_dynamic_shifting=True))
    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config)
    cell.call(pipe, 3)
    levels = np.exp(1) * np.linspace(1, 1 / 3, 3)  # it says mu=1
    assert np.allclose(pipe.scheduler.sigmas[:3], levels / (1 + levels - np.linspace(1, 1 / 3, 3)))


def test_step_has_the_arguments_of_flow_match_euler():
    theirs = list(inspect.signature(EULER.step).parameters)
    assert list(inspect.signature(FlowTurboScheduler.step).parameters) == theirs
    scheduler, x = FlowTurboScheduler(), torch.ones(1, 3)
    results = []
    for seed in (0, 1):
        scheduler.set_timesteps(2)
        generator = torch.Generator().manual_seed(seed)
        results.append(scheduler.step(x, scheduler.timesteps[0], x, generator=generator)[0])
    assert torch.equal(*results)


SAVED = """
import sys, torch, diffusers
{first}
pipe = diffusers.DiffusionPipeline.from_pretrained(
    sys.argv[1], text_encoder=None, tokenizer=None
)
print(type(pipe.scheduler).__name__, pipe.scheduler.config.plan)
"""


@pytest.mark.slow
def test_a_saved_pipeline_loads_in_a_new_process_after_the_import(tmp_path):
    _, pipe = built("Wan")
    enable(pipe, plan="AB2:4@3")
    pipe.save_pretrained(tmp_path)
    for first in ("import flowturbo.integrations.diffusers", ""):
        done = subprocess.run(
            [sys.executable, "-c", SAVED.format(first=first), str(tmp_path)],
            capture_output=True,
            text=True,
        )
        if first:
            assert done.stdout.split() == ["FlowTurboScheduler", "AB2:4@3"]
        elif done.returncode:  # from diffusers 0.42 on
            assert "import flowturbo.integrations.diffusers.scheduler" in done.stderr


def test_a_copy_of_an_enabled_pipeline_is_enabled_too():
    cell, pipe = built("Wan")
    enable(pipe, plan=PLAN)
    mine = copy.copy(pipe)
    mine.scheduler = copy.copy(pipe.scheduler)
    assert torch.equal(cell.call(mine, len(PLAN)), cell.call(pipe, len(PLAN)))
