"""Training flow models and refiners: data, objectives and the resumable loop."""

from flowturbo.training.config import TrainConfig
from flowturbo.training.data import load_data
from flowturbo.training.dataset import ArrayData, Data
from flowturbo.training.flow import train
from flowturbo.training.latents import LatentData, as_states
from flowturbo.training.paper_refiner import PaperRefinerConfig, train_paper_refiner
from flowturbo.training.refiner import train_refiner
from flowturbo.training.refiner_config import RefinerConfig

__all__ = [
    "ArrayData",
    "Data",
    "LatentData",
    "PaperRefinerConfig",
    "RefinerConfig",
    "TrainConfig",
    "as_states",
    "load_data",
    "train",
    "train_paper_refiner",
    "train_refiner",
]
