"""Networks, class tables and prediction."""

from kiloseg.models.class_table import ClassTable
from kiloseg.models.execution import build_segmenter
from kiloseg.models.prediction import Nearest, nearest_class, nearest_two
from kiloseg.models.segmenter import Segmenter

__all__ = ["ClassTable", "Nearest", "Segmenter", "build_segmenter", "nearest_class", "nearest_two"]
