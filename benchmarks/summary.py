"""The summary at the top of the results page, which the README repeats.

A table for each model and number of evaluations for which images were generated: what each method
needs, the time for a batch, and the distance of its images from the reference solution and from
real images.
"""

from __future__ import annotations

from typing import Any

from ratios import FITTED, KEPT, KEPT_REFINED, REFINED, calls, named, passes, table
from results import PAPER, PAPER_REFINED, UNIPC

CONTROL = "AB2"  # the best of the classical solvers, also with one evaluation less
ORDER = ("Euler", CONTROL, *UNIPC, PAPER, PAPER_REFINED, FITTED, KEPT, REFINED, KEPT_REFINED)
TRAINING = {FITTED: "plan", KEPT: "plan", REFINED: "refiner and plan",
            KEPT_REFINED: "refiner and plan"}  # fmt: skip
Record = dict[str, Any]
ABOUT = (
    "Error: with respect to the reference solution of the same noise sample. R: refiner calls. "
    "Passes: forward passes of the network, two for a guided evaluation. Relative increase of FD: "
    "the increase of the Frechet distance to real images (EfficientNet-Lite0 features) over that "
    "of the reference solution, paired by noise sample. It was not measured for the methods "
    "without an entry, whose errors are on fewer noise samples. AB2, Adams-Bashforth of order 2, "
    "is the best classical solver; its row with one evaluation fewer is the control. Milliseconds: "
    "computed from the measured cost of an evaluation and of a refiner call, with [no method "
    'compiled](speed.md); "at least" where calls of that refiner were not timed. The appendix '
    "lists the plans and describes how all of this was measured."
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
    cells, measured = record["guidance"][scale]["cells"], record["frechet"][scale][nfe]
    chosen = cells[nfe]["plans"]
    fewer = cells.get(str(int(nfe) - 1), {}).get("plans", {}).get(CONTROL)
    rows = [_row(record, CONTROL, fewer, None, scale, speed)] if fewer else []
    for name in ORDER:
        if name in measured or (name in chosen and name not in UNIPC):
            rows.append(_row(record, name, chosen.get(name), measured.get(name), scale, speed))
    batch = speed["timed"]["conditions"]["batch"] if speed else ""
    head = ["method", "data needed", "training", "evaluations", "passes", f"ms, batch of {batch}",
            "error (RMSE, 95 %)", "noise samples", "relative increase of FD (95 %)"]  # fmt: skip
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in keep], [[row[i] for i in keep] for row in rows])


def _row(
    record: Record,
    name: str,
    entry: Record | None,
    measured: Record | None,
    scale: str,
    speed: Record | None,
) -> list[str]:
    count = record["guidance"][scale]["conditions"]["noise_samples"]
    increase, error = "", entry
    nfe, refiner = (entry or {}).get("nfe"), (entry or {}).get("refiner")
    if measured is not None:
        f, error, nfe = measured["frechet"], measured["trajectory"], measured["evaluations"]
        refiner, count = measured["conditions"].get("refiner"), f["images"]
        low, high = (100 * bound for bound in f["relative_95"])
        increase = f"{100 * f['relative']:+.1f} % ({low:+.1f} to {high:+.1f})"
    low, high = error["rmse_95"]
    training, data = TRAINING.get(name, "none"), "none"
    if name == PAPER_REFINED:
        how = record["refiners"]["paper"]["training"]
        count_of = how.get("step", how["steps"])
        training, data = f"refiner, {count_of:,} steps of {how['batch']}", "training images"
    return [
        named(name), data, training, calls(nfe), f"{passes(nfe, float(scale))}",
        milliseconds(speed, nfe, refiner),
        f"{error['rmse']:.4f} ({low:.4f} to {high:.4f})", f"{count:,}", increase,
    ]  # fmt: skip


def headline(record: Record, speed: Record | None) -> str:
    """The results of a model in a few sentences."""
    name, lines = record["name"], []
    if speed is not None and (at := speed["equal"].get("second order")):
        ms, times = speed["timed"]["methods"][0]["ms"]["median"], speed["faster"]["second order"]
        least = "" if at["reached"] else "at least "
        scheduler = at["chosen"].partition(",")[0]
        lines.append(
            f"`{name}`: {_plan(speed['plan'])} takes {ms:.0f} ms for a batch of "
            f"{speed['timed']['conditions']['batch']}; {scheduler}, the best scheduler of "
            f"diffusers, takes {least}{ms * times['none']:.0f} ms to reach the same error: "
            f"{times['none']:.1f} times as long."
        )
    for scale, counts in record["frechet"].items():
        for nfe, found in counts.items():
            errors = [
                f"{found[k]['trajectory']['rmse']:.4f} ({named(k)})" for k in ORDER if k in found
            ]
            lines.append(
                f"`{name}`, {nfe} evaluations at guidance {scale}: errors to the reference "
                f"solution are {'; '.join(errors)}."
            )
    return "\n".join(f"- {line}" for line in lines)


def _plan(entry: Record) -> str:
    refined = f" and {entry['nfe']['refiner']} refiner calls" if entry["nfe"]["refiner"] else ""
    return f"a tuned plan of {entry['nfe']['model']} evaluations{refined}"


def about_time(part: Record, speed: Record) -> str:
    """What the figure of errors against time shows, and how it was measured."""
    cost, c = speed["timed"]["latency"], speed["timed"]["conditions"]
    refined = f" + {cost['refiner']:.2f} a refiner call" if cost["refiner"] else ""
    return (
        f"Guidance {part['conditions']['guidance']:g}, {part['conditions']['noise_samples']} noise "
        f"samples. Milliseconds of a batch of {c['batch']} on {c['threads']} CPU threads, with no "
        f"method compiled: {cost['fixed']:.2f} + {cost['model']:.2f} an evaluation{refined}, which "
        f"is within {100 * cost['worst']:.1f} % of every time in the record. Calls of the paper's "
        "refiner were not timed and are counted as free, in its favour. Rings mark samplers that "
        f"were timed, with errors on {speed['conditions']['noise_samples']} of the noise samples: "
        "the tuned plan, and the diffusers schedulers with the fewest evaluations that reach "
        f"its error ({', '.join(_reached(at) for at in _equal(speed))})."
    )


def _equal(speed: Record) -> list[Record]:
    return [at for kind, at in speed["equal"].items() if not kind.endswith("FD")]


def _reached(at: Record) -> str:
    least = "" if at["reached"] else ", which are too few"
    return f"{at['chosen'].partition(',')[0]}: {at['evaluations']}{least}"
