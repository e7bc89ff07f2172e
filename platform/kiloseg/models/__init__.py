"""This package contains networks, heads, class tables and prediction."""

from kiloseg.models.class_table import ClassTable, PrototypeTable
from kiloseg.models.execution import build_segmenter
from kiloseg.models.heads import Head, HeadLoss, register_head
from kiloseg.models.prediction import Nearest, nearest_class, nearest_two
from kiloseg.models.segmenter import Segmenter

__all__ = [
    "ClassTable",
    "Head",
    "HeadLoss",
    "Nearest",
    "PrototypeTable",
    "Segmenter",
    "build_segmenter",
    "nearest_class",
    "nearest_two",
    "register_head",
]
