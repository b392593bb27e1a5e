"""Plans and refiners for whole pipelines: `enable`, `disable` and `summary`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from flowturbo.guidance import Guidance
from flowturbo.integrations.diffusers._shim import DiffusionPipeline, SchedulerMixin
from flowturbo.integrations.diffusers.families import FAMILIES, Family, Kind, family_of
from flowturbo.integrations.diffusers.fit import Fit, check_fit, warn_of_weights
from flowturbo.integrations.diffusers.folder import is_folder, read_folder
from flowturbo.integrations.diffusers.hook import Link, RefinerHook, install, remove
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.integrations.diffusers.tables import branches_apart, needs_hook, plan_of
from flowturbo.plan import Plan, as_plan
from flowturbo.plan.plan import is_file_name
from flowturbo.refiner.binding import Refiner, prepare_refiner, warn_on_mismatch
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.types import Condition, Pipeline, ReadOnlyJson, Scheduler, Time

__all__ = ["called_network", "components_of", "disable", "enable", "network_of", "summary"]

STATE = "_flowturbo"
BLOCKS = "_repeated_blocks"  # of a network, to diffusers
UNFIT = {  # pipelines that do not run all the timesteps of their scheduler, and why
    "LTXI2VLongMultiPromptPipeline": "LTXEulerAncestralRFScheduler has one more than it needs",
}


@dataclass(frozen=True)
class _State:
    """What ``enable`` replaced and installed.

    Attributes:
        scheduler: the previous scheduler.
        enabled: the scheduler in its place.
        networks: of the pipeline; the first one runs first.
        family: of the networks, if it is known.
        refiner: the refiner that the plan uses, if any.
        hooked: whether the networks have hooks.
        blocks: whether the networks' lists of repeated blocks were added.
    """

    scheduler: Scheduler
    enabled: FlowTurboScheduler
    networks: tuple[nn.Module, ...]
    family: Family | None
    refiner: Refiner | None
    hooked: bool
    blocks: bool


def enable(
    pipe: Pipeline,
    plan: Plan | str | Path | None = None,
    refiner: Refiner | str | Path | None = None,
    *,
    guidance: float | None = None,
    family: Family | None = None,
) -> None:
    """Make a diffusers flow pipeline sample with a plan, and optionally a refiner.

    The pipeline gets a `FlowTurboScheduler` with its scheduler's configuration and, for a refiner,
    a hook on its network, or on both of Wan 2.2. Its weights are not changed.

    Args:
        pipe: the pipeline, of any network; for a refiner, of a family in ``families.FAMILIES``.
        plan: a plan, its notation or its .json file, to run in place of the second-order solver on
            the pipeline's noise levels. Its times override the pipeline's, and
            ``num_inference_steps`` must be ``len(plan)``. Or a folder that ``flowturbo tune
            --pipeline`` wrote, or one on the hub, "hf:owner/repo", which contains the refiner too.
        refiner: for the plan's refiner evaluations, or its folder; not used by a plan without any.
            It predicts guided velocities of unpacked latents (B, C, H, W), of videos (B, C, F, H,
            W), without a condition or with the pooled vector of the prompt, depending on how
            `flowturbo.train_refiner` made it.
        guidance: the scale that the refiner is conditioned on, if it was trained for a range: the
            ``w`` of ``u + w*(c - u)``, 1 for off. It must be the scale of the pipeline's calls; a
            warning is given if that is known and differs.
        family: of the network, if it has no entry; only a refiner needs one.

    Raises:
        ValueError: if the pipeline is enabled already, does not sample with its ``scheduler``
            alone, that scheduler is not supported, plan and refiner do not match, the network's
            family is unknown and a refiner needs it, the pipeline cannot run evaluations of the
            plan, a folder contains no plan or cannot be fetched, or an argument is of another type.

    Warns:
        UserWarning: now, if the plan was fitted to other weights; in the calls, if it was fitted at
            another guidance scale or size. It names both and how to fit a plan again.
    """
    _check(pipe)
    if is_folder(plan):
        plan, own = read_folder(plan)
        refiner = own if refiner is None else refiner
    networks = networks_of(pipe)
    first = next(iter(networks), None)
    family = family_of(pipe, first) if family is None else family
    if not isinstance(family, Family | None):
        raise ValueError(f"family={family!r}: must be a Family; Family(name={family!r}, ...)")
    if isinstance(refiner, str | Path):
        refiner = load_refiner(refiner)
    try:
        if is_file_name(plan):
            plan = as_plan(plan)
        options = {} if plan is None else {"plan": plan}  # notation is saved as it is
        scheduler = FlowTurboScheduler.from_config(pipe.scheduler, **options)
    except ValueError as error:
        raise ValueError(f"{type(pipe).__name__}: {error}") from None
    plan = plan_of(scheduler.config.plan)
    prepared = _prepare(plan, refiner, guidance)
    if plan is not None:
        warn_on_mismatch(plan, _nothing, refiner, guidance)
        check_fit(plan, prepared and refiner, first, family)
        warn_of_weights(plan, pipe, first)
    hooked = plan is not None and needs_hook(plan)
    if hooked and (family is None or not networks):
        known = ", ".join(
            f"{entry.name} ({name})"
            for name, entry in FAMILIES.items()
            if "refiner" not in entry.refused
        )
        raise ValueError(
            f"the network is a {type(first).__name__}, of no family that refiners and "
            f"conditional evaluations support: {known}. Describe how its pipeline calls it: "
            "enable(..., family=Family(...)), see "
            "flowturbo.integrations.diffusers.families"
        )
    if plan is not None and family is not None:
        _refuse_evaluations(type(pipe).__name__, plan, family)
    apart = plan is not None and branches_apart(plan)
    if plan is not None and apart and family is not None and family.conditional is None:
        raise ValueError(
            f"plan {plan.name!r} has conditional evaluations, and where {family.name} has the "
            "conditional branch of guidance is not known; pass family=Family(..., "
            "conditional=...), or take a plan without them"
        )
    before = pipe.scheduler
    if plan is not None and "pipeline" in plan.info:
        scheduler.fit = Fit(pipe, plan, family)
    pipe.scheduler = scheduler
    if pipe.scheduler is not scheduler:
        raise ValueError(
            f"{type(pipe).__name__} accepts no other scheduler than its {type(before).__name__}"
        )
    if hooked:
        assert family is not None
        scheduler.link = Link(pipe)
        module = refiner if isinstance(refiner, nn.Module) else None
        low, _ = getattr(refiner, "guidance_range", (None, None))  # both alike, without guidance=
        scale = low if low is None or guidance is None else guidance
        installed: list[nn.Module] = []
        try:
            for network in networks:
                hook = RefinerHook(prepared, module, family, scheduler.link, scale, apart)
                install(network, hook)
                installed.append(network)
        except ValueError:
            for network in installed:
                remove(network)
            pipe.scheduler = before
            raise
    listed = any(getattr(network, BLOCKS, None) for network in networks)
    blocks = () if family is None or listed else family.blocks
    if blocks:
        for network in networks:
            setattr(network, BLOCKS, list(blocks))
    used = None if prepared is None else refiner
    setattr(pipe, STATE, _State(before, scheduler, networks, family, used, hooked, bool(blocks)))


def components_of(pipe: Pipeline) -> ReadOnlyJson:
    """The attributes of ``pipe``; refused if it is not a pipeline with a scheduler."""
    parts = vars(pipe) if hasattr(pipe, "__dict__") else {}
    if not isinstance(parts.get("scheduler"), SchedulerMixin):
        raise ValueError(
            f"pipe={type(pipe).__name__}: must be a diffusers pipeline with its scheduler set"
        )
    return parts


def _check(pipe: Pipeline) -> None:
    """Refuse a pipeline that is enabled, or does not sample with its own scheduler alone."""
    parts = components_of(pipe)
    if STATE in parts:
        raise ValueError(f"{type(pipe).__name__} is enabled already; disable(pipe) first")
    if type(pipe).__name__ in UNFIT:
        raise ValueError(
            f"{type(pipe).__name__} leaves out the last timestep, for its "
            f"{UNFIT[type(pipe).__name__]}: a plan would not finish; use another pipeline"
        )
    inner = [name for name, part in parts.items() if isinstance(part, DiffusionPipeline)]
    if inner:
        calls = " and ".join(f"enable(pipe.{name}, ...)" for name in inner)
        raise ValueError(
            f"{type(pipe).__name__} samples through inner pipelines, each with a scheduler of its "
            f"own: call {calls}"
        )
    schedulers = [name for name, part in parts.items() if isinstance(part, SchedulerMixin)]
    others = [name for name in schedulers if name != "scheduler"]
    if others:
        raise ValueError(
            f"{type(pipe).__name__} samples with its {' and '.join(others)} too, which would not "
            f"run the plan: set pipe.{others[0]} = None if the pipeline works without"
        )


def _refuse_evaluations(pipeline: str, plan: Plan, family: Family) -> None:
    """Refuse a plan with evaluations that the pipeline cannot run, with the reason."""
    found: dict[Kind, tuple[bool, str]] = {
        "refiner": (bool(plan.nfe["refiner"]), "refiner evaluations"),
        "conditional": (branches_apart(plan), "conditional evaluations"),
        "end": (bool(plan.times[-2] == 1), "an evaluation at t = 1, where no noise is left"),
    }
    for kind, (there, what) in found.items():
        if there and kind in family.refused:
            raise ValueError(
                f"plan {plan.name!r} has {what}, which {pipeline} cannot run: "
                f"{family.refused[kind]}; take a plan without"
            )


def disable(pipe: Pipeline) -> None:
    """Undo ``enable``, and restore the previous scheduler.

    Raises:
        ValueError: if it is not enabled.
    """
    state = _state(pipe)
    if state is None:
        raise ValueError("pipe is not enabled; there is nothing to disable")
    for network in state.networks:
        if state.hooked:
            remove(network)
        if state.blocks:
            delattr(network, BLOCKS)
    pipe.scheduler = state.scheduler
    delattr(pipe, STATE)


def summary(pipe: Pipeline) -> str:
    """Scheduler, plan, evaluations and refiner of a pipeline in a few lines."""
    state, scheduler = _state(pipe), pipe.scheduler
    networks = state.networks if state else networks_of(pipe)
    family = state.family if state else family_of(pipe, network_of(pipe))
    name = family.name if family else "no family that refiners support"
    each = [f"{type(network).__name__} of {_millions(network)} parameters" for network in networks]
    whole = " and ".join(each) or "no network"
    lines = [f"{type(pipe).__name__}: {name}, {whole}"]
    how = "enabled" if state else "not enabled"
    if state and state.enabled is not scheduler:
        how = "NOT the enabled one, which was replaced since; disable, then enable again"
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
    state: _State | None = components_of(pipe).get(STATE)
    return state


def network_of(pipe: Pipeline) -> nn.Module | None:
    """The transformer or U-Net, without the wrapper of ``torch.compile``; None without one."""
    return next(iter(networks_of(pipe)), None)


def called_network(pipe: Pipeline) -> nn.Module:
    """The transformer or U-Net as the pipeline calls it, compiled or not."""
    network: nn.Module = getattr(pipe, "transformer", None) or pipe.unet
    return network


def networks_of(pipe: Pipeline) -> tuple[nn.Module, ...]:
    """All networks of a pipeline that predict velocities: Wan 2.2 has two, others one or none."""
    named = (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet"))
    found = (network for network in named if isinstance(network, nn.Module))
    return tuple(getattr(network, "_orig_mod", network) for network in found)


def _prepare(plan: Plan | None, refiner: Refiner | None, guidance: float | None) -> Refiner | None:
    """The refiner as the hook calls it, checked against the plan."""
    wanted = plan.nfe["refiner"] if plan is not None else 0
    if refiner is None and guidance is not None:
        raise ValueError(
            f"guidance={guidance} is for a refiner, and there is none; leave it out, and pass "
            "guidance_scale=... to the pipeline's call"
        )
    if refiner is None and not wanted:
        return None
    if refiner is not None and not callable(refiner):
        raise ValueError(f"refiner={refiner!r}: must be callable, (x, t, cond, history) -> v")
    if refiner is None or plan is None:
        raise ValueError(
            f"refiner={type(refiner).__name__ if refiner is not None else None}, and plan "
            f"{plan.name if plan else None!r} has {wanted} refiner evaluations: pass both, or none"
        )
    if not wanted:
        return None
    if not getattr(refiner, "guided", True):
        raise ValueError(
            f"{type(refiner).__name__} refines velocities before guidance; in a pipeline use one "
            "of guided velocities, such as VelocityRefiner"
        )
    low, high = getattr(refiner, "guidance_range", (1.0, 1.0))
    if guidance is None and low != high:
        raise ValueError(
            f"the refiner was trained for guidance {low:g} to {high:g}; pass the scale of the "
            "pipeline's calls, guidance=..."
        )
    scale = low if guidance is None else guidance
    return prepare_refiner(plan, Guidance(_nothing, scale, null=()), refiner)


def _nothing(x: Tensor, t: Time, cond: Condition) -> Tensor:
    raise NotImplementedError  # the network is the pipeline's to call


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.3g} million"
