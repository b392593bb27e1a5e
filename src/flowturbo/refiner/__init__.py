"""Refiners: light networks that stand in for the model at some evaluations of a plan."""

from flowturbo.refiner.checkpoint import load_refiner, save_refiner
from flowturbo.refiner.conv import SmallNetwork
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.refiner.paper import PaperRefiner

__all__ = ["PaperRefiner", "SmallNetwork", "VelocityRefiner", "load_refiner", "save_refiner"]
