"""Training flow models: data, objectives and the resumable loop."""

from flowturbo.train.data import ArrayData, Data, load_data
from flowturbo.train.loop import TrainConfig, train

__all__ = ["ArrayData", "Data", "TrainConfig", "load_data", "train"]
