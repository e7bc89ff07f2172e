"""Networks, class tables and prediction."""

from kiloseg.models.class_table import ClassTable
from kiloseg.models.nearest import nearest_class
from kiloseg.models.segmenter import Segmenter

__all__ = ["ClassTable", "Segmenter", "nearest_class"]
