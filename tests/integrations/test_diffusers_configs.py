"""Each scheduler of diffusers is supported, with the numbers of its loop, or refused by name."""

import itertools
import re

import numpy as np
import pytest
import torch
from fields import mixture

from flowturbo.plan import Plan

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

from flowturbo.integrations.diffusers import FlowTurboScheduler  # noqa: E402
from flowturbo.integrations.diffusers.configs import OPTIONS, REPLACED, SUPPORTED  # noqa: E402

EULER = diffusers.FlowMatchEulerDiscreteScheduler
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
NEEDED = {  # by classes that are made of nothing else
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "tan",
        "tsr_k": 1.0,
        "tsr_sigma": 1.0,
    },
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    "AmusedScheduler": {"mask_token_id": 4},
}
LEVELS = np.linspace(1, 1 / 5, 5)


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def exported():
    """The name and an instance of every scheduler that can be made here, of a flow if it can be."""
    for name in dir(diffusers):
        if name.endswith("Scheduler"):
            cls = getattr(diffusers, name)
            try:
                made = cls(**NEEDED.get(name, {}))
            except ImportError:  # torchsde
                continue
            yield name, cls(**FLOW) if "use_flow_sigmas" in made.config else made


def noise(n=8):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loop(scheduler, x, steps=None, **given):
    """The scheduler's own loop; the network gets the noise levels without rounding."""
    scheduler.set_timesteps(*([] if steps is None else [steps]), **given)
    inverted = scheduler.config.get("invert_sigmas", False)
    for k, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[k].double()
        u = mixture(x, sigma) if inverted else -mixture(x, 1 - sigma)
        x = scheduler.step(u, t, x, return_dict=False)[0]
    return x


# -- every class ------------------------------------------------------------------------------


def test_every_scheduler_is_supported_or_refused_by_name():
    seen = dict(exported())
    assert len(seen) > 35
    taken, said = set(), []
    for name, scheduler in seen.items():
        named = {**scheduler.config, "_class_name": name}
        for config in (scheduler, named, scheduler.config, dict(scheduler.config)):
            try:
                FlowTurboScheduler.from_config(config)
            except ValueError as error:
                said.append((name, str(error)))
            else:
                taken.add(name)
    assert taken == set(SUPPORTED) - {"FlowTurboScheduler"}
    assert len(said) > 100
    assert not [(name, error) for name, error in said if name not in error or "\n" in error]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("FlowMatchLCM", {}),
        ("FlowMapEulerDiscrete", {}),
        ("FlowMapEulerDiscrete", {"num_train_timesteps": 1000, "shift": 5.0}),
        ("LTXEulerAncestralRF", {}),
        ("LTXEulerAncestralRF", {"eta": 0.0}),
        ("Helios", {}),
        ("HeliosDMD", {}),
        ("MiniMaxH3", {}),
        ("SASolver", FLOW),
    ],
)
def test_flows_that_step_otherwise_are_refused(kind, config):
    cls = getattr(diffusers, f"{kind}Scheduler", None)
    if cls is None:
        pytest.skip("not in this version of diffusers")
    for given in (cls(**config), cls(**config).config):
        with pytest.raises(ValueError, match=f"{kind}Scheduler.*not a supported scheduler"):
            FlowTurboScheduler.from_config(given)


def test_a_table_of_a_flow_map_is_refused():
    cls = getattr(diffusers, "FlowMapEulerDiscreteScheduler", None)
    if cls is None:
        pytest.skip("not in this version of diffusers")
    with pytest.raises(ValueError, match=r"FlowMapEulerDiscreteScheduler: .*the end of a step"):
        Plan.from_scheduler(cls(), 4)


def test_a_class_of_ones_own_is_refused_by_its_name():
    class Mine(EULER):
        pass

    with pytest.raises(ValueError, match=r"test_diffusers_configs.*Mine: not a supported"):
        FlowTurboScheduler.from_config(Mine())


def test_an_option_that_is_not_known_is_refused_with_its_class(monkeypatch):
    class Next(EULER):
        def __init__(self, shift=1.0, new_thing=False):
            pass

    monkeypatch.setattr(diffusers, "FlowMatchEulerDiscreteScheduler", Next)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}
    FlowTurboScheduler.from_config(config | {"new_thing": False})
    with pytest.raises(ValueError, match=r"FlowMatchEuler.* with new_thing=True: .*not supported"):
        FlowTurboScheduler.from_config(config | {"new_thing": True})


def test_every_option_of_a_supported_class_is_known():
    own = FlowTurboScheduler().config
    for name in set(SUPPORTED) - {"FlowTurboScheduler"}:
        for key in getattr(diffusers, name)().config:
            assert key in own or key in OPTIONS or key in REPLACED or key.startswith("_")


# -- every option -----------------------------------------------------------------------------


def combinations(**options):
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))


def test_every_setting_of_flow_match_euler_has_its_numbers_or_is_refused():
    done = 0
    for config in combinations(
        num_train_timesteps=(1000, 1),
        shift=(1.0, 3.0),
        use_dynamic_shifting=(False, True),
        time_shift_type=("exponential", "linear"),
        shift_terminal=(None, 0.1),
        invert_sigmas=(False, True),
        spacing=(None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        stochastic_sampling=(False, True),
    ):
        spacing = config.pop("spacing")
        theirs = EULER(**config, **({spacing: True} if spacing else {}))
        refused = [spacing] * bool(spacing) + ["stochastic_sampling"] * config[
            "stochastic_sampling"
        ]
        if refused:
            names = "|".join(refused)
            with pytest.raises(ValueError, match=f"FlowMatchEuler.*with ({names})=True"):
                FlowTurboScheduler.from_config(theirs)
            continue
        ours = FlowTurboScheduler.from_config(theirs, solver="E")
        given = {"sigmas": LEVELS, "mu": 0.8}
        assert torch.allclose(
            loop(ours, noise(), **given), loop(theirs, noise(), **given), atol=2e-5
        )
        for name in ("sigmas", "timesteps"):
            assert torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)
        done += 1
    assert done == 64


def test_every_setting_of_unipc_has_its_numbers_or_is_refused():
    done = 0
    for config in combinations(
        solver_order=(2, 3),
        flow_shift=(1.0, 3.0),
        use_dynamic_shifting=(False, True),
        shift_terminal=(None, 0.1),
        other=(
            None,
            ("final_sigmas_type", "sigma_min"),
            ("thresholding", True),
            ("use_karras_sigmas", True),
            ("use_exponential_sigmas", True),
            ("use_beta_sigmas", True),
        ),
    ):
        other = config.pop("other")
        theirs = diffusers.UniPCMultistepScheduler(
            **FLOW, **config, **dict([other] if other else [])
        )
        if other:
            with pytest.raises(ValueError, match=f"UniPC.*with {other[0]}={other[1]!r}"):
                FlowTurboScheduler.from_config(theirs.config)
            continue
        solver = f"UNIPC{config['solver_order']}"
        ours = FlowTurboScheduler.from_config(theirs.config, solver=solver)
        given = {"sigmas": LEVELS.copy()}
        mu = {"mu": 0.8} if config["use_dynamic_shifting"] else {}
        result = loop(ours, noise(), **given, **mu)
        assert torch.allclose(result, loop(theirs, noise(), **given, **mu), atol=2e-4)
        done += 1
    assert done == 16


@pytest.mark.parametrize(
    "kind", ["DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"]
)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("algorithm_type", "sde-dpmsolver++"),
        ("final_sigmas_type", "sigma_min"),
        ("thresholding", True),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("use_lu_lambdas", True),
        ("use_flow_sigmas", False),
        ("prediction_type", "v_prediction"),
    ],
)
def test_options_are_refused_with_class_and_value(kind, option, value):
    cls = getattr(diffusers, f"{kind}Scheduler")
    if option not in cls().config or (kind, option) == ("DEISMultistep", "algorithm_type"):
        return
    scheduler = cls(**{**FLOW, option: value})
    for given in (scheduler, scheduler.config):
        with pytest.raises(
            ValueError, match="^" + re.escape(f"{kind}Scheduler with {option}={value!r}")
        ):
            FlowTurboScheduler.from_config(given)


def test_dpm_solver_has_its_numbers_on_its_levels():
    for order, shift in itertools.product((2, 3), (1.0, 3.0)):
        theirs = diffusers.DPMSolverMultistepScheduler(**FLOW, solver_order=order, flow_shift=shift)
        ours = FlowTurboScheduler.from_config(theirs.config, solver=f"DPM{order}")
        levels = 0.999 * np.linspace(1, 0, 7)[:-1]
        expected = loop(theirs, noise(), 6)
        assert torch.allclose(loop(ours, noise(), sigmas=levels), expected, atol=1e-4)


def test_mu_may_be_left_out_where_the_scheduler_allows_it():
    for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep"):
        cls = getattr(diffusers, f"{name}Scheduler")
        theirs = cls(**FLOW, use_dynamic_shifting=True, flow_shift=3.0)
        ours = FlowTurboScheduler.from_config(theirs)
        ours.set_timesteps(4)
        assert np.allclose(ours.sigmas, 1 - Plan.parse("AB2:4@3").times)
        again = FlowTurboScheduler.from_config(ours.config, flow_shift=5.0)
        again.set_timesteps(4)
        assert np.allclose(again.sigmas, 1 - Plan.parse("AB2:4@5").times)
        ours.set_timesteps(4, mu=np.log(2))
        assert np.allclose(ours.sigmas, 1 - Plan.parse("AB2:4@2").times)
    ours = FlowTurboScheduler.from_config(EULER(use_dynamic_shifting=True))
    with pytest.raises(
        ValueError, match=r"pass mu=.*from_config\(config, use_dynamic_shifting=Fal"
    ):
        ours.set_timesteps(4)


# -- the shift, by any name -------------------------------------------------------------------


def unipc(**config):
    return diffusers.UniPCMultistepScheduler(**FLOW, **config)


@pytest.mark.parametrize("name", ["shift", "flow_shift"])
@pytest.mark.parametrize(
    "scheduler", [unipc(flow_shift=3.0), unipc(), EULER(shift=3.0), FlowTurboScheduler(shift=3.0)]
)
def test_from_config_takes_another_shift(name, scheduler):
    for config in (scheduler, scheduler.config):
        ours = FlowTurboScheduler.from_config(config, **{name: 5.0})
        assert ours.config.shift == ours.shift == 5.0
        ours.set_timesteps(4)
        assert np.allclose(ours.sigmas, 1 - Plan.parse("AB2:4@5").times)
        again = FlowTurboScheduler.from_config(ours.config, **{name: 7.0})
        assert again.config.shift == 7.0
        assert again.config.get("flow_shift", 7.0) == 7.0
    if isinstance(scheduler, diffusers.UniPCMultistepScheduler):
        ours = FlowTurboScheduler.from_config(scheduler.config, **{name: 5.0})
        assert diffusers.UniPCMultistepScheduler.from_config(ours.config).config.flow_shift == 5.0


def test_the_shift_is_that_of_the_class():
    both = EULER.from_config(unipc(flow_shift=3.0).config)  # whose shift is 1 all the same
    assert FlowTurboScheduler.from_config(both).config.shift == 1.0
    both = diffusers.UniPCMultistepScheduler.from_config(EULER(shift=3.0).config, **FLOW)
    assert FlowTurboScheduler.from_config(both).config.shift == 1.0
    moved = EULER(shift=3.0)
    moved.set_shift(2.0)
    assert FlowTurboScheduler.from_config(moved).config.shift == 2.0
    with pytest.raises(ValueError, match=r"shift=2\.0 and flow_shift=5\.0: they are the same"):
        FlowTurboScheduler.from_config(EULER().config, shift=2.0, flow_shift=5.0)
    for shift in (0, -1.0, "5", float("nan")):
        with pytest.raises(ValueError, match=r"shift=.*must be one finite number above 0"):
            FlowTurboScheduler.from_config(unipc().config, flow_shift=shift)


def test_a_shift_that_would_do_nothing_is_refused():
    config = EULER(use_dynamic_shifting=True).config
    for name in ("shift", "flow_shift"):
        with pytest.raises(ValueError, match=rf"Euler.* {name}=5.0: .*use_dynamic_shifting=False"):
            FlowTurboScheduler.from_config(config, **{name: 5.0})
        given = {name: 5.0, "use_dynamic_shifting": False}
        assert FlowTurboScheduler.from_config(config, **given).shift == 5.0


def test_the_levels_of_an_edm_are_refused():
    scheduler = EULER(shift=3.0)  # as Cosmos-Predict2 leaves it
    scheduler.register_to_config(sigma_max=80.0, sigma_data=1.0, final_sigmas_type="sigma_min")
    with pytest.raises(ValueError, match=r"FlowMatchEuler.*with sigma_data=1.0: .*beyond 1$"):
        FlowTurboScheduler.from_config(scheduler)


def test_set_shift():
    ours, theirs = FlowTurboScheduler(shift=3.0), EULER(shift=3.0)
    for scheduler in (ours, theirs):
        scheduler.set_shift(2.0)
        scheduler.set_timesteps(sigmas=LEVELS)
    assert ours.shift == theirs.shift == 2.0
    assert torch.allclose(ours.sigmas, theirs.sigmas)
    with pytest.raises(ValueError, match="shift=-1"):
        ours.set_shift(-1)
    for config in ({"plan": "AB2:4"}, {"use_dynamic_shifting": True}):
        with pytest.raises(ValueError, match=r"set_shift\(2.0\) would change nothing"):
            FlowTurboScheduler(**config).set_shift(2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shfit": 3.0}, "shfit=3.0: from_config takes no shfit; did you mean shift?"),
        ({"solvr": "E"}, "did you mean solver?"),
        ({"solver_order": 3}, "solver_order=3: from_config takes no solver_order"),
        ({"x": 1}, "x=1: from_config takes no x; known are "),
    ],
)
def test_unknown_keywords_are_refused_with_the_nearest(given, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        FlowTurboScheduler.from_config(EULER().config, **given)


def test_unused_keywords_come_back_where_asked_for():
    scheduler, unused = FlowTurboScheduler.from_config(
        EULER().config, return_unused_kwargs=True, shift=2.0, other=1
    )
    assert scheduler.config.shift == 2.0
    assert unused["other"] == 1


@pytest.mark.parametrize("config", [None, "folder", 3, [1]])
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(ValueError, match=r"config=.*must be a scheduler or its configuration"):
        FlowTurboScheduler.from_config(config)


def test_a_configuration_without_class_is_taken_if_it_can_be_no_other():
    assert FlowTurboScheduler.from_config({"shift": 3.0, "solver": "E"}).config.shift == 3.0
    with pytest.raises(
        ValueError, match=r"shfit=3.0 in a configuration without _class_name.*shift"
    ):
        FlowTurboScheduler.from_config({"shfit": 3.0})
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    assert FlowTurboScheduler.from_config(heun).config.shift == 3.0


def test_what_is_done_without_stays_away():
    config = EULER(shift=2.0, use_karras_sigmas=True).config
    ours = FlowTurboScheduler.from_config(config, use_karras_sigmas=False)
    assert ours.config.use_karras_sigmas is False
    assert FlowTurboScheduler.from_config(ours.config).config.shift == 2.0
    assert ours.config.stochastic_sampling is False
