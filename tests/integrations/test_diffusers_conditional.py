"""Plans with conditional evaluations in pipelines, without guidance and from the middle.

What they do with guidance is in test_diffusers_breadth.py.
"""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from integrations.pipelines import CELLS, EULER  # noqa: E402

from flowturbo.integrations.diffusers import (  # noqa: E402
    FAMILIES,
    Family,
    FlowTurboScheduler,
    disable,
    enable,
)

SHIFT = 3.0


def built(name):
    scheduler = FlowTurboScheduler(sign=1) if CELLS[name].parts == "unet" else EULER(shift=SHIFT)
    pipe = CELLS[name].build(scheduler)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return pipe, network, FAMILIES[type(network).__name__]


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
