"""The page of speeds, from the records and nothing else.

Times are medians with the first and ninth decile over the rounds of one run; what is compared was
timed side by side in that run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ratios import calls, each, passes, table

KINDS = {
    "speed": "python benchmarks/speed.py --model {0} --num-images 2000 --real-images DATA --out "
    "benchmarks/records/speed-{0}.json",
    "compile": "python benchmarks/compile.py --model {0} --out benchmarks/records/compile-{0}.json",
    "refiner-cost": "python benchmarks/refiner_cost.py --model {0} --out "
    "benchmarks/records/refiner-cost-{0}.json",
}
TITLES = {
    "speed": "At equal error",
    "compile": "What is compiled",
    "refiner-cost": "What a refiner costs",
}
FULL_SIZE = {  # on a GPU, random weights
    "gpu-full-size": "SiT-XL/2 at 256 px",
    "gpu-pipelines": "SD3 medium and FLUX.1 in diffusers",
}
WHOSE = {"paper": "the paper's refiner", "ours": "our refiner"}
KERNELS = ("matrix products", "attention", "copies", "others")
INTRO = """# Speed

This page is made by `benchmarks/make_results` from the files in `benchmarks/records` alone. \
Milliseconds are medians over rounds, with the first and ninth decile; all rows of a table were \
timed side by side in one run, on the machine named below it. Every table of samplers has the \
classical solver with fewer evaluations as the control. Passes are those of the network: a guided \
evaluation takes two."""
Record = dict[str, Any]


def build(records: Path) -> str:
    """The page as markdown."""
    parts = [INTRO]
    for kind, title in TITLES.items():
        parts.append(f"## {title}")
        for name, record, instead in each(records, kind, KINDS[kind]):
            parts += [instead] if record is None else [f"### {name}", *SHOWN[kind](record)]
    parts.append("## At full size on a GPU")
    for kind, title in FULL_SIZE.items():
        path = records / f"{kind}.json"
        command = f"python benchmarks/gpu/{kind[4:].replace('-', '_')}.py --out {path.name}"
        parts.append(f"### {title}")
        if path.is_file():
            parts += SHOWN[kind](json.loads(path.read_text("utf-8")))
        else:
            parts.append(f"Not measured yet: `{command}`.")
    return "\n\n".join(parts) + "\n"


def taken(ms: dict[str, float]) -> str:
    return f"{ms['median']:.1f} ({ms['low']:.1f} to {ms['high']:.1f})"


def machine(c: Record) -> str:
    """Under what a record of `flowturbo.evaluate.benchmark` was measured."""
    versions = ", ".join(f"{k} {v}" for k, v in c["versions"].items())
    dtype = c["dtype"].removeprefix("torch.")
    return (
        f"Batches of {c['batch']}, guidance {c['guidance']:g}, {dtype}; "
        f"{c['device']} ({c['cpu']}), {c['threads']} threads of {c['cores']} cores, {c['system']}; "
        f"{c['repeats']} rounds; weights {c['fingerprint']}; {versions}."
    )


def _passes(method: Record, timed: Record) -> str:
    return f"{passes(method['evaluations'], timed['conditions']['guidance'])}"


def methods(timed: Record) -> str:
    rows = []
    for m in timed["methods"]:
        compiled = m.get("compile", {})
        error = m.get("error", {}).get("rmse")
        rows.append(
            [
                m["name"], calls(m["evaluations"]), _passes(m, timed), taken(m["ms"]),
                f"{m['images_per_second']:.1f}",
                "" if error is None else f"{error:.4f}", f"{100 * m['mfu']:.0f} %",
                f"{compiled['seconds']:.0f}" if compiled else "",
                f"{compiled['recompiles']}" if compiled else "",
                f"{compiled['difference_from_eager']:.1e}" if compiled else "",
            ]
        )  # fmt: skip
    head = ["sampler", "evaluations", "passes", "ms a batch", "images/s",
            "RMSE on these noise samples", "MFU", "s to compile", "recompiles",
            "from uncompiled"]  # fmt: skip
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in keep], [[row[i] for i in keep] for row in rows])


def speed(record: Record) -> list[str]:
    c, rows, seen = record["conditions"], [], record.get("frechet")
    for name in ("plan", "control"):
        entry = record[name]
        error = f"{entry['rmse']:.4f} ({entry['rmse_95'][0]:.4f} to {entry['rmse_95'][1]:.4f})"
        fd = [f"{seen[k]:.2f}" if seen and name == "plan" else "" for k in ("to_reference", "plan")]
        count = passes(entry["nfe"], c["guidance"])
        rows.append([entry["plan"], calls(entry["nfe"]), f"{count}", error, *fd, ""])
    for kind, at in record["equal"].items():
        more = "" if at["reached"] else "more than "
        faster = ", ".join(f"{s} {more}{r:.2f}" for s, r in record["faster"][kind].items())
        value = [f"{at['value']:.4f}", "", ""]
        if kind.endswith("FD"):
            value = ["", f"{at['value']:.2f}", f"{at['real']:.2f}"]
        count = passes({"model": at["evaluations"]}, c["guidance"])
        counts = [f"{more}{at['evaluations']}", f"{more}{count}"]
        rows.append([at["chosen"], *counts, *value, faster])
    head = ["sampler", "evaluations", "passes", "RMSE (95 %)", "FD to reference images",
            "FD to real images", "times the milliseconds of the plan, by scope"]  # fmt: skip
    text = (
        f"Errors to {c['reference']} on {c['noise_samples']} noise samples that nothing else uses, "
        f"guidance {c['guidance']:g}. Schedulers have the fewest evaluations that reach the error "
        "of the plan, at their best shift and grid on these noise samples; the second row is the "
        "classical solver with as many evaluations as the plan. Scopes: what is compiled, of every "
        "sampler."
    )
    if seen:
        text += (
            f" FD-EffNet: of {seen['images']} images to the reference images of the same noise "
            f"samples and prompts, and to the real images of {seen['real_images']}, whose distance "
            f"to the reference images is {seen['reference']:.2f}."
        )
    return [
        table(head, rows),
        text,
        methods(record["timed"]),
        machine(record["timed"]["conditions"]),
    ]


def compiled(record: Record) -> list[str]:
    parts = [methods(record)]
    faster = [f"{k} {v:.2f} times" for k, v in record["faster_than"].items() if v > 1]
    if faster:
        parts.append(f"Faster: {'; '.join(faster)}.")
    if record["loop_share"]:
        share = ", ".join(f"{100 * s:.1f} %" for s in record["loop_share"])
        parts.append(
            f"Of an uncompiled sample, {share} is not the network. Below 0: a sample embeds its "
            "condition once, and the network is timed with that each time."
        )
    parts.append(
        "From uncompiled: the largest absolute difference of the states. In bfloat16 both are "
        "rounded differently; compare their errors."
    )
    if "cold_start" in record:
        cold = record["cold_start"]
        parts.append(
            f"From a cold start to the first image an exported file is "
            f"{cold['sooner']['process']:.1f} times sooner than compiling "
            f"({cold['sooner']['without_import']:.1f} times without the import of the library); "
            f"the images differ by {cold['largest_difference']:.1e}."
        )
    return [*parts, machine(record["conditions"])]


def refiner_cost(record: Record) -> list[str]:
    c, rows = record["conditions"], []
    for name, found in record["results"].items():
        low, high = found["ratio_95"]
        model, refiner = found["milliseconds"]
        share = f"{100 * found['ratio']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        rows.append([name, f"{model:.2f}", f"{refiner:.2f}", share])
    head = ["", "ms of a guided evaluation", "ms of a refiner call", "share (95 %)"]
    size = c["parameters"]
    return [
        table(head, rows),
        f"Refiner {c['refiner']} of {size['refiner']:,} parameters, model {c['fingerprint']} of "
        f"{size['model']:,}; guidance {c['guidance']:g}, {c['dtype']}, {c['device']}, "
        f"{c['threads']} threads. A call is its part of those of {c['plan']}, with what is "
        "computed for all of them at once. What an evaluation less saves is the whole first "
        "column.",
    ]


def full_size(record: Record) -> list[str]:
    known, parts = record["paper_latency"], []
    for name, batches in record["timed"].items():
        for batch, keys in batches.items():
            for key, timed in keys.items():
                fit, peak = timed["latency"], timed["matrix_product_flops_per_second"] / 1e12
                parts += [
                    f"#### {WHOSE[name]}, batch {batch}, {key}",
                    methods(timed),
                    f"Not captured, {fit['fixed']:.2f} + {fit['model']:.2f} evaluations + "
                    f"{fit['refiner']:.3f} refiner calls, in ms a batch, fits these times to "
                    f"within {100 * fit['worst']:.1f} %. The peak is {peak:.0f} TFLOP/s, a "
                    "bfloat16 product timed side by side with these.",
                ]
    parts.append(
        "Random weights: times do not depend on them, and image quality is not measured. The "
        f"paper's own table is {known['fixed']} + {known['model']} evaluations + "
        f"{known['refiner']} refiner blocks, of two calls each, in ms on its machine. Our plans "
        "have the weights of Adams-Bashforth here."
    )
    missing = []
    if any("compiled" not in keys for sizes in record["timed"].values() for keys in sizes.values()):
        missing.append("what compiling gains")
    if record["profiles"]:
        parts.append(profiles(record["profiles"]))
    else:
        missing.append("the profile of kernels")
    if missing:
        parts.append(f"Not measured yet: {', and '.join(missing)}.")
    conditions = {**timed["conditions"], "batch": " and ".join(batches), "fingerprint": "random"}
    return [*parts, machine(conditions)]


def profiles(found: Record) -> str:
    """What the device does in the time of a sample, and what of it is left over."""
    rows = []
    for name, batches in found.items():
        for batch, keys in batches.items():
            for key, ways in keys.items():
                for way, of in ways.items():
                    kinds, busy = of["kernels_ms_by_kind"], of["kernels_ms"]
                    shares = (f"{100 * kinds.get(k, 0) / busy:.0f} %" for k in KERNELS)
                    over = ways["loop"]["left_over_ms"]
                    part = "" if way == "loop" else f"{100 * of['left_over_ms'] / over:.1f} %"
                    ms = f"{of['ms']['median']:.2f}"
                    rows.append(
                        [
                            WHOSE[name],
                            batch,
                            f"{key}, {way}",
                            ms,
                            f"{of['kernels']}",
                            f"{busy:.2f}",
                            *shares,
                            f"{of['left_over_ms']:.2f}",
                            part,
                        ]
                    )
    head = ["refiner", "batch", "", "ms", "kernels", "ms in kernels", *KERNELS, "left over, ms",
            "of the loop's"]  # fmt: skip
    return (
        f"#### Where the time goes\n\n{table(head, rows)}\n\nOne sample, of H1P5R3 with the "
        "paper's refiner and of 6 evaluations and 5 calls with ours. What is left over of the time "
        "beside the kernels is the launching of them."
    )


def pipelines(record: Record) -> list[str]:
    rows = []
    for model in ("SD3", "FLUX"):
        for size, found in record[model].items():
            ms = {k: taken(v) for k, v in found["ms"].items()}
            rows.append([
                f"{model}, {found['parameters'] / 1e9:.1f} billion", size,
                *(ms[k] for k in ("Euler", "enabled", "enabled, refiner")),
                f"{found['ms_an_evaluation']:.1f}", f"{100 * found['overhead']:+.1f} %",
                f"{100 * found['refiner_share']:.1f} %",
            ])  # fmt: skip
    c, count = record["conditions"], found["evaluations"]
    head = ["transformer", "px", "pipeline as it is, Euler", "enabled", "enabled, refiner",
            "ms an evaluation", "overhead", "a refiner call of an evaluation"]  # fmt: skip
    versions = ", ".join(f"{k} {v}" for k, v in c["versions"].items())
    return [
        table(head, rows),
        f"Milliseconds of one image, {count['model']} evaluations, with the refiner "
        f"{count['refiner']} calls more; random weights, bfloat16, not compiled, without text "
        f"encoders and decoding. Where kernels are short the loop of the pipeline waits for the "
        f"processor, and times vary. {c['device']}, {versions}.",
    ]


SHOWN = {
    "speed": speed,
    "compile": compiled,
    "refiner-cost": refiner_cost,
    "gpu-full-size": full_size,
    "gpu-pipelines": pipelines,
}
