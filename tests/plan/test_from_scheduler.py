"""Tables of diffusers' schedulers do what the schedulers' own loops do; the rest is refused."""

import copy
import itertools

import numpy as np
import pytest
import torch
from fields import mixture

from flowturbo.field import CountCalls
from flowturbo.plan import Plan
from flowturbo.sampling import sample

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EARLIER = diffusers.__version__.startswith(("0.40.", "0.41."))  # FlowMatchEuler drops timesteps
STEPS = (2, 3, 8, 16)
SHIFTS = (1.0, 3.0)
ORDERS = (1, 2, 3)
TOLERANCE = 2e-6  # of a loop in float32; DEIS loses more near t = 0, see the test of its rounding
DEIS = 3e-4


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def make(kind, **config):
    return getattr(diffusers, f"{kind}Scheduler")(**config)


def flow(kind, **config):
    return make(kind, **FLOW, **config)


def noise(n=64):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def own_loop(scheduler, x, steps=None, double=False, **given):
    """The scheduler's loop, as pipelines write it, on ``mixture`` in diffusers' convention."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(*([] if steps is None else [steps]), **given)
    scheduler.set_begin_index(0)
    if double:
        scheduler.sigmas = scheduler.sigmas.double()
    for t in scheduler.timesteps:
        u = -mixture(x, 1 - t.double() / 1000)
        x = scheduler.step(u, t, x, return_dict=False)[0]
    return x


def every_scheduler():
    for shift in SHIFTS:
        yield make("FlowMatchEulerDiscrete", shift=shift)
        yield make("FlowMatchHeunDiscrete", shift=shift)
        for order in ORDERS:
            both = {"solver_order": order, "flow_shift": shift}
            yield flow("UniPCMultistep", **both)
            yield flow("DPMSolverMultistep", **both)
            yield flow("DPMSolverSinglestep", **both, lower_order_final=True)
            yield flow("DEISMultistep", **both)
    yield make("FlowMatchEulerDiscrete", use_karras_sigmas=True)
    yield make("FlowMatchEulerDiscrete", shift_terminal=0.1)
    yield flow("UniPCMultistep", flow_shift=900.0)  # of 8 timesteps, two are 999
    yield flow("UniPCMultistep", disable_corrector=[0, 1])
    yield flow("UniPCMultistep", final_sigmas_type="sigma_min")
    yield flow("UniPCMultistep", use_karras_sigmas=True)
    yield flow("DPMSolverMultistep", final_sigmas_type="sigma_min")
    yield flow("DPMSolverMultistep", solver_type="heun", euler_at_final=True)
    yield flow("DPMSolverSinglestep", solver_type="heun")


def name(scheduler):
    return type(scheduler).__name__.removesuffix("Scheduler")


SCHEDULERS = list(every_scheduler())


def test_there_are_schedulers():
    assert len(SCHEDULERS) > 30
    assert len({name(scheduler) for scheduler in SCHEDULERS}) == 6


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=name)
def test_a_table_does_what_the_scheduler_does(scheduler):
    for steps in STEPS:
        plan, model = Plan.from_scheduler(scheduler, steps), CountCalls(mixture)
        ours = sample(plan, model, noise())
        off = (ours - own_loop(scheduler, noise(), steps)).abs().max()
        assert off < (DEIS if "DEIS" in name(scheduler) else TOLERANCE)
        assert (ours - own_loop(scheduler, noise(), steps, double=True)).abs().max() < TOLERANCE
        count = 2 * steps - 1 if "Heun" in name(scheduler) else steps
        assert plan.nfe["model"] == model.calls == count
        ready = copy.deepcopy(scheduler)
        ready.set_timesteps(steps)
        np.testing.assert_allclose(plan.times, 1 - ready.sigmas.double(), atol=1e-12)
        np.testing.assert_allclose(plan.model_times, 1 - ready.timesteps.double() / 1000, atol=1e-6)
        np.testing.assert_allclose(plan.weights.sum(1), np.diff(plan.times), atol=1e-6)
        assert plan.info["scheduler"] == type(scheduler).__name__
        assert plan.info["steps"] == steps
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("kind", ["UniPCMultistep", "DPMSolverMultistep", "DEISMultistep"])
def test_models_get_whole_timesteps(kind):
    plan = Plan.from_scheduler(flow(kind), 6)
    np.testing.assert_allclose(
        plan.model_times * 1000, np.round(plan.model_times * 1000), atol=1e-4
    )
    assert plan.model_times[1] != plan.times[1]
    times = []
    sample(plan, lambda x, t, cond: times.append(t.item()) or mixture(x, t), noise())
    assert times == plan.model_times.tolist()


def test_rounding_of_deis_is_of_the_state_alone():
    """In float32 a step of DEIS multiplies the state by a factor up to 1.2e-4 off 1, for it divides
    by times from 0.0003 on; no table does that. What it does with velocities is the table's.
    """
    field = lambda x, t, cond=None: torch.cos(9 * t) + 0 * x
    for shift, order, steps in itertools.product(SHIFTS, ORDERS, (4, 8)):
        scheduler = flow("DEISMultistep", solver_order=order, flow_shift=shift)
        plan, zero = Plan.from_scheduler(scheduler, steps), 0 * noise(1)
        scheduler.set_timesteps(steps)
        x = zero  # so that the factor has little to act on
        for t in scheduler.timesteps:
            x = scheduler.step(-field(x, 1 - t.double() / 1000), t, x, return_dict=False)[0]
        assert (x - sample(plan, field, zero)).abs().max() < 2e-5


def test_first_and_last_times_are_those_of_the_scheduler():
    ends = {
        kind: Plan.from_scheduler(flow(kind), 8).times[[0, -1]]
        for kind in ("UniPCMultistep", "DPMSolverMultistep", "DEISMultistep")
    }
    np.testing.assert_allclose(ends["UniPCMultistep"], [1e-6, 1], atol=1e-7)
    np.testing.assert_allclose(ends["DPMSolverMultistep"], [1e-3, 1], atol=1e-7)
    np.testing.assert_allclose(ends["DEISMultistep"], [1e-3, 1 - 0.999 / 8], atol=1e-7)
    assert not Plan.from_scheduler(flow("DEISMultistep"), 8).weights[-1].any()


def test_euler_and_heun_are_the_textbook_methods():
    times = 1 - np.linspace(1, 0.25, 4)
    plan = Plan.from_scheduler(make("FlowMatchEulerDiscrete"), sigmas=1 - times)
    euler = Plan.euler(4)
    np.testing.assert_allclose(plan.weights, euler.weights, atol=1e-7)
    heun = Plan.from_scheduler(make("FlowMatchHeunDiscrete"), 4)
    own = Plan.blocks("H3E1", times=np.unique(heun.times))
    np.testing.assert_allclose(heun.weights, own.weights, atol=1e-12)


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "given"),
    [
        (make("FlowMatchEulerDiscrete", shift=3.0), {"sigmas": [1.0, 0.6, 0.3]}),
        (make("FlowMatchEulerDiscrete", shift=3.0), {"timesteps": [1000.0, 600.0, 300.0]}),
        (
            make("FlowMatchEulerDiscrete"),
            {"sigmas": [1.0, 0.6, 0.3], "timesteps": [1000.0, 650.0, 300.0]},
        ),
        (
            make("FlowMatchEulerDiscrete", use_dynamic_shifting=True),
            {"sigmas": np.linspace(1, 1 / 5, 5), "mu": 0.9},
        ),
        (flow("UniPCMultistep", solver_order=3), {"sigmas": np.linspace(1, 1 / 7, 7)}),
        (flow("UniPCMultistep", use_dynamic_shifting=True), {"steps": 6, "mu": 1.1}),
        (flow("DPMSolverMultistep", use_dynamic_shifting=True), {"steps": 6, "mu": 1.1}),
        (flow("DEISMultistep", use_dynamic_shifting=True), {"steps": 6, "mu": np.float32(1.1)}),
    ],
)
def test_options_are_passed_on(scheduler, given):
    if "timesteps" in given and EARLIER:
        with pytest.raises(ValueError, match="but ignores them; leave them out"):
            Plan.from_scheduler(scheduler, **given)
        return
    plan = Plan.from_scheduler(scheduler, **given)
    for key in ("sigmas", "mu", "timesteps"):
        assert (key in plan.info) == (key in given)
    if "steps" not in given:
        assert plan.info["steps"] == len(next(iter(given.values())))
    else:
        given = {"num_inference_steps": given["steps"], "mu": given["mu"]}
    theirs = own_loop(scheduler, noise(), **{k: np.asarray(v) for k, v in given.items()})
    ours = sample(plan, mixture, noise())
    assert (ours - theirs).abs().max() < (DEIS if "DEIS" in name(scheduler) else TOLERANCE)


def test_eight_steps_by_default():
    assert len(Plan.from_scheduler(flow("UniPCMultistep"))) == 8


def test_inverted_sigmas_are_our_convention():
    scheduler = make("FlowMatchEulerDiscrete", invert_sigmas=True)
    plan, x = Plan.from_scheduler(scheduler, 6), noise()
    assert plan.times[0] < 1e-6
    assert plan.times[-1] == 1
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps:
        x = scheduler.step(mixture(x, t.double() / 1000), t, x, return_dict=False)[0]
    assert (sample(plan, mixture, noise()) - x).abs().max() < TOLERANCE


def test_the_scheduler_is_not_changed():
    for scheduler in (flow("UniPCMultistep"), make("FlowMatchHeunDiscrete")):
        scheduler.set_timesteps(5)
        x = scheduler.step(noise(), scheduler.timesteps[0], noise(), return_dict=False)[0]
        before, config = copy.deepcopy(scheduler.__dict__), dict(scheduler.config)
        Plan.from_scheduler(scheduler, 8)
        assert str(before) == str(scheduler.__dict__)
        assert config == dict(scheduler.config)
        scheduler.step(noise(), scheduler.timesteps[1], x)


def test_a_table_can_start_in_the_middle():
    for scheduler in SCHEDULERS:
        plan = Plan.from_scheduler(scheduler, 8)
        part = plan.restrict((plan.times[0] + plan.times[-1]) / 2)
        np.testing.assert_allclose(part.weights.sum(1), np.diff(part.times), atol=1e-6)


# -- the same solvers, built here -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "own"), [("UniPCMultistep", Plan.unipc), ("DPMSolverMultistep", Plan.dpm)]
)
def test_our_unipc_and_dpm_are_theirs(kind, own):
    for steps, shift, order in itertools.product((1, 2, 3, 8, 14, 15), SHIFTS, (2, 3)):
        theirs = Plan.from_scheduler(flow(kind, solver_order=order, flow_shift=shift), steps)
        ours = own(steps, order, times=theirs.times)
        np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-7)


def test_our_unipc_from_zero_is_theirs_from_almost_zero():
    for steps, order in itertools.product((3, 5, 8, 20), (2, 3)):
        theirs = Plan.from_scheduler(flow("UniPCMultistep", solver_order=order), steps)
        ours = Plan.unipc(steps, order, times=[0, *theirs.times[1:]])
        np.testing.assert_allclose(ours.weights, theirs.weights, atol=3e-5)


# -- refusals ---------------------------------------------------------------------------------


class Clipping(diffusers.FlowMatchEulerDiscreteScheduler):
    def step(self, u, t, x, **options):
        return super().step(u.clamp(-1, 1), t, x, **options)


class Damping(diffusers.FlowMatchEulerDiscreteScheduler):
    def step(self, u, t, x, **options):
        return super().step(u, t, 0.9 * x, **options)


@pytest.mark.parametrize(
    ("scheduler", "given", "message"),
    [
        (make("DDIM"), {}, "DDIMScheduler: not a flow scheduler; it has no sigmas"),
        (make("EulerDiscrete"), {}, "prediction_type='epsilon': not a flow"),
        (make("UniPCMultistep"), {}, "prediction_type='epsilon'"),
        (
            make("UniPCMultistep", prediction_type="flow_prediction"),
            {},
            "use_flow_sigmas=False: not a flow",
        ),
        (flow("UniPCMultistep", predict_x0=False), {}, "predict_x0=False"),
        (flow("UniPCMultistep", thresholding=True), {}, "thresholding=True: it is not linear"),
        (flow("UniPCMultistep", solver_type="bh1"), {}, "NaN at evaluation 7 .*'bh2'"),
        (flow("UniPCMultistep", lower_order_final=False), {}, "NaN at evaluation 7"),
        (flow("UniPCMultistep", use_dynamic_shifting=True), {}, "pass mu="),
        (make("FlowMatchEulerDiscrete", use_dynamic_shifting=True), {}, "pass mu="),
        (make("FlowMatchEulerDiscrete"), {"mu": 1.0}, "mu=1.0 has no effect"),
        (make("FlowMatchEulerDiscrete", stochastic_sampling=True), {}, "is stochastic"),
        (
            flow("DPMSolverMultistep", algorithm_type="sde-dpmsolver++"),
            {},
            "is stochastic; use 'dpmsolver\\+\\+'",
        ),
        (flow("SASolver"), {}, "nonlinear or stochastic"),
        (make("FlowMatchLCM"), {}, "nonlinear or stochastic"),
        (Clipping(), {}, "nonlinear or stochastic"),
        (Damping(), {}, "not a solver of the linear path"),
        (flow("DPMSolverMultistep", use_karras_sigmas=True), {}, "all in \\[0, 1\\]"),
        (make("FlowMatchHeunDiscrete"), {"sigmas": [1, 0.5]}, "sigmas=...: .* leave it out"),
        (flow("DEISMultistep"), {"timesteps": [999, 500]}, "timesteps=...: .* leave it out"),
        (flow("DPMSolverMultistep"), {"timesteps": [999, 500]}, "refuses these timesteps"),
        (flow("DPMSolverSinglestep"), {"timesteps": [999, 500]}, "ignores them"),
        (make("FlowMatchEulerDiscrete"), {"steps": 3, "sigmas": [1, 0.5]}, "steps=3, and 2 sigmas"),
        (make("FlowMatchEulerDiscrete"), {"sigmas": [0.2, 0.7, 0.5]}, "must all ascend"),
        (flow("DEISMultistep"), {"steps": 1}, "must lead from one time to another"),
        (make("FlowMatchEulerDiscrete"), {"steps": 0}, "steps=0"),
        (make("FlowMatchEulerDiscrete"), {"steps": 2.5}, "steps=2.5"),
        (make("FlowMatchEulerDiscrete"), {"steps": True}, "steps=True"),
        (make("FlowMatchEulerDiscrete"), {"steps": 10**6}, "from 1 to 1000"),
        (make("FlowMatchEulerDiscrete"), {"steps": 8, "sigmas": 0.5}, "steps=8, and 1 sigmas"),
        (None, {}, "scheduler=None: must be a flow scheduler of diffusers"),
    ],
)
def test_refusals_give_the_reason_in_one_line(scheduler, given, message):
    with pytest.raises(ValueError, match=message) as error:
        Plan.from_scheduler(scheduler, **given)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
