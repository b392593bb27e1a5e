"""Training flow models and refiners: data, objectives and the resumable loop."""

from flowturbo.training.data import ArrayData, Data, load_data
from flowturbo.training.latents import LatentData, as_states
from flowturbo.training.loop import TrainConfig, train
from flowturbo.training.on_policy import mixed_plan
from flowturbo.training.paper_refiner import paper_config, train_paper_refiner
from flowturbo.training.refiner import RefinerConfig, train_refiner

__all__ = [
    "ArrayData",
    "Data",
    "LatentData",
    "RefinerConfig",
    "TrainConfig",
    "as_states",
    "load_data",
    "mixed_plan",
    "paper_config",
    "train",
    "train_paper_refiner",
    "train_refiner",
]
