"""The scheduler runs plans as the library does, on the grids that pipelines ask for."""

import copy
import inspect
import json
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fields import gaussian, gaussian_flow, mixture

from flowturbo.path import interpolate
from flowturbo.plan import Plan
from flowturbo.sampling import sample

diffusers = pytest.importorskip("diffusers")

from flowturbo.integrations.diffusers import FlowTurboScheduler  # noqa: E402

EULER = diffusers.FlowMatchEulerDiscreteScheduler
PLANS = ("AB2:6", "H1P5", "H3", "RK4:2", "UNIPC3:6", "DPM2:5@3", "AB3RK:9")
LEVELS = np.linspace(1, 1 / 6, 6)
TOLERANCE = 5e-6  # of arithmetic in float64 with times in float32


def noise(n=16):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loop(scheduler, x, field=mixture, begin=0, sign=-1):
    """A pipeline's loop, after ``set_timesteps``."""
    for t in scheduler.timesteps[begin:]:
        u = sign * field(x, 1 - t.double() / 1000)
        x = scheduler.step(u, t, x, return_dict=False)[0]
    return x


def ready(*args, **given):
    scheduler = args[0] if args else FlowTurboScheduler()
    scheduler.set_timesteps(**given)
    return scheduler


# -- mathematics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheduler", "order"), [(FlowTurboScheduler(), 2), (EULER(), 1)])
def test_order_of_convergence(scheduler, order):
    exact = gaussian_flow(noise(), 0.0, 1.0)
    counts = np.array([16, 32, 64])
    errors = []
    for n in counts:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
        errors.append((loop(scheduler, noise(), gaussian) - exact).square().mean().sqrt().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


@pytest.mark.parametrize("text", PLANS)
def test_any_plan_is_run_as_sample_runs_it(text):
    plan = Plan.parse(text)
    scheduler = ready(FlowTurboScheduler(plan=plan), num_inference_steps=len(plan))
    assert len(scheduler.timesteps) == len(plan)
    assert torch.allclose(loop(scheduler, noise()), sample(plan, mixture, noise()), atol=TOLERANCE)


@pytest.mark.parametrize("solver", ["AB2", "AB3", "UNIPC2", "DPM2", "E"])
def test_solver_on_the_levels_of_the_pipeline(solver):
    scheduler = ready(FlowTurboScheduler(shift=3.0, solver=solver), num_inference_steps=6)
    plan = Plan.parse("E6@3" if solver == "E" else f"{solver}:6@3")
    assert np.allclose(scheduler.plan.times, plan.times)
    assert np.allclose(scheduler.plan.weights, plan.weights)


def test_rectified_flow_networks_have_the_other_sign():
    scheduler = ready(FlowTurboScheduler(sign=1), num_inference_steps=6)
    result = loop(scheduler, noise(), sign=1)
    assert torch.allclose(result, sample("AB2:6", mixture, noise()), atol=TOLERANCE)


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("index", [1, 2, 4])
@pytest.mark.parametrize("set_index", [True, False], ids=["set_begin_index", "looked up"])
def test_a_start_in_the_middle_is_the_plan_restricted(text, index, set_index):
    plan = Plan.parse(text)
    scheduler = ready(FlowTurboScheduler(plan=plan), num_inference_steps=len(plan))
    if set_index:
        scheduler.set_begin_index(index)
    expected = sample(plan.restrict(plan.times[index]), mixture, noise())
    assert torch.allclose(loop(scheduler, noise(), begin=index), expected, atol=TOLERANCE)


def test_one_step_is_euler():
    scheduler = ready(num_inference_steps=1)
    assert torch.allclose(loop(scheduler, noise()), sample("E1", mixture, noise()))


# -- grids ----------------------------------------------------------------------------------------


def test_the_shift_is_applied_once():
    ours = ready(FlowTurboScheduler(shift=3.0), num_inference_steps=8)
    levels = np.linspace(1, 1 / 8, 8)
    assert np.allclose(ours.sigmas[:-1], 3 * levels / (1 + 2 * levels))
    theirs = ready(EULER(shift=3.0), num_inference_steps=8)  # ends at .0089: shifted twice
    assert theirs.sigmas[-2] < 0.01 < 0.3 - 1e-6 < ours.sigmas[-2]


@pytest.mark.parametrize(
    "config",
    [
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_given_levels_become_those_of_flow_match_euler(config, kind):
    given = {"sigmas": kind(LEVELS.tolist()), "mu": 0.8}
    ours = ready(FlowTurboScheduler.from_config(EULER(**config).config), **given)
    theirs = ready(EULER(**config), sigmas=LEVELS.tolist(), mu=0.8)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-6)
    assert torch.allclose(ours.timesteps, theirs.timesteps, atol=1e-3)
    default = ready(FlowTurboScheduler(**config), num_inference_steps=6, mu=0.8)
    assert torch.allclose(default.sigmas, ours.sigmas)


def test_timesteps_are_the_network_s_and_not_shifted():
    scheduler = ready(FlowTurboScheduler(shift=3.0), timesteps=[1000.0, 700.0, 200.0])
    assert scheduler.timesteps.tolist() == [1000, 700, 200]
    assert np.allclose(scheduler.sigmas, [1, 0.7, 0.2, 0])
    both = ready(FlowTurboScheduler(), timesteps=[999, 600], sigmas=[1.0, 0.5])
    assert both.timesteps.tolist() == [999, 600]
    assert np.allclose(both.sigmas, [1, 0.5, 0])


def test_a_given_plan_wins_over_the_grid():
    scheduler = FlowTurboScheduler(plan="AB2:6@2", shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=LEVELS, mu=1.0)
    assert np.allclose(scheduler.sigmas, 1 - Plan.parse("AB2:6@2").times)
    with pytest.raises(ValueError, match=r"num_inference_steps=8.*6 evaluations"):
        scheduler.set_timesteps(8)
    scheduler.set_timesteps(timesteps=LEVELS * 900)  # as CogView4 has them
    assert np.allclose(scheduler.timesteps, 1000 - 1000 * Plan.parse("AB2:6@2").times[:-1])
    with pytest.raises(ValueError, match=r"num_inference_steps=3.*6 evaluations"):
        scheduler.set_timesteps(timesteps=[1000, 500, 100])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one number of steps"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_inference_steps": 4.5}, "=4.5: must be a whole number"),
        ({"num_inference_steps": "4"}, "='4': must be a whole number"),
        ({"num_inference_steps": 4, "sigmas": LEVELS}, "one number of steps"),
        ({"sigmas": [0.5, 1.0]}, "descend"),
        ({"sigmas": [1.0, 0.5, 0.0]}, "the 0 at the end"),
        ({"sigmas": [1.0, float("nan")]}, "finite"),
        ({"sigmas": []}, "at least one"),
        ({"sigmas": 0.5}, "sigmas=0.5: must be a list"),
        ({"sigmas": ["1", "half"]}, "must be a list of finite numbers"),
        ({"timesteps": [1500.0, 200.0]}, "descend"),
    ],
)
def test_bad_grids_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        FlowTurboScheduler().set_timesteps(**given)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("mu", [None, float("nan"), "0.5", -1000.0])
def test_dynamic_shifting_needs_mu(kind, mu):
    scheduler = FlowTurboScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    with pytest.raises(ValueError, match=r"pass mu|mu=.*must be one finite number"):
        scheduler.set_timesteps(4, mu=mu)


# -- configuration --------------------------------------------------------------------------------


def test_from_config_and_back():
    config = EULER(shift=3.0, use_dynamic_shifting=True, base_shift=0.7).config
    ours = FlowTurboScheduler.from_config(config)
    assert (ours.config.shift, ours.config.base_shift) == (3.0, 0.7)
    assert EULER.from_config(ours.config).config.base_shift == 0.7
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    sana = diffusers.DPMSolverMultistepScheduler(**flow)
    assert FlowTurboScheduler.from_config(sana.config).config.shift == 3.0


REFUSED = {
    "use_karras_sigmas": "sigmas=...",
    "use_exponential_sigmas": "sigmas=...",
    "use_beta_sigmas": "sigmas=...",
    "stochastic_sampling": "deterministic",
}


@pytest.mark.parametrize(("option", "reason"), REFUSED.items())
def test_what_it_does_not_do_is_refused(option, reason):
    config = dict(EULER().config) | {option: True}
    with pytest.raises(ValueError, match=rf"{option}=True: .*{reason}.*{option}=False\)"):
        FlowTurboScheduler.from_config(config)
    with pytest.raises(ValueError, match=option):
        FlowTurboScheduler.from_config(EULER().config, **{option: True})
    assert FlowTurboScheduler.from_config(config, **{option: False}).config.shift == 1


def test_every_option_of_flow_match_euler_is_taken_or_refused():
    theirs = set(inspect.signature(EULER).parameters)
    ours = set(inspect.signature(FlowTurboScheduler).parameters)
    assert len(theirs) > 10
    assert theirs - ours == set(REFUSED)


def test_schedulers_of_diffusions_are_refused():
    with pytest.raises(ValueError, match="a diffusion, not a flow"):
        FlowTurboScheduler.from_config(diffusers.DDIMScheduler().config)
    config = dict(EULER().config) | {"scale_factors": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"scale_factors.*grow"):
        FlowTurboScheduler.from_config(config)


@pytest.mark.parametrize(
    "config",
    [
        {"solver": "RK4"},
        {"sign": 0},
        {"time_shift_type": "square"},
        {"num_train_timesteps": 0},
        {"shift": 0.0},
        {"shift": "3"},
        {"shift_terminal": 1.0},
        {"plan": 3},
        {"use_dynamic_shifting": "no"},
        {"invert_sigmas": 1},
        {"base_shift": "a lot"},
        {"plan": Plan.euler(4, direction="backward")},
    ],
    ids=str,
)
def test_bad_configurations_are_refused(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))}"):
        FlowTurboScheduler(**config)


def test_a_plan_that_is_set_leads_from_data_to_noise_and_back():
    scheduler, x1 = FlowTurboScheduler(plan="AB2:4"), torch.linspace(-1, 2, 5)[None]

    def end(plan, x):
        scheduler.set_plan(plan)
        scheduler.set_timesteps(len(scheduler._fixed_plan))
        for t in scheduler.timesteps:
            x = scheduler.step(-gaussian(x, 1 - t / 1000), t, x).prev_sample
        return x

    x0 = end(Plan.parse("RK4:32", direction="backward", end=0.2), x1)
    assert torch.allclose(gaussian_flow(x0, 0.2, 1.0), x1, atol=1e-4)
    assert torch.allclose(end(Plan.parse("RK4:32", start=0.2), x0), x1, atol=1e-4)
    assert scheduler.config.plan == "AB2:4"
    with pytest.raises(ValueError, match="plan=3: must be a Plan"):
        scheduler.set_plan(3)


EVERY_OPTION = {
    "num_train_timesteps": 500,
    "shift": 2.5,
    "use_dynamic_shifting": True,
    "base_shift": 0.4,
    "max_shift": 1.3,
    "base_image_seq_len": 128,
    "max_image_seq_len": 2048,
    "invert_sigmas": True,
    "shift_terminal": 0.05,
    "time_shift_type": "linear",
    "solver": "UNIPC3",
    "plan": "AB2:4@2",
    "sign": 1,
    "guider": True,
}


def test_every_option_survives_a_configuration_and_a_file(tmp_path):
    defaults = inspect.signature(FlowTurboScheduler).parameters
    assert list(EVERY_OPTION) == list(defaults)
    assert all(value != defaults[key].default for key, value in EVERY_OPTION.items())
    before = FlowTurboScheduler(**EVERY_OPTION)
    before.save_pretrained(tmp_path)
    for after in (
        FlowTurboScheduler.from_config(before.config),
        FlowTurboScheduler.from_pretrained(tmp_path),
        FlowTurboScheduler.from_config(EULER.from_config(before.config).config),
    ):
        assert {key: after.config[key] for key in EVERY_OPTION} == EVERY_OPTION


@pytest.mark.parametrize("plan", [None, "AB2:4@2", Plan.parse("H1P5")], ids=str)
def test_saved_and_loaded_it_is_the_same(plan, tmp_path):
    before = FlowTurboScheduler(shift=2.0, plan=plan, sign=1)
    before.save_pretrained(tmp_path)
    after = FlowTurboScheduler.from_pretrained(tmp_path)
    steps = 4 if not isinstance(plan, Plan) else len(plan)
    assert before.config.plan == after.config.plan
    assert ready(before, num_inference_steps=steps).plan == (
        ready(after, num_inference_steps=steps).plan
    )
    json.loads(before.to_json_string())


def test_a_saved_configuration_names_what_was_not_given_as_those_of_diffusers_do(tmp_path):
    scheduler = FlowTurboScheduler(shift=2.0)
    scheduler.save_pretrained(tmp_path)
    config = dict(scheduler.config)  # as the common tests of diffusers compare them
    assert "shift" not in config.pop("_use_default_values")
    assert config == FlowTurboScheduler.from_pretrained(tmp_path).config
    EULER(shift=2.0).save_pretrained(tmp_path)
    assert FlowTurboScheduler.from_pretrained(tmp_path).config.shift == 2.0
    assert FlowTurboScheduler.from_pretrained(tmp_path, flow_shift=5.0).config.shift == 5.0
    with pytest.raises(ValueError, match="did you mean shift"):
        FlowTurboScheduler.from_pretrained(tmp_path, shfit=5.0)
    theirs = dict(EULER(shift=2.0).config)  # which pipelines ask for
    del theirs["_use_default_values"]
    assert theirs.items() <= config.items()


def test_push_to_hub_uploads_the_configuration(monkeypatch):
    sent = {}

    def upload(self, folder, repo, **rest):
        sent[repo] = json.loads((Path(folder) / "scheduler_config.json").read_text("utf-8"))

    class Repo:
        repo_id = "me/flow"

    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda *a, **k: Repo)
    monkeypatch.setattr(FlowTurboScheduler, "_upload_folder", upload)
    FlowTurboScheduler(shift=2.5).push_to_hub("flow", subfolder="scheduler")
    assert sent["me/flow"]["shift"] == 2.5


# -- the checks diffusers runs on its own ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 7, 6), (1, 3)], ids=str)
def test_shape_and_dtype_stay(dtype, shape):
    scheduler = ready(num_inference_steps=3)
    x = torch.ones(shape, dtype=dtype)
    for t in scheduler.timesteps:
        out = scheduler.step(x * 0.5, t, x)
        assert (out.prev_sample.shape, out.prev_sample.dtype) == (shape, dtype)
        x = out.prev_sample


def test_arithmetic_is_in_float32():
    exact = ready(num_inference_steps=4)
    rough = ready(num_inference_steps=4)
    generator = torch.Generator().manual_seed(0)
    for t in exact.timesteps:
        x, u = torch.randn(2, 1, 64, generator=generator).bfloat16()
        expected = exact.step(u.float(), t, x.float()).prev_sample
        assert torch.equal(rough.step(u, t, x).prev_sample, expected.bfloat16())


def test_tuple_is_the_output():
    a, b = ready(num_inference_steps=3), ready(num_inference_steps=3)
    x = noise()
    one = a.step(x, a.timesteps[0], x).to_tuple()
    two = b.step(x, b.timesteps[0], x, return_dict=False)
    assert len(one) == len(two) == 1
    assert torch.equal(one[0], two[0])


@pytest.mark.parametrize(
    "timestep", [3, np.int64(1000), torch.tensor(3), torch.tensor(3, dtype=torch.int32)]
)
def test_whole_timesteps_are_refused(timestep):
    scheduler = ready(num_inference_steps=3)
    with pytest.raises(ValueError, match="whole numbers"):
        scheduler.step(noise(), timestep, noise())


def test_whole_timesteps_in_a_tensor_are_those_without_their_fraction():
    given, truncated = ready(num_inference_steps=7), ready(num_inference_steps=7)
    x = y = noise()
    for t in given.timesteps:
        x = given.step(-mixture(x, 1 - t.double() / 1000), t, x).prev_sample
        whole = t.long()  # as SkyReels has them
        y = truncated.step(-mixture(y, 1 - t.double() / 1000), whole, y).prev_sample
    assert torch.equal(x, y)
    truncated.set_timesteps(7)
    truncated.step(y, truncated.timesteps[2:3].long(), y)
    assert truncated.step_index == 3
    truncated.set_timesteps(2000)
    with pytest.raises(ValueError, match="timestep=500: 2 of the timesteps"):
        truncated.step(y, torch.tensor(500), y)


def test_a_timestep_left_out_or_done_twice_is_refused():
    for begin in (None, 0):
        scheduler = ready(num_inference_steps=4)
        if begin is not None:
            scheduler.set_begin_index(begin)
        scheduler.step(noise(), scheduler.timesteps[0], noise())
        for timestep in (scheduler.timesteps[2], 500.0, torch.tensor(1000.0), torch.tensor(250)):
            with pytest.raises(ValueError, match=r"the next of this run is 1.*copy\.copy"):
                scheduler.step(noise(), timestep, noise())
        scheduler.step(noise(), scheduler.timesteps[1], noise())
    scheduler = ready(FlowTurboScheduler(plan="H2"), num_inference_steps=4)
    for t in scheduler.timesteps.tolist():  # of which two are the same
        if scheduler.step_index is None:
            scheduler.set_begin_index(0)
        scheduler.step(noise(), t, noise())


def test_steps_without_or_beyond_a_run_are_refused():
    scheduler = FlowTurboScheduler()
    scheduler.set_begin_index(0)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(noise(), 1000.0, noise())
    scheduler.set_timesteps(2)
    loop(scheduler, noise())
    with pytest.raises(ValueError, match="all 2 steps are done"):
        scheduler.step(noise(), scheduler.timesteps[0], noise())
    with pytest.raises(ValueError, match="begin_index=2"):
        scheduler.set_begin_index(2)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="none of the timesteps"):
        scheduler.step(noise(), 123.0, noise())
    for timestep in (None, "500", torch.tensor([1000.0, 500.0])):
        with pytest.raises(ValueError, match=r"timestep=.*one finite number"):
            scheduler.step(noise(), timestep, noise())
    with pytest.raises(ValueError, match=r"\(16, 1\): must be that of sample, \(16, 2\)"):
        scheduler.step(noise()[:, :1], 500.0, noise())
    scheduler.step(noise(), 500.0, noise())
    assert scheduler.step_index == 2
    scheduler = ready(FlowTurboScheduler(plan="H2"), num_inference_steps=4)
    with pytest.raises(ValueError, match="2 of the timesteps"):
        scheduler.step(noise(), 500.0, noise())


def test_scale_noise_is_the_state_of_the_path():
    scheduler = ready(FlowTurboScheduler(shift=2.0), num_inference_steps=5)
    x0, x1 = noise(4), noise(4) + 2
    times = 1 - scheduler.sigmas.double()
    asked = scheduler.timesteps[[0, 3, 1, 4]]
    expected = interpolate(x0, x1, times[[0, 3, 1, 4]])
    assert torch.allclose(scheduler.scale_noise(x1, asked, x0), expected, atol=1e-6)
    scheduler.set_begin_index(2)
    expected = interpolate(x0, x1, times[2])
    assert torch.allclose(scheduler.scale_noise(x1, asked, x0), expected, atol=1e-6)
    assert torch.allclose(scheduler.add_noise(x1, x0, asked), expected, atol=1e-6)
    scheduler.step(x0, scheduler.timesteps[2], x0)
    expected = interpolate(x0, x1, times[3])  # where the next step begins, as inpainting needs it
    assert torch.allclose(scheduler.scale_noise(x1, asked, x0), expected, atol=1e-6)
    with pytest.raises(ValueError, match="needs noise"):
        scheduler.scale_noise(x1, asked)


def test_predicted_clean_image():
    scheduler = ready(num_inference_steps=4)
    assert scheduler.predicted is None
    x1 = noise() * 0.7 + 3
    x = noise()
    for t in scheduler.timesteps:
        x = scheduler.step(noise() - x1, t, x).prev_sample  # a straight path to x1
        assert torch.allclose(scheduler.predicted, x1)


def test_what_others_do_to_the_sample_stays():
    scheduler, plan = ready(num_inference_steps=4), Plan.parse("AB2:4")
    x = noise()
    for t in scheduler.timesteps:
        x = scheduler.step(-mixture(x, 1 - t.double() / 1000), t, x).prev_sample
        x = x.clamp(-1, 1)
    expected = sample(plan, mixture, noise(), callback=lambda s: s.x.clamp(-1, 1))
    assert torch.allclose(x, expected, atol=TOLERANCE)


def test_it_keeps_copies_of_velocities():
    scheduler, buffer, x = ready(num_inference_steps=3), noise(), noise()
    expected = loop(ready(num_inference_steps=3), noise())
    for t in scheduler.timesteps:
        buffer.copy_(-mixture(x, 1 - t.double() / 1000))  # as a compiled network reuses its output
        x = scheduler.step(buffer, t, x).prev_sample
    assert torch.equal(x, expected)


def test_a_copy_in_the_middle_of_a_run_goes_its_own_way():
    scheduler, alone = ready(num_inference_steps=4), ready(num_inference_steps=4)
    expected = loop(alone, noise())
    t = scheduler.timesteps
    x = scheduler.step(-mixture(noise(), 0.0), t[0], noise()).prev_sample
    other = copy.copy(scheduler)
    for k in range(1, 4):
        x = scheduler.step(-mixture(x, 1 - t[k].double() / 1000), t[k], x).prev_sample
        other.step(5 * x, t[k], x)
    assert torch.equal(x, expected)
    assert other.step_index == scheduler.step_index == 4


def test_threads_with_copies_do_not_disturb_one_another():
    shared = FlowTurboScheduler(shift=2.0)
    barrier, results = threading.Barrier(8), {}

    def run(i):
        mine = copy.copy(shared)
        barrier.wait()
        mine.set_timesteps(4 + i)
        results[i] = loop(mine, noise() + i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        alone = ready(FlowTurboScheduler(shift=2.0), num_inference_steps=4 + i)
        assert torch.equal(results[i], loop(alone, noise() + i))


def test_threads_that_share_a_scheduler_do_not_disturb_one_another():
    shared = FlowTurboScheduler(shift=2.0, solver="AB3")
    barrier, results = threading.Barrier(8), {}

    def run(i):
        barrier.wait()
        shared.set_timesteps(4 + i % 4)  # as many as another thread, and not
        x = noise() + i
        for t in shared.timesteps:
            time.sleep(0)  # let another in
            x = shared.step(-mixture(x, 1 - t.double() / 1000), t, x).prev_sample
            assert shared.predicted.shape == x.shape
        results[i] = x, shared.step_index, shared.num_inference_steps

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        alone = ready(FlowTurboScheduler(shift=2.0, solver="AB3"), num_inference_steps=4 + i % 4)
        assert torch.equal(results[i][0], loop(alone, noise() + i))
        assert results[i][1:] == (4 + i % 4, 4 + i % 4)


def test_a_run_may_go_on_in_another_thread():
    scheduler, x = ready(num_inference_steps=4), noise()
    expected = loop(ready(num_inference_steps=4), noise())
    for k in range(4):
        done = []

        def step(k=k, x=x, done=done):
            t = scheduler.timesteps[k]
            done.append(scheduler.step(-mixture(x, 1 - t.double() / 1000), t, x).prev_sample)

        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        (x,) = done
    assert torch.equal(x, expected)
    assert scheduler.step_index == 4


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_of_any_kind_goes_on_by_itself(how):
    scheduler, x = ready(num_inference_steps=4), noise()
    expected = loop(ready(num_inference_steps=4), noise())
    x = scheduler.step(-mixture(x, 0.0), scheduler.timesteps[0], x).prev_sample
    other = how(scheduler)
    assert other.config == scheduler.config
    scheduler.set_timesteps(2)
    for t in other.timesteps[1:]:
        x = other.step(-mixture(x, 1 - t.double() / 1000), t, x).prev_sample
    assert torch.equal(x, expected)
    assert scheduler.step_index is None


def test_noise_levels_are_on_the_device_asked_for():
    for plan in (None, "AB2:4"):
        scheduler = FlowTurboScheduler(plan=plan)
        scheduler.set_timesteps(4, device="meta")
        assert scheduler.sigmas.device.type == scheduler.timesteps.device.type == "meta"
