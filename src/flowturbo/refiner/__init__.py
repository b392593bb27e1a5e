"""Refiners: light networks that stand in for the model at some evaluations of a plan."""

from flowturbo.refiner.checkpoint import load_refiner, save_refiner
from flowturbo.refiner.paper import PaperRefiner
from flowturbo.refiner.small import SmallNetwork
from flowturbo.refiner.velocity import VelocityRefiner

__all__ = ["PaperRefiner", "SmallNetwork", "VelocityRefiner", "load_refiner", "save_refiner"]
