"""Plans under a budget of milliseconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fields import mixture
from tuned import Oracle, initial_noise

import flowturbo as ft
from flowturbo.tuning.cost import affordable, time_evaluations
from flowturbo.tuning.search import Budget


def test_a_budget_buys_evaluations_of_the_model_and_refiners():
    assert affordable(10.0, {"model": 2.0, "refiner": 0.0}) == [Budget(full=5, refiners=0)]
    assert affordable(10.0, {"model": 2.0, "refiner": 0.5}) == [
        Budget(full=n, refiners=r) for n, r in ((5, 0), (4, 4), (3, 6))
    ]
    apart = {"model": 2.0, "conditional": 1.0, "refiner": 0.0}
    assert affordable(10.0, apart) == [
        Budget(full=n, conditional=c, refiners=0) for n, c in ((5, 0), (4, 2), (3, 3))
    ]
    with pytest.raises(ValueError, match=r"budget_ms=3: .* at least 4"):
        affordable(3.0, {"model": 2.0, "refiner": 0.5})


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but where the returned function moves it."""
    now = [0.0]
    monkeypatch.setattr("flowturbo.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def taking(seconds, fn):
        def timed(*arguments, **named):
            now[0] += seconds
            return fn(*arguments, **named)

        return timed

    return taking


def test_costs_are_timed(clock):
    slow = clock(0.02, lambda x, t, cond: mixture(x, t))
    light = type("Light", (Oracle,), {"__call__": clock(0.001, Oracle.__call__)})()
    costs = time_evaluations(slow, light, initial_noise(8), None, 1.0, repeats=3)
    assert costs == {
        "model": pytest.approx(20),
        "conditional": pytest.approx(20),  # where nothing is guided
        "refiner": pytest.approx(1),
    }


def test_a_refiner_is_timed_and_counts(clock):
    slow = clock(0.005, lambda x, t, cond: mixture(x, t))
    light = type("Light", (Oracle,), {"__call__": clock(0.0001, Oracle.__call__)})()
    dear = type("Dear", (Oracle,), {"__call__": clock(0.006, Oracle.__call__)})()
    few = dict(nfe=4, noise=initial_noise(64), search=False)
    assert ft.tune(slow, refiner=light, **few).nfe["refiner"] > 0
    plan = ft.tune(slow, refiner=dear, **few)
    assert plan.nfe["refiner"] == 0
    assert "evaluations more, which cost as much as its" in plan.info["notes"][0]


def test_tune_under_a_budget(clock, tmp_path):
    slow = clock(0.005, lambda x, t, cond: mixture(x, t))
    light = type("Light", (Oracle,), {"__call__": clock(0.001, Oracle.__call__)})()
    plan = ft.tune(
        slow,
        budget_ms=32.0,
        refiner=light,
        noise=initial_noise(64),
        search=False,
        cache_dir=tmp_path,
    )
    assert 2 <= plan.nfe["model"] <= 6
    assert plan.nfe["refiner"] > 0
