"""Networks, class tables and prediction."""

from kiloseg.models.class_table import ClassTable
from kiloseg.models.nearest import Nearest, nearest_class, nearest_two
from kiloseg.models.segmenter import Segmenter
from kiloseg.models.trunk import build_segmenter

__all__ = ["ClassTable", "Nearest", "Segmenter", "build_segmenter", "nearest_class", "nearest_two"]
