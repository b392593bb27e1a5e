"""The ablations of the FlowTurbo paper (Zhao et al. 2024, arXiv 2409.18128), and its numbers.

FID-50K of SiT-XL/2 on ImageNet 256 at guidance 1.5; for text, FID-5K of InstaFlow on COCO. A number
that is not known for certain is None: the page says that it is not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import OWN

TRAINED: dict[str, dict[str, Any]] = {
    **{f"dt {dt:g}": {"dt": dt} for dt in (0.03, 0.06, 0.25)},
    "first block": {"block": 0},
}
NARROW = "4 blocks, half as wide"  # as many parameters as one block of the model's width


@dataclass(frozen=True)
class Row:
    """A plan with a refiner; ``fid`` is the paper's, ``worse`` what else it says of the row.

    It is compared with the row called ``over``, by default the first of its table.
    """

    plan: str
    refiner: str = "paper"
    name: str = ""
    fid: float | None = None
    worse: bool | None = None
    over: str = ""

    @property
    def title(self) -> str:
        return self.name or self.plan


@dataclass(frozen=True)
class Ablation:
    """A table of the paper; ``says`` what the page adds, ``text`` for text-to-image models only."""

    key: str
    title: str
    rows: tuple[Row, ...]
    says: str = ""
    text: bool = False


def _refiners(plan: str, first: str, rows: tuple[tuple[str, str, float | None, bool | None], ...],
              fid: float | None = None) -> tuple[Row, ...]:  # fmt: skip
    """One plan with several refiners, the paper's first."""
    named = lambda name: f"{plan}, {name}"
    start = Row(plan, name=named(first), fid=fid, over=named(first))
    return (
        start,
        *(Row(plan, r, named(n), f, w, over=start.name) for r, n, f, w in rows),
    )


ABLATIONS = (
    Ablation(
        "components",
        "Components",
        (Row("H8", fid=3.68), Row("H7", fid=4.42), Row("H7R1", fid=2.80), Row("H6R2", fid=3.55),
         Row("H5R3", fid=7.62)),
    ),
    Ablation(
        "order",
        "Order of blocks",
        (Row("H5P7R3", fid=2.24), Row("P5H7R3", fid=2.38), Row("P5R7H3", fid=13.7),
         Row("H5R7P3", fid=30.9)),
    ),
    Ablation(
        "interleaving",
        "Interleaving",
        (Row("H3P3R3"), Row("[H1P1R1]x3"), Row("H2P4R2", over="H2P4R2"),
         Row("[H1P2R1]x2", over="H2P4R2")),
    ),
    Ablation(
        "refiners",
        "Number of refiner blocks",
        (Row("H1P5"), *(Row(f"H1P5R{n}") for n in range(1, 6))),
    ),
    Ablation(
        "dt",
        "Range of dt in the refiner's training",
        tuple(
            row
            for plan, known in (("H5P7R3", True), ("H1P5R3", None))
            for row in _refiners(
                plan,
                "dt up to 0.12",
                tuple((k, f"dt up to {v['dt']:g}", None, known)
                      for k, v in TRAINED.items() if "dt" in v),
            )
        ),
        "The paper finds (0, 0.12] the best of the ranges it tries, which need not be these.",
    ),
    Ablation(
        "architecture",
        "Architecture of the refiner",
        tuple(
            row
            for plan, fids in (("H5P7R3", (2.22, 2.53)), ("H1P5R3", (None, None)))
            for row in _refiners(
                plan,
                "the last block",
                (
                    (NARROW, NARROW, fids[1], None),
                    ("first block", "the first block", None, None),
                    (OWN, "ours", None, None),
                ),
                fid=fids[0],
            )
        ),
        "The paper's other refiner is a whole SiT-S; ours is smaller in the same way: "
        "more blocks, narrower, about as many parameters.",
    ),
    Ablation(
        "text",
        "Text to image",
        (Row("H8", fid=28.61), Row("H1P6R3", fid=28.60)),
        text=True,
    ),
)  # fmt: skip
