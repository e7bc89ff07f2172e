"""This package computes metrics from summable statistics whose size does not depend on the number of pixels."""

from kiloseg.metrics.boundary import BoundaryIoU
from kiloseg.metrics.calibration import CalibrationError
from kiloseg.metrics.confusion import ConfusedPairs, Confusion
from kiloseg.metrics.iou import IoU
from kiloseg.metrics.separation import Histogram, auroc

__all__ = ["BoundaryIoU", "CalibrationError", "ConfusedPairs", "Confusion", "Histogram", "IoU", "auroc"]
