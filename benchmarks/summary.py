"""The summary that the page of results opens with, and the README repeats.

A table for each model and number of evaluations that images were drawn at: what each method needs,
what a batch takes, and how far its images are from the reference solution and from real images.
"""

from __future__ import annotations

from typing import Any

from ratios import FITTED, KEPT, KEPT_REFINED, REFINED, named, table
from results import PAPER, PAPER_REFINED, UNIPC

PLAIN = "AB2"  # the control: the best of the classical solvers, at one evaluation less too
ORDER = ("Euler", PLAIN, *UNIPC, PAPER, PAPER_REFINED, FITTED, KEPT, REFINED, KEPT_REFINED)
TRAINING = {FITTED: "plan", KEPT: "plan", REFINED: "refiner and plan",
            KEPT_REFINED: "refiner and plan"}  # fmt: skip
Record = dict[str, Any]
ABOUT = (
    "Error: to the converged ODE, the reference solution. R: calls of a refiner. Farther from real "
    "images: than the reference solutions of the same noise samples are (Frechet distance of "
    "EfficientNet-Lite0 features, paired). Errors of methods that no images were drawn of are of "
    "fewer noise samples. AB2, Adams-Bashforth of order 2, is the plain solver; its row of one "
    "evaluation less is the control. Milliseconds: by the measured cost of an evaluation and of a "
    "refiner call, with [no method compiled](speed.md); at least, where the calls of that refiner "
    "were not timed. The sections below tell the plans, and how all of it was measured."
)


def milliseconds(speed: Record | None, nfe: dict[str, int], refiner: str | None) -> str:
    """Of a batch, by the costs of an evaluation and of a refiner call in a record of speed.

    Calls of a refiner other than the one that was timed are left out, so this is "at least".
    """
    if speed is None:
        return ""
    timed, cost = speed["timed"]["conditions"], speed["timed"]["latency"]
    ms, least = cost["fixed"] + cost["model"] * nfe["model"], ""
    if nfe["refiner"] and refiner == timed["refiner"]:
        ms += cost["refiner"] * nfe["refiner"]
    elif nfe["refiner"]:
        least = "at least "
    return f"{least}{ms:.0f}"


def of(record: Record, scale: str, nfe: str, speed: Record | None) -> str:
    """The table of a model at a scale of guidance and a number of evaluations."""
    cells, drawn = record["guidance"][scale]["cells"], record["frechet"][scale][nfe]
    chosen = cells[nfe]["plans"]
    fewer = cells.get(str(int(nfe) - 1), {}).get("plans", {}).get(PLAIN)
    rows = [_row(record, PLAIN, fewer, None, scale, speed)] if fewer else []
    for name in ORDER:
        if name in drawn or (name in chosen and name not in UNIPC):
            rows.append(_row(record, name, chosen.get(name), drawn.get(name), scale, speed))
    batch = speed["timed"]["conditions"]["batch"] if speed else ""
    head = ["method", "data needed", "training", "evaluations", f"ms, batch of {batch}",
            "error (RMSE, 95 %)", "noise samples", "farther from real images (95 %)"]  # fmt: skip
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in keep], [[row[i] for i in keep] for row in rows])


def _row(
    record: Record, name: str, entry: Record | None, drawn: Record | None, scale: str, speed: Any
) -> list[str]:
    count = record["guidance"][scale]["conditions"]["noises"]
    farther, error = "", entry
    nfe, refiner = (entry or {}).get("nfe"), (entry or {}).get("refiner")
    if drawn is not None:
        f, error, nfe = drawn["frechet"], drawn["trajectory"], drawn["evaluations"]
        refiner, count = drawn["conditions"].get("refiner"), f["pictures"]
        low, high = (100 * bound for bound in f["relative_95"])
        farther = f"{100 * f['relative']:+.1f} % ({low:+.1f} to {high:+.1f})"
    calls = f"{nfe['model']}" + (f" + {nfe['refiner']} R" if nfe["refiner"] else "")
    low, high = error["rmse_95"]
    training, data = TRAINING.get(name, "none"), "none"
    if name == PAPER_REFINED:
        how = record["refiners"]["paper"]["training"]
        count_of = how.get("step", how["steps"])
        training, data = f"refiner, {count_of:,} steps of {how['batch']}", "training images"
    return [
        named(name), data, training, calls, milliseconds(speed, nfe, refiner),
        f"{error['rmse']:.4f} ({low:.4f} to {high:.4f})", f"{count:,}", farther,
    ]  # fmt: skip


def about_time(part: Record, speed: Record) -> str:
    """What the figure of errors against time shows, and how it was measured."""
    cost, c = speed["timed"]["latency"], speed["timed"]["conditions"]
    refined = f" + {cost['refiner']:.2f} a refiner call" if cost["refiner"] else ""
    return (
        f"Guidance {part['conditions']['guidance']:g}, {part['conditions']['noises']} noise "
        f"samples. Milliseconds of a batch of {c['batch']} on {c['threads']} CPU threads, with no "
        f"method compiled: {cost['fixed']:.2f} + {cost['model']:.2f} an evaluation{refined}, which "
        f"is within {100 * cost['worst']:.1f} % of every time in the record. Calls of the paper's "
        "refiner were not timed and are counted as free, in its favour. Rings were timed "
        f"themselves, at errors of {speed['conditions']['noises']} of the noise samples: the tuned "
        "plan, and the schedulers of diffusers with the fewest evaluations that reach its error "
        f"({', '.join(_reached(at) for at in _equal(speed))})."
    )


def _equal(speed: Record) -> list[Record]:
    return [at for kind, at in speed["equal"].items() if not kind.endswith("FD")]


def _reached(at: Record) -> str:
    least = "" if at["reached"] else ", which are too few"
    return f"{at['chosen'].partition(',')[0]}: {at['evaluations']}{least}"
