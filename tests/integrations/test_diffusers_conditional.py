"""Plans with conditional evaluations in pipelines of every family: one branch, and our own loop."""

import numpy as np
import pytest
import torch

import flowturbo as ft
from flowturbo.guidance import Guidance

diffusers = pytest.importorskip("diffusers")

from integrations.pipelines import CELLS, EULER  # noqa: E402

from flowturbo.integrations.diffusers import (  # noqa: E402
    FAMILIES,
    Family,
    FlowTurboScheduler,
    disable,
    enable,
)
from flowturbo.integrations.diffusers.hook import _tensor  # noqa: E402

SHIFT = 3.0
TEXT_TO_IMAGE = [name for name, cell in CELLS.items() if not cell.image]


class Normalized(Guidance):
    """Qwen-Image and Lumina2 give the guided velocity the norm of the conditional one."""

    def _apply(self, field, x, t, cond):
        out, v_c = super()._apply(field, x, t, cond)
        return out * (v_c.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True)), v_c


def plan(pattern="FFCFC", seed=0):
    made = ft.Plan.parse(f"AB2:{pattern}@{SHIFT}")
    rng, size = np.random.default_rng(seed), len(made)
    difference = np.tril(0.1 * rng.normal(size=(size, size)))
    difference[:, [letter == "C" for letter in pattern]] = 0
    return ft.Plan(
        times=made.times,
        evaluators=made.evaluators,
        weights=made.weights,
        guidance_weights=difference,
        name="random",
    )


def built(name):
    scheduler = FlowTurboScheduler(sign=1) if CELLS[name].parts == "unet" else EULER(shift=SHIFT)
    pipe = CELLS[name].build(scheduler)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return pipe, network, FAMILIES[type(network).__name__]


class Calls:
    """Records the arguments of a network's calls, below the hook of an enabled pipeline."""

    def __init__(self, network, monkeypatch):
        self.made, forward = [], type(network).forward

        def recorded(module, *args, **kwargs):
            self.made.append((args, kwargs))
            return forward(module, *args, **kwargs)

        monkeypatch.setattr(type(network), "forward", recorded)

    def rows(self, family):
        return [len(args[0] if args else kwargs[family.state]) for args, kwargs in self.made]


def own_field(network, family, calls, times, n):
    """The network as a field whose condition is 1 for the conditional branch, 0 for the other."""
    half = {"first": (slice(n, None), slice(n)), "second": (slice(n), slice(n, None))}
    templates = {}  # by index of the time, and branch
    for k, i in enumerate(range(0, len(calls), 2 if family.conditional == "calls" else 1)):
        for branch in (0, 1):
            if family.conditional == "calls":
                templates[k, branch] = calls[i + 1 - branch]
                continue
            rows = half[family.conditional][branch]
            long = lambda a: isinstance(a, list) or (isinstance(a, torch.Tensor) and a.ndim)
            cut = lambda a, rows=rows, long=long: a[rows] if long(a) and len(a) == 2 * n else a
            args, kwargs = calls[i]
            templates[k, branch] = [*map(cut, args)], {m: cut(a) for m, a in kwargs.items()}
    negative = -1 if family.negated else 1

    def branch(x, k, which):
        args, kwargs = templates[k, which]
        state = list(x.unsqueeze(2).unbind(0)) if family.listed else x
        if args:
            out = network(state, *args[1:], **kwargs)
        else:
            out = network(**{**kwargs, family.state: state})
        v = _tensor(out)[tuple(slice(size) for size in x.shape)]
        return negative * v

    def field(x, t, cond):
        k = int(np.argmin(np.abs(times - float(t))))
        parts = [
            branch(part, k, int(c[0])) for part, c in zip(x.split(n), cond.split(n), strict=True)
        ]
        return torch.cat(parts)

    field.null_condition = torch.zeros_like
    return field


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_one_branch_runs_and_the_result_is_that_of_our_loop(name, monkeypatch):
    pipe, network, family = built(name)
    cell, made = CELLS[name], plan()
    calls = Calls(network, monkeypatch)
    starts = []
    scheduler_step = FlowTurboScheduler.step

    def step(self, output, timestep, sample, *args, **kwargs):
        starts.append(sample.clone())
        return scheduler_step(self, output, timestep, sample, *args, **kwargs)

    monkeypatch.setattr(FlowTurboScheduler, "step", step)
    enable(pipe, plan=f"AB2:{len(made)}@{SHIFT}")
    cell.call(pipe, len(made))
    disable(pipe)
    x0, sign = starts[0], pipe.scheduler.sign if cell.parts == "unet" else -1
    n = len(x0)
    field = own_field(network, family, [*calls.made], made.times, n)
    calls.made.clear()
    enable(pipe, plan=made)
    result = cell.call(pipe, len(made))
    both = [n, n] if family.conditional == "calls" else [2 * n]
    assert calls.rows(family) == [*both, *both, n, *both, n]
    scale = 4.0 if cell.parts == "z_image" else 3.0
    kind = Normalized if cell.parts in ("qwen", "lumina2") else Guidance
    guided = kind(lambda x, t, cond: sign * field(x, t, cond), scale, null=torch.zeros(n))
    with torch.no_grad():
        expected = ft.sample(made, guided, x0.float(), torch.ones(n))
    torch.testing.assert_close(result.float(), expected, rtol=1e-5, atol=1e-5)
    disable(pipe)


@pytest.mark.parametrize("name", ["SD3", "Flux", "Z-Image"])
def test_without_guidance_they_are_evaluations_of_the_model(name):
    pipe, _, family = built(name)
    off = {"Z-Image": 0.0}.get(name, 1.0)
    results = []
    for made in ("AB2:5@3", "AB2:FFCFC@3"):
        enable(pipe, plan=made)
        results.append(CELLS[name].call(pipe, 5, **{CELLS[name].guided: off}))
        disable(pipe)
    torch.testing.assert_close(*results)
    assert family.conditional


def test_img2img_starts_in_the_middle():
    pipe, _, _ = built("SD3 img2img")
    enable(pipe, plan="AB2:FFFCFC@3")
    assert torch.isfinite(CELLS["SD3 img2img"].call(pipe, 6)).all()
    disable(pipe)


def test_what_cannot_be_done_is_refused():
    pipe, network, _ = built("SD3")
    with pytest.raises(ValueError, match=r"where mine has the conditional branch.*not known"):
        enable(pipe, plan="AB2:FFC", family=Family(name="mine"))
    pipe.scheduler = FlowTurboScheduler(plan="AB2:FFC")
    with pytest.raises(ValueError, match=r"1 conditional evaluations, and the pipeline is not"):
        CELLS["SD3"].call(pipe, 3)
    assert "_diffusers_hook" not in vars(network)
