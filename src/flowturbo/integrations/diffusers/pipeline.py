"""Plans and refiners for whole pipelines: on, off, and what is on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flowturbo.guidance import Guidance
from flowturbo.integrations.diffusers._shim import DiffusionPipeline, SchedulerMixin
from flowturbo.integrations.diffusers.families import FAMILIES, Family
from flowturbo.integrations.diffusers.hook import Link, RefinerHook, install, remove
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.integrations.diffusers.tables import plan_of
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner, prepare_refiner, warn_on_mismatch
from flowturbo.types import Condition, Pipeline, ReadOnlyJson, Scheduler, Time

__all__ = ["disable", "enable", "summary"]

STATE = "_flowturbo"
UNFIT = {  # pipelines that do not run all the timesteps they are given, and why
    "LTXI2VLongMultiPromptPipeline": "LTXEulerAncestralRFScheduler has one more than it needs",
}


@dataclass(frozen=True)
class _State:
    """What ``disable`` puts back, and the scheduler that is to be at work until then."""

    scheduler: Scheduler
    enabled: FlowTurboScheduler
    network: Any  # a module, or None
    family: Family | None
    refiner: object
    blocks: bool


def enable(
    pipe: Pipeline,
    plan: Plan | str | None = None,
    refiner: Refiner | None = None,
    *,
    guidance: float | None = None,
    family: Family | None = None,
) -> None:
    """Let a flow pipeline of diffusers sample by a plan, and with a refiner.

    The pipeline gets a `FlowTurboScheduler` of its scheduler's configuration and, for a refiner, a
    hook on its network. Its weights stay untouched.

    Args:
        pipe: the pipeline, of any network; for a refiner, of a family in ``families.FAMILIES``.
        plan: to run, in place of the second-order solver on the pipeline's noise levels. Its times
            win over the pipeline's, and ``num_inference_steps`` must be ``len(plan)``.
        refiner: for the plan's refiner evaluations. It works on guided velocities of unpacked
            latents (B, C, H, W), and is shown no condition.
        guidance: the scale the refiner is told, where it was made for several: the ``w`` of
            ``u + w*(c - u)``, 1 for off. It does not follow what the pipeline is called with; where
            that can be seen and differs, a warning says so.
        family: of the network, if it is in no entry; only a refiner needs one.

    Raises:
        ValueError: if the pipeline is enabled already, does not sample with its ``scheduler``
            alone, this is not one of a flow that is understood, plan and refiner do not fit one
            another, the network's family is not known to a refiner, or an argument is not as said
            above.
    """
    _check(pipe)
    network = _network(pipe)
    family = FAMILIES.get(type(network).__name__) if family is None else family
    if not isinstance(family, Family | None):
        raise ValueError(f"family={family!r}: must be a Family; Family(name={family!r}, ...)")
    try:
        given = {} if plan is None else {"plan": plan}
        scheduler = FlowTurboScheduler.from_config(pipe.scheduler, **given)
    except ValueError as error:
        raise ValueError(f"{type(pipe).__name__}: {error}") from None
    runs = plan_of(scheduler.config.plan)
    prepared = _prepare(runs, refiner, guidance)
    if runs is not None:
        warn_on_mismatch(runs, _nothing, refiner, guidance)
    if prepared is not None and family is None:
        known = ", ".join(f"{entry.name} ({name})" for name, entry in FAMILIES.items())
        raise ValueError(
            f"the network is a {type(network).__name__}, of no family that a refiner knows: "
            f"{known}. Say how its pipeline calls it: enable(..., family=Family(...)), see "
            "flowturbo.integrations.diffusers.families"
        )
    before = pipe.scheduler
    pipe.scheduler = scheduler
    if pipe.scheduler is not scheduler:
        raise ValueError(
            f"{type(pipe).__name__} takes no other scheduler than its {type(before).__name__}"
        )
    if prepared is not None:
        assert family is not None
        scheduler.link = Link(pipe)
        module = refiner if isinstance(refiner, nn.Module) else None
        scale = guidance if hasattr(refiner, "guidance_range") else None
        try:
            install(network, RefinerHook(prepared, module, family, scheduler.link, scale))
        except ValueError:
            pipe.scheduler = before
            raise
    listed = getattr(network, "_repeated_blocks", None)
    blocks = () if family is None or listed else family.blocks
    if blocks:
        network._repeated_blocks = list(blocks)
    setattr(pipe, STATE, _State(before, scheduler, network, family, refiner, bool(blocks)))


def _parts(pipe: Pipeline) -> ReadOnlyJson:
    """The attributes of ``pipe``; refused if it is no pipeline with a scheduler."""
    parts = vars(pipe) if hasattr(pipe, "__dict__") else {}
    if not isinstance(parts.get("scheduler"), SchedulerMixin):
        raise ValueError(
            f"pipe={type(pipe).__name__}: must be a diffusers pipeline with its scheduler set"
        )
    return parts


def _check(pipe: Pipeline) -> None:
    """Refuse what is enabled, or does not sample with its own scheduler alone."""
    parts = _parts(pipe)
    if STATE in parts:
        raise ValueError(f"{type(pipe).__name__} is enabled already; disable(pipe) first")
    if type(pipe).__name__ in UNFIT:
        raise ValueError(
            f"{type(pipe).__name__} leaves out the last timestep, for its "
            f"{UNFIT[type(pipe).__name__]}: a plan would not come to its end; take another pipeline"
        )
    inner = [name for name, part in parts.items() if isinstance(part, DiffusionPipeline)]
    if inner:
        calls = " and ".join(f"enable(pipe.{name}, ...)" for name in inner)
        raise ValueError(
            f"{type(pipe).__name__} does not sample itself but through pipelines in it, each with "
            f"a scheduler: {calls}, whichever is meant"
        )
    schedulers = [name for name, part in parts.items() if isinstance(part, SchedulerMixin)]
    others = [name for name in schedulers if name != "scheduler"]
    if others:
        raise ValueError(
            f"{type(pipe).__name__} samples with its {' and '.join(others)} too, which would not "
            f"follow: set pipe.{others[0]} = None if the pipeline can do without"
        )


def disable(pipe: Pipeline) -> None:
    """Undo ``enable``: the pipeline is as it was, its former scheduler included.

    Raises:
        ValueError: if it is not enabled.
    """
    state = _state(pipe)
    if state is None:
        raise ValueError("pipe is not enabled; there is nothing to disable")
    if state.refiner is not None:
        remove(state.network)
    if state.blocks:
        del state.network._repeated_blocks
    pipe.scheduler = state.scheduler
    delattr(pipe, STATE)


def summary(pipe: Pipeline) -> str:
    """What samples in a pipeline, in a few lines: scheduler, plan, evaluations, refiner."""
    state, scheduler = _state(pipe), pipe.scheduler
    network = state.network if state else _network(pipe)
    size = _millions(network) if network is not None else ""
    family = state.family if state else FAMILIES.get(type(network).__name__)
    name = family.name if family else "no family that a refiner knows"
    whole = (
        f"{type(network).__name__} of {size} parameters" if network is not None else "no network"
    )
    lines = [f"{type(pipe).__name__}: {name}, {whole}"]
    how = "enabled" if state else "not enabled"
    if state and state.enabled is not scheduler:
        how = "NOT the one that was enabled, but put in its place since; disable, then enable again"
    lines.append(f"scheduler: {type(scheduler).__name__}, {how}")
    if isinstance(scheduler, FlowTurboScheduler):
        plan = plan_of(scheduler.config.plan)
        solver = (
            f"{scheduler.config.solver}, one evaluation for each of the pipeline's noise levels"
        )
        lines.append(f"plan: {solver if plan is None else plan}")
    if state and state.refiner is not None:
        refiner = state.refiner
        size = f" of {_millions(refiner)} parameters" if isinstance(refiner, nn.Module) else ""
        lines.append(f"refiner: {type(refiner).__name__}{size}")
    return "\n".join(lines)


def _state(pipe: Pipeline) -> _State | None:
    state: _State | None = _parts(pipe).get(STATE)
    return state


def _network(pipe: Pipeline) -> Any:
    """The transformer or U-Net, without the wrapper of ``torch.compile``; None without one."""
    for name in ("transformer", "unet"):
        network = getattr(pipe, name, None)
        if network is not None:
            return getattr(network, "_orig_mod", network)
    return None


def _prepare(plan: Plan | None, refiner: Any, guidance: float | None) -> Refiner | None:
    """The refiner as the hook calls it, checked against the plan."""
    wanted = plan.nfe["refiner"] if plan is not None else 0
    if refiner is None and guidance is not None:
        raise ValueError(
            f"guidance={guidance} is what a refiner is told, and there is none; leave it out, and "
            "pass guidance_scale=... to the pipeline's call"
        )
    if refiner is None and not wanted:
        return None
    if refiner is not None and not callable(refiner):
        raise ValueError(f"refiner={refiner!r}: must be callable, (x, t, cond, history) -> v")
    if refiner is None or plan is None or not wanted:
        raise ValueError(
            f"refiner={type(refiner).__name__ if refiner is not None else None}, and plan "
            f"{plan.name if plan else None!r} has {wanted} refiner evaluations: pass both, or none"
        )
    if not getattr(refiner, "guided", True):
        raise ValueError(
            f"{type(refiner).__name__} refines single branches of guidance; in a pipeline take one "
            "that works on guided velocities, as VelocityRefiner"
        )
    low, high = getattr(refiner, "guidance_range", (1.0, 1.0))
    if guidance is None and low != high:
        raise ValueError(
            f"the refiner was made for guidance {low:g} to {high:g}; pass the scale that the "
            "pipeline is called with, guidance=..."
        )
    scale = low if guidance is None else guidance
    return prepare_refiner(plan, Guidance(_nothing, scale, null=()), refiner)


def _nothing(x: Tensor, t: Time, cond: Condition) -> Tensor:
    raise NotImplementedError  # the network is the pipeline's to call


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.3g} million"
