"""Training flow models and refiners: data, objectives and the resumable loop."""

from flowturbo.train.data import ArrayData, Data, load_data
from flowturbo.train.latents import LatentData, as_states
from flowturbo.train.loop import TrainConfig, train
from flowturbo.train.own_states import mixed_plan
from flowturbo.train.paper_refiner import paper_config, train_paper_refiner
from flowturbo.train.refiner import RefinerConfig, train_refiner

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
