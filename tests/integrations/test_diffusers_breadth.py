"""What docs/diffusers.md says of each pipeline, measured; and what is special to some of them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import flowturbo as ft
from flowturbo.guidance import Guidance
from flowturbo.refiner import VelocityRefiner

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:the pipeline's timesteps are not"),
]

from integrations import breadth, pipelines  # noqa: E402
from integrations.breadth import ROWS, built, enabled, refined  # noqa: E402
from integrations.pipelines import EULER, final, velocity  # noqa: E402

from flowturbo.integrations.diffusers import FAMILIES, Family, disable, enable  # noqa: E402

WHOLE = [name for name in ROWS if ROWS[name].linear and name != "LTX2"]
BRANCHED = [name for name in WHOLE if name not in ("Flux2", "FLUX Fill")]


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def test_the_table_has_all_rows():
    assert len(breadth.documented()) == len(ROWS) > 20


def said(name):
    return breadth.documented()[[*ROWS].index(name)]


@pytest.mark.parametrize("name", ROWS)
def test_the_table_says_what_each_pipeline_does(name):
    pipeline, difference, ab2, heun, *rest = said(name)
    assert [pipeline, *rest] == breadth.uses(name)
    assert abs(breadth.difference(name) - float(difference)) < 1e-5
    assert 1.6 < float(breadth.order(name, "AB2:", 8)) < 2.6
    assert float(ab2) > 1.8
    assert heun.startswith("no") or float(heun) > 1.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_table_says_which_orders_are_measured(name):
    for now, then in zip(breadth.row(name)[2:4], said(name)[2:4], strict=True):
        if then.startswith("no"):
            assert now == then
        else:
            assert abs(float(now) - float(then)) < 0.25


# -- conditional evaluations and refiners, as our own loop runs them ------------------------------


class Asked(Guidance):
    """Guidance as a pipeline applies it."""

    def __init__(self, cell):
        self.asked, x0 = velocity(cell)
        plain, self.x0 = velocity(cell.unguided())[0], x0
        super().__init__(plain, 3.0, null=torch.zeros(len(x0)))

    def _apply(self, field, x, t, cond):
        return self.asked(x, t), field(x, t)


def branched():
    """AB2 with two conditional evaluations, which add random amounts of the guidance terms."""
    made = ft.Plan.parse(breadth.BRANCHED + "@3")
    terms = np.tril(0.1 * np.random.default_rng(0).normal(size=(len(made), len(made))))
    terms[:, [evaluator == "conditional" for evaluator in made.evaluators]] = 0
    return ft.Plan(
        times=made.times,
        evaluators=made.evaluators,
        weights=made.weights,
        guidance_weights=terms,
        name="random terms",
    )


@pytest.mark.parametrize("name", BRANCHED)
def test_conditional_evaluations_are_those_of_our_loop(name):
    cell, pipe = built(name)
    asked, plan = Asked(cell), branched()
    with enabled(pipe, plan):
        result = final(cell, pipe, len(plan))
    expected = ft.sample(plan, asked, asked.x0, torch.zeros(len(asked.x0)))
    torch.testing.assert_close(result.float(), expected, rtol=1e-4, atol=1e-4)


def probe(x, t, cond, history):
    """A refiner whose answer is the same however the state is laid out."""
    return history[-1][1] + 0.3 * torch.sin(x) + t


@pytest.mark.parametrize("name", WHOLE)
def test_a_refiner_does_what_it_does_in_our_loop(name):
    cell, pipe = built(name)
    with enabled(pipe, refined(), probe):
        result = final(cell, pipe, len(refined()))
    field, x0 = velocity(cell)
    expected = ft.sample(refined(), field, x0, refiner=probe)
    torch.testing.assert_close(result.float(), expected, rtol=1e-4, atol=1e-4)


def test_a_small_refiner_of_videos():
    cell, pipe = built("Wan")
    field, x0 = velocity(cell)
    torch.manual_seed(0)
    refiner = VelocityRefiner.small(x0.shape[1:], (1.0, 5.0), width=4, depth=1)
    torch.nn.init.normal_(refiner.network.last.weight, std=0.1)
    refiner.eval().requires_grad_(False)
    enable(pipe, plan=refined(), refiner=refiner, guidance=3.0)
    result = final(cell, pipe, len(refined()))
    disable(pipe)
    scaled = lambda x, t, cond, history: refiner(x, t, cond, history, 3.0)
    expected = ft.sample(refined(), field, x0, refiner=scaled)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    with enabled(pipe, "AB2:5@3"):
        assert (final(cell, pipe, 5) - result).abs().max() > 1e-3


def test_guidance_with_a_memory_does_not_change_what_a_refiner_answers():
    cell, pipe = built("ACE-Step")
    kinds = ft.Plan.parse("AB2:FFRFF").evaluators
    plan = replace(ft.Plan.parse("E5@3"), evaluators=kinds)
    states, said = [], []

    def refiner(x, t, cond, history):
        said.append(probe(x, t, cond, history))
        return said[-1]

    def keep(pipe, i, t, kept):
        states.append(kept["latents"])
        return kept

    with enabled(pipe, plan, refiner):
        cell.call(pipe, 5, callback_on_step_end=keep)
    (v,) = said
    torch.testing.assert_close(states[2], states[1] + float(plan.weights[2, 2]) * v.movedim(1, -1))


def test_videos_are_packed_as_ltx_does():
    from flowturbo.integrations.diffusers.families import pack, unpack

    x = torch.randn(2, 4, 3, 5, 6)
    tokens = diffusers.LTXPipeline._pack_latents(x)
    assert torch.equal(pack(x), tokens)
    assert torch.equal(unpack(tokens, (3, 5, 6)), x)


# -- two networks ---------------------------------------------------------------------------------


def test_both_networks_of_wan_2_2_are_enabled_and_left_as_they_were():
    cell, pipe = built("Wan 2.2")
    both = (pipe.transformer, pipe.transformer_2)
    before = [dict(vars(network)) for network in both]
    original = cell.call(pipe, 4)
    plan = ft.Plan.parse("AB2:FFRFFFRF")
    seen = []

    def refiner(x, t, cond, history):
        seen.append(t)
        return probe(x, t, cond, history)

    with enabled(pipe, plan, refiner):
        assert all("_diffusers_hook" in vars(network) for network in both)
        final(cell, pipe, len(plan))
    assert [1 - t > 0.6 for t in seen] == [True, False]
    assert before == [dict(vars(network)) for network in both]
    assert torch.equal(cell.call(pipe, 4), original)


@pytest.mark.slow
def test_a_plan_that_runs_across_the_boundary_of_wan_2_2_loses_its_order():
    cell, pipe = built("Wan 2.2")
    exact = breadth.end("Wan 2.2", "RK4:", 32)

    def error(plan):
        with breadth.slowed(pipe), enabled(pipe, plan):
            return float((final(cell, pipe, 64) - exact).square().mean().sqrt())

    whole, anew = error("AB2:64"), error(breadth.anew("AB2:32", 0.4))
    said = breadth.PAGE.read_text().split("### Two networks")[1]
    assert f"ended {whole:.1g} (RMS)" in said
    assert f"ended {anew:.1g} from it" in said
    assert anew < whole / 10


def test_a_hook_on_the_second_network_alone_is_refused_and_nothing_changes():
    _, pipe = built("Wan 2.2")
    _, other = built("Wan")
    other.transformer = pipe.transformer_2
    before = pipe.scheduler, dict(vars(pipe.transformer))
    with enabled(other, refined(), probe), pytest.raises(ValueError, match="has a refiner already"):
        enable(pipe, plan=refined(), refiner=probe)
    assert before == (pipe.scheduler, dict(vars(pipe.transformer)))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("Flux2", "AB2:FFC", r"conditional.*Flux2Pipeline cannot run: guidance is an input of its"),
        ("FLUX Fill", "AB2:FFC", r"FluxFillPipeline cannot run: guidance is an input"),
        ("LTX2", "AB2:FFC", r"conditional.*LTX2Pipeline cannot run: its network predicts a"),
        ("LTX2", "H2", r"'H2' has an evaluation at t = 1.*LTX2Pipeline cannot run: it divides"),
    ],
)
def test_evaluations_that_a_pipeline_cannot_run_are_refused(name, plan, message):
    _, pipe = built(name)
    before = dict(vars(pipe)), dict(vars(pipe.transformer))
    with pytest.raises(ValueError, match=message):
        enable(pipe, plan=plan)
    assert before == (dict(vars(pipe)), dict(vars(pipe.transformer)))


def test_a_first_frame_that_stays_is_refused_with_a_refiner_alone():
    pipe = diffusers.LTXImageToVideoPipeline(scheduler=EULER(), **pipelines.ltx())
    with pytest.raises(ValueError, match=r"refiner evaluations.*only the others are stepped"):
        enable(pipe, plan=refined(), refiner=probe)
    with enabled(pipe, "AB2:5@3"):
        pass
    for pipeline in ("HunyuanVideoImageToVideoPipeline", "Kandinsky5I2VPipeline"):
        assert hasattr(diffusers, pipeline)
        assert set(FAMILIES[pipeline].refused) == {"refiner", "conditional"}


def test_a_family_given_by_hand_comes_first():
    _, pipe = built("Flux2")
    copied = copy.copy(pipe)
    with pytest.raises(ValueError, match="where mine has the conditional branch"):
        enable(copied, plan="AB2:FFC", family=Family(name="mine"))
