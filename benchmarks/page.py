"""The page of results, from the records and nothing else.

A table whose record is not there is left out, with the command that makes it in its place. Numbers
stand with their 95 % intervals; ratios are of plans on the same noise samples, so
their intervals come from the paired bootstrap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import bundled_page
import figures
import passes_page
import summary
from paper import ABLATIONS, NARROW, TRAINED, Ablation, Row
from ratios import (
    FITTED,
    KEPT,
    KEPT_REFINED,
    REFINED,
    Asked,
    Ratio,
    between,
    calls,
    cells,
    conditions,
    each,
    named,
    paired,
    report,
    rmse,
    shown,
    table,
)
from results import PAPER, PAPER_REFINED, UNIPC

from flowturbo.evaluate import analysis_figures

COMPARED = (
    (PAPER_REFINED, PAPER),
    *((FITTED, name) for name in UNIPC),
    (FITTED, "AB2"),
    (REFINED, FITTED),
    (REFINED, PAPER_REFINED),
)
ORDER = (*UNIPC, PAPER, PAPER_REFINED, FITTED, KEPT, REFINED, KEPT_REFINED)  # of images
MOST = 0.03  # upper end of the relative increase of FD
ALIKE = 0.01  # FIDs of the paper within so much of each other count as equal
GAP = 0.125  # of the time, between two evaluations
PREDICTED = {"velocity": "velocity, time t", "noise": "noise, time of a diffusion model"}
COMMANDS = {
    "results": "python benchmarks/results.py --model {0} --refiner runs/refiner-{0} --data DATA",
    "ablations": "python benchmarks/ablations.py --model {0} --refiner runs/refiner-{0} --data "
    "DATA",
    "method": "python benchmarks/method.py --model {0} --refiner runs/refiner-{0} --out "
    "benchmarks/records/method-{0}.json",
    "analysis": "flowturbo analyze --model {0} -o runs/{0} && cp runs/{0}/record.json "
    "benchmarks/records/analysis-{0}.json",
}
INTRO = """# Results

Made by `benchmarks/make_results` from the files in `benchmarks/records` alone."""
APPENDIX = """## Appendix: how errors are measured

Unless stated otherwise an error is that of the final state to the reference solution of the same \
noise sample: the root mean square over the numbers of an image, and over images (RMSE), in units \
of the state, with the 95 % bootstrap interval over images. The median is reported too: a few \
images that end up different can dominate the RMSE, but not the median. Where several shifts and \
grids of a solver were tried, the best one on the test noise samples themselves is reported, in \
its favour, and named. Bold is the lowest of its column, though the next one may lie within its \
interval."""
BY_SCALE = ("guidance", "frechet", "tables", "fitting", "transfer")  # parts of a record
Record = dict[str, Any]


class Page:
    """The text so far, and where figures go."""

    def __init__(self, records: Path, images: Path) -> None:
        self.records, self.images = records, images
        self.parts: list[str] = [INTRO]

    def add(self, *texts: str) -> None:
        self.parts += [text for text in texts if text]

    def figure(self, name: str, about: str, draw: Callable[[Path], None]) -> None:
        self.add(self.plotted(name, about, draw))

    def plotted(self, name: str, about: str, draw: Callable[[Path], None]) -> str:
        """The markdown of a figure, once it is plotted."""
        path = self.images / f"results-{name}.png"
        draw(path)
        return f"![{about}](images/{path.name})"

    def each(self, kind: str) -> Iterable[Record]:
        """The records of a kind, a sentence in the place of those there are not."""
        for name, record, instead in each(self.records, kind, COMMANDS[kind]):
            if record is None:
                self.add(instead)
                continue
            in_order = {k: sorted(record.get(k, {}).items(), key=_scale) for k in BY_SCALE}
            record |= {k: dict(items) for k, items in in_order.items()}
            for counts in record["frechet"].values():
                for nfe, methods in counts.items():
                    counts[nfe] = dict(sorted(methods.items(), key=lambda i: ORDER.index(i[0])))
            yield {**record, "name": name}

    def text(self) -> str:
        return "\n\n".join(part.strip("\n") for part in self.parts) + "\n"


def build(records: Path, images: Path) -> str:
    """The page as markdown; its figures are written to ``images``."""
    page = Page(records, images)
    page.add(APPENDIX, "## Appendix: plans at equal evaluations")
    main = [*page.each("results")]
    page.parts.insert(1, first_page(page, main))
    for record in main:
        main_table(page, record)
    if found := [json.loads(p.read_text()) for p in sorted(records.glob("bundled-*.json"))]:
        page.add("## Appendix: the bundled plans", bundled_page.section(found))
    if found := [json.loads(p.read_text()) for p in sorted(records.glob("passes-*.json"))]:
        page.add("## Appendix: plans at equal passes of the network", passes_page.section(found))
    page.add("## Appendix: the paper's ablations")
    for record in page.each("ablations"):
        ablations(page, record)
    page.add("## Appendix: how velocities change")
    for record in page.each("analysis"):
        analysis(page, record)
    asked(page)
    return page.text()


def _scale(item: tuple[str, Any]) -> float:
    return float(item[0])


# -- the main table ---------------------------------------------------------------------------


def first_page(page: Page, records: list[Record]) -> str:
    """What each method needs, costs and achieves: sentences, figures and tables."""
    lines, figures_of, tables = [], [], []
    for record in records:
        name, found = record["name"], page.records / f"speed-{record['name']}.json"
        speed = json.loads(found.read_text("utf-8")) if found.is_file() else None
        lines.append(summary.headline(record, speed))
        for scale, nfe, _ in measured(record):
            tables.append(f"### {name}, {nfe} evaluations, guidance {scale}")
            tables.append(summary.of(record, scale, nfe, speed))
        scale = f"{speed['conditions']['guidance']:g}" if speed else None
        if scale in record["guidance"]:
            part = record["guidance"][scale]
            about = f"Error against evaluations and against milliseconds of {name}"
            plot = lambda path, p=part, s=speed: figures.against_time(p, s, path)
            figures_of.append(page.plotted(f"{name}-time", about, plot))
            figures_of.append(summary.about_time(part, speed))
    if not tables and not figures_of:
        return ""
    return "\n\n".join(filter(None, ["\n".join(filter(None, lines)), *figures_of, *tables,
                                     summary.ABOUT]))  # fmt: skip


def measured(record: Record) -> Iterable[tuple[str, str, Record]]:
    """Scale of guidance, evaluations, and the records of images there, by method."""
    for scale, counts in record["frechet"].items():
        for nfe, methods in counts.items():
            yield scale, nfe, methods


def main_table(page: Page, record: Record) -> None:
    name = record["name"]
    if record.get("guidance"):
        about = f"Error against evaluations of {name}, by method and scale of guidance"
        page.add(f"### {name}: error to the reference solution")
        page.figure(f"{name}-errors", about, lambda path: figures.errors(record, path))
        page.add(
            "Bars are 95 % intervals. The figure leaves out Heun, AB4 and UniPC-3, which the "
            "tables have. The paper's plans are on its uniform grid. Calls of refiners come on top "
            "of the evaluations; the tables list them. Empty cells are not measured yet."
        )
    for scale, part in record.get("guidance", {}).items():
        page.add(f"#### {name}, guidance {scale}", cells(part), conditions(part))
    if record.get("guidance"):
        page.add(f"### {name}: ratios of errors", compared(record))
    if record.get("refiners"):
        page.add(trained(record))
    page.add(f"### {name}: FD-EffNet of the plans and of the reference solution")
    if record.get("frechet"):
        page.add(frechet(record))
    else:
        command = f"python benchmarks/results.py --model {name} --refiner runs/refiner-{name}"
        page.add(
            f"Not measured yet: `{command} --real-images DATA --num-images 5000 --nfe 6 "
            "--guidance 2` adds it."
        )
    for file, about in record.get("image_grids", {}).items():
        title = f"{name}: the same noise samples, guidance {about['guidance']:g}, {about['nfe']} "
        page.add(f"### {title}evaluations")
        source = page.records / file
        if source.is_file():
            words = "Images of the same noise samples, a row for each method, reference first"
            stem = Path(file).stem.removeprefix("results-")
            draw = lambda path, a=about, s=source: figures.image_grid(a, s, path)
            page.figure(stem, words, draw)
            page.add(
                f"Seeds {about['seeds'][0]} to {about['seeds'][1]}, none chosen; "
                f"prompts: {'; '.join(about['prompts'])}."
            )


def compared(record: Record) -> str:
    """Paired ratios of methods, by scale of guidance; means over evaluations are geometric."""
    rows = []
    for ours, other in COMPARED:
        for scale, part in record["guidance"].items():
            counts = tuple(sorted(map(int, part["cells"])))
            ratio = Ratio([part], Asked(ours, other, counts, 1.0, 1.0), rmse)
            if ratio.cells:
                each = (
                    f"{cell[1]}: {value:.2f} ({between(*ratio.interval(cell))})"
                    for cell, value in ratio.cells.items()
                )
                mean = f"{ratio.mean:.3f} ({between(*ratio.interval())})"
                rows.append([f"{named(ours)} / {named(other)}", scale, mean, "<br>".join(each)])
    head = ["ratio of RMSE", "guidance", "geometric mean (95 %)", "by evaluations (95 %)"]
    return f"{table(head, rows)}\n\nBelow 1 the first has the smaller error."


def trained(record: Record) -> str:
    rows = []
    for name, about in record["refiners"].items():
        t = about["training"]
        how = ", ".join(f"{k} {t[k]:g}" for k in ("step", "batch", "lr", "dt") if k in t)
        rows.append([name, f"{about['parameters']:,}", how, about["fingerprint"]])
    head = ["refiner, trained as the paper's", "parameters", "steps and what else", "weights"]
    return table(head, rows)


def frechet(record: Record) -> str:
    rows, floors = [], []
    for scale, nfe, methods in measured(record):
        chosen = record["guidance"][scale]["cells"][nfe]["plans"]
        for name, found in methods.items():
            plan, *rest = distances(found)
            rows.append([named(name), scale, chosen.get(name, {}).get("chosen", plan), *rest])
            floors.append(found["frechet"].get("floor"))
    head = ["method", "guidance", "plan", "relative increase of FD (95 %)",
            f"upper end at most {100 * MOST:g} %", "FD-EffNet", "reference solution", "real images",
            "real to real"]  # fmt: skip
    c = found["conditions"]
    target = "the second half of the reference images"
    if c["real_images"] is not None:
        target = f"the images of {c['real_images']['name']}"
    count = found["frechet"]["images"]
    text = (
        f"Frechet distances of EfficientNet-Lite0 features, not FID, of {count} images "
        f"(seeds from {c['seeds'][0]}), the same noise samples and prompts for every "
        f"plan and the reference solution, to {target}; {c['dtype'].removeprefix('torch.')}. "
        "Intervals: paired bootstrap over images."
    )
    if any(floors):
        text += " Real to real: of this many real images to the others; fewer are farther."
    else:
        text += " Without real images there is no distance between real images."
    return f"{table(head, rows)}\n\n{text}\n\n{closeness(record)}"


def closeness(record: Record) -> str:
    """Other results of `flowturbo.evaluate`, the reference solution last."""
    rows = []
    for scale, nfe, methods in measured(record):
        for name, found in methods.items():
            near = [ranged(found[k], "rmse") if k in found else "" for k in NEAR]
            rows.append([named(name), scale, nfe, *near, *seen(found, "plan")])
        steps = str(found["reference"]["evaluations"])
        rows.append(
            ["reference solution", scale, steps, *("" for _ in NEAR), *seen(found, "reference")]
        )
    head = ["method", "guidance", "evaluations", "RMSE (95 %)", "perceptual distance (95 %)",
            "inception score", "precision, % (95 %)", "recall, % (95 %)",
            "agreement, % (95 %)"]  # fmt: skip
    return (
        f"{table(head, rows)}\n\nOf the same images. Perceptual: the distance of features "
        "between a plan's image and the reference image of the same noise sample. Inception score: "
        "of ImageNet's classes, which these images do not show, so it only compares plans. "
        "Precision: generated images that lie among real ones; recall: real images that lie among "
        "generated ones. Agreement: images that are closest to their own prompt, of all prompts."
    )


NEAR = ("trajectory", "perceptual")  # to the reference image of the same noise sample


def seen(found: Record, which: str) -> list[str]:
    """Scores of the images of "plan" or of "reference"."""
    shares = (found[part][which] if part in found else None for part in ("precision", "recall",
              "agreement"))  # fmt: skip
    score = f"{found['inception_score'][which]['mean']:.2f}" if "inception_score" in found else ""
    return [score, *("" if s is None else ranged(s, "share", 100, ".1f") for s in shares)]


def ranged(about: Record, key: str, times: float = 1, how: str = ".4f") -> str:
    """A number of a record with its interval."""
    value, low, high = (times * x for x in (about[key], *about[f"{key}_95"]))
    return f"{value:{how}} ({low:{how}} to {high:{how}})"


def distances(found: Record) -> list[str]:
    """The row of a record of `flowturbo.evaluate`, from the plan's name on."""
    f, count = found["frechet"], found["evaluations"]
    low, high = f["relative_95"]
    within = f"{100 * f['relative']:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"
    real = f.get("floor")
    floor = "" if real is None else f"{real['distance']:.3f} (of {real['images']})"
    name = f"{found['conditions']['plan']} ({calls(count)})"
    verdict = "yes" if high <= MOST else "NO"
    return [name, within, verdict, f"{f['plan']:.3f}", f"{f['reference']:.3f}",
            f"{f['target_images']}", floor]  # fmt: skip


# -- ablations --------------------------------------------------------------------------------


def ablations(page: Page, record: Record) -> None:
    name = record["name"]
    page.add(f"### {name}: the paper's tables")
    page.add(
        "The paper's numbers are FID-50K of SiT-XL/2 on ImageNet 256 at guidance 1.5 (for text "
        "FID-5K of InstaFlow on COCO), ours errors to the reference solution, which FID does not "
        'measure. So what is compared is the order: a row "agrees" if both have it on the same '
        "side of the row it is compared with, ours beyond its 95 % interval."
    )
    if record.get("refiners"):
        page.add(trained(record))
    for part in record.get("tables", {}).values():
        for what in ABLATIONS:
            page.add(f"#### {name}: {what.title.lower()}", ablation(what, record, part))
        page.add(conditions(part))
    fitted(page, record)


def ablation(what: Ablation, record: Record, part: Record) -> str:
    """One of the paper's tables, ours beside it, and in how much they agree."""
    if what.text and not record["text"]:
        return f"{record['name']} takes no text prompts; see the other models."
    rows, verdicts, seen = [], [], part["rows"]
    named = {row.title: row for row in what.rows}
    for row in what.rows:
        if row.title not in seen:
            continue
        entry, over = seen[row.title], row.over or what.rows[0].title
        fid = "not given" if row.fid is None else f"{row.fid:g}"
        calls = f"{entry['nfe']['model']} + {entry['nfe']['refiner']}"
        line = [row.title, calls, fid, shown(entry).replace("<br>", ", ").partition(", +")[0]]
        beside, found = "", []
        if over != row.title and over in seen:
            ratio, low, high = paired(entry, seen[over])
            beside = f"{ratio:.3f} ({between(low, high)})"
            found = [verdict(row, named[over], low, high, 1.0)]
            if "frechet" in entry and "frechet" in seen[over]:
                found.append(verdict(row, named[over], *apart(entry, seen[over])))
            verdicts += [v for v in found if v]
        distance = distances(entry["frechet"])[1] if "frechet" in entry else ""
        rows.append([*line, distance, beside, *[*found, "", ""][:2]])
    left = {row.refiner for row in what.rows if row.title not in seen} & {*TRAINED, NARROW}
    missing = ""
    if left:
        each = "; ".join(sorted(left))
        missing = f"Not measured here: {each}. Each takes a refiner trained as long as the paper's."
    if not rows:
        return missing or "Not measured yet."
    head = ["plan", "evaluations", "the paper's FID", "RMSE (95 %)", "relative increase of FD",
            "RMSE over that of its row (95 %)", "agrees", "agrees, by FD-EffNet"]  # fmt: skip
    keep = [i for i in range(len(head)) if i < 4 or any(line[i] for line in rows)]
    text_table = table([head[i] for i in keep], [[line[i] for i in keep] for line in rows])
    others = {row.over for row in what.rows if row.over} - {what.rows[0].title}
    text = f"Rows are compared with {what.rows[0].title}"
    if others:
        text += f", and later ones with {', '.join(sorted(others))}"
    if verdicts:
        text += f". Where the paper ranks the two, {len(verdicts)} in all: "
        text += ", ".join(f"{words} {verdicts.count(v)}" for v, words in VERDICTS.items())
    return " ".join(filter(None, (f"{text_table}\n\n{text}.", what.says, missing)))


VERDICTS = {"yes": "agree", "no": "disagree", "undecided": "undecided here"}


def verdict(row: Row, over: Row, low: float, high: float, even: float) -> str:
    """Whether ours, above or below ``even``, stands to ``over`` as the paper's; "" if unknown."""
    theirs = 1 if row.worse else None
    if row.fid is not None and over.fid is not None:
        change = row.fid / over.fid - 1
        theirs = 0 if abs(change) < ALIKE else 1 if change > 0 else -1
    ours = 1 if low > even else -1 if high < even else 0
    if theirs is None:
        return ""
    if ours == theirs:
        return "yes"
    return "undecided" if ours == 0 else "no"


def apart(entry: Record, over: Record) -> tuple[float, float, float]:
    """By how much two intervals of FD-EffNet are apart: (low, high) and 0, for `verdict`."""
    one, two = (e["frechet"]["frechet"]["relative_95"] for e in (entry, over))
    return one[0] - two[1], one[1] - two[0], 0.0


def fitted(page: Page, record: Record) -> None:
    name = record["name"]
    for scale, part in record.get("fitting", {}).items():
        page.add(f"### {name}: what fitting needs, guidance {scale}")
        about = "Error against trajectories fitted to, and against the history of a row"
        page.figure(
            f"{name}-fitting-g{scale}", about, lambda path, p=part: figures.fitting(p, path)
        )
        for nfe, found in part.get("trajectories", {}).items():
            rows = [
                [n, *(shown(e).partition("<br>")[0] for e in draws)] for n, draws in found.items()
            ]
            most = max(map(len, found.values()))
            rows = [row + [""] * (1 + most - len(row)) for row in rows]
            head = ["trajectories", *(f"RMSE of set {i + 1} (95 %)" for i in range(most))]
            page.add(f"Weights at {nfe} evaluations, fitted to random sets of trajectories:")
            page.add(table(head, rows))
        for nfe, found in part.get("history", {}).items():
            rows = [[h, shown(e).replace("<br>", ", ")] for h, e in found.items()]
            page.add(f"Weights at {nfe} evaluations, of the last velocities only:")
            page.add(table(["last velocities", "RMSE (95 %)"], rows))
        page.add(
            "Weights alone are fitted here, on one grid, the same for all, with no search.",
            conditions(part),
        )
    if record.get("transfer"):
        page.add(f"### {name}: tuned plans at other scales of guidance", transferred(record))


def transferred(record: Record) -> str:
    scales, rows = list(record["transfer"]), []
    counts = dict.fromkeys(n for part in record["transfer"].values() for n in part["plans"])
    for nfe in counts:
        parts = {s: record["transfer"][s]["plans"].get(nfe, {}) for s in scales}
        for name in dict.fromkeys(k for plans in parts.values() for k in plans):
            row = [nfe, "over the range" if name == "range" else name]
            for scale, plans in parts.items():
                text = ""
                if name in plans:
                    text = shown(plans[name]).partition("<br>")[0]
                    if name != scale and scale in plans:
                        ratio, low, high = paired(plans[name], plans[scale])
                        text += f"<br>{ratio:.2f} ({between(low, high)}) times"
                row.append(text)
            rows.append(row)
    head = ["evaluations", "fitted at", *(f"run at {s}: RMSE (95 %)" for s in scales)]
    return f"{table(head, rows)}\n\nTimes the error of the plan that was fitted at that scale."


# -- the rest ---------------------------------------------------------------------------------


def analysis(page: Page, record: Record) -> None:
    """The figures of `flowturbo analyze`, named for the page."""
    shown = record["conditions"]
    page.add(
        f"### {record['name']}: trajectories",
        f"Measured by `flowturbo analyze` on {shown['trajectories']} trajectories at guidance "
        f"{shown['guidance']:g}; [what the figures show](analyze.md).",
    )
    if "curvature" in record:
        page.add(stability(record["curvature"]))
    for path in analysis_figures.figures(record, page.images):
        what = f"{path.stem} of {record['name']}"
        page.figure(f"{record['name']}-{path.stem}", what, path.replace)


def stability(models: Record) -> str:
    """How much predictions change, and what doing without an evaluation costs, by model."""
    rows, first = [], {}
    for name, kinds in models.items():
        for kind, found in kinds.items():
            at = min(found["gaps"], key=lambda gap: abs(gap["gap"] - GAP))
            total = {k: values[-1] for k, values in found["change"].items()}
            numbers = (total, at["reuse"], at["extrapolate"])
            cells_of = [f"{n['mean']:.3f} ± {n['half']:.3f}" for n in numbers]
            if kind in first:
                times = [n["mean"] / f["mean"] for n, f in zip(numbers, first[kind], strict=True)]
                cells_of = [
                    f"{text}, {x:.2f} times" for text, x in zip(cells_of, times, strict=True)
                ]
            first.setdefault(kind, numbers)
            rows.append([name, PREDICTED[kind], *cells_of])
    head = ["model", "prediction", "change over the trajectory", "error of repeating the last one",
            "error of extrapolating two"]  # fmt: skip
    text = (
        "Relative to the size of the prediction, with 95 % intervals. Errors are over a gap of "
        f"{at['gap']:g} of the time: what a refiner there has to correct."
    )
    if len(models) > 1:
        text += " Times: of the same prediction of the first model."
    return f"{table(head, rows)}\n\n{text}"


def asked(page: Page) -> None:
    """What `method.py` measured against its targets."""
    found = sorted(map(str, page.records.glob("method-*.json")))
    rough = [path for path in found if "rough" in Path(path).name]
    if found:
        page.add(report([path for path in found if path not in rough], rough))
    else:
        missing = (instead for *_, instead in each(page.records, "method", COMMANDS["method"]))
        page.add("## Tuned plans and baselines", *missing)
