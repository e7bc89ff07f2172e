"""Metrics as summable integer counts."""

from kiloseg.metrics.iou import IoU

__all__ = ["IoU"]
