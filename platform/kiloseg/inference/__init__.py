"""Uses trained models: loads them, predicts with them, evaluates them and edits their classes."""

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.evaluation import evaluate
from kiloseg.inference.loading import load
from kiloseg.inference.model import TrainedModel
from kiloseg.inference.result import Result

__all__ = ["ModelClasses", "Result", "TrainedModel", "evaluate", "load"]
