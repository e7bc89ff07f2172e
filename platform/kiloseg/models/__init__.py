"""Networks, class tables and prediction."""

from kiloseg.models.class_table import ClassTable
from kiloseg.models.nearest import nearest_class
from kiloseg.models.segmenter import Segmenter
from kiloseg.models.trunk import build_segmenter

__all__ = ["ClassTable", "Segmenter", "build_segmenter", "nearest_class"]
