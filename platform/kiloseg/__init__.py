"""Semantic segmentation over thousands of classes on one GPU."""

__version__ = "0.1.0"
