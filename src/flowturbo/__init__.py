"""Real-time sampling for flow-matching image generators.

import flowturbo as ft

model = ft.load("digits")
images = ft.generate(model, ["7", "3"], seed=0)
"""

from flowturbo import noise
from flowturbo._version import __version__
from flowturbo.compiled import compile, export, load_compiled
from flowturbo.evaluate.evaluation import evaluate
from flowturbo.field import Cast, CountCalls
from flowturbo.guidance import Guidance
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.pipelines import train_refiner, tune
from flowturbo.plan import Plan
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.sampling import Step, sample
from flowturbo.tasks.editing import edit, img2img, invert
from flowturbo.tasks.generate import generate
from flowturbo.tasks.inpainting import inpaint, remove

__all__ = [
    "Cast",
    "CountCalls",
    "Guidance",
    "Model",
    "Plan",
    "Step",
    "__version__",
    "compile",
    "edit",
    "evaluate",
    "export",
    "generate",
    "img2img",
    "inpaint",
    "invert",
    "load",
    "load_compiled",
    "load_refiner",
    "noise",
    "remove",
    "sample",
    "train_refiner",
    "tune",
]
