"""Measures the peak memory of a run for its training steps and its predictions, across resumptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kiloseg.memory.peak import PeakMemory
from kiloseg.training.report import PeakReport

TRAINING, PREDICTION, RESERVED = "peak_memory_gib", "val/peak_memory_gib", "peak_memory_reserved_gib"
"""Names of the peaks in a checkpoint, the same as in a report."""


class Peaks:
    """Measures both peaks of a run. Enter `training.step` and `prediction.step` around the code to measure."""

    def __init__(self, device: torch.device, segmenter: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.training = PeakMemory(device, segmenter, optimizer)
        self.prediction = PeakMemory(device, segmenter, optimizer)
        self._earlier: dict[str, float] = {}

    def report(self) -> PeakReport:
        """Returns the largest peaks so far and the kind of memory that was counted."""
        now = self.state_dict()
        return PeakReport(
            kind=self.training.kind,
            training_gib=now[TRAINING],
            prediction_gib=now[PREDICTION],
            reserved_gib=now.get(RESERVED),
        )

    def state_dict(self) -> dict[str, float]:
        """Returns the peaks in GiB, by name."""
        now = {TRAINING: self.training.gib, PREDICTION: self.prediction.gib}
        if self.training.reserved_gib is not None:
            now[RESERVED] = self.training.reserved_gib
        return {name: max(value, self._earlier.get(name, 0.0)) for name, value in now.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Includes the peaks from before a resumption; ignores other names in `state`."""
        self._earlier = {name: state[name] for name in (TRAINING, PREDICTION, RESERVED) if name in state}
