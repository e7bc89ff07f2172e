"""Networks, class tables and prediction."""

from kiloseg.models.class_table import ClassTable
from kiloseg.models.nearest import Nearest, nearest_class, nearest_two
from kiloseg.models.segmenter import Segmenter

__all__ = ["ClassTable", "Nearest", "Segmenter", "nearest_class", "nearest_two"]
