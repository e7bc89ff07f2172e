"""Uses trained models: loads them, predicts with them, evaluates them and edits their classes."""

from kiloseg.inference.answering import Answer
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.counting import Views
from kiloseg.inference.evaluation import evaluate
from kiloseg.inference.evaluation_files import Evaluation
from kiloseg.inference.loading import load
from kiloseg.inference.model import TrainedModel
from kiloseg.inference.result import Result

__all__ = ["Answer", "Evaluation", "ModelClasses", "Result", "TrainedModel", "Views", "evaluate", "load"]
