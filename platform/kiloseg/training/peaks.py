"""Peak memory of a run: of its training steps and of its predictions, over resumptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kiloseg.memory.peak import PeakMemory
from kiloseg.training.report import PeakReport

TRAINING, PREDICTION, RESERVED = "peak_memory_gib", "val/peak_memory_gib", "peak_memory_reserved_gib"
"""Names in a checkpoint, which are those in a report."""


class Peaks:
    """Measures both peaks of a run; `training.step` and `prediction.step` are entered around what is measured."""

    def __init__(self, device: torch.device, segmenter: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.training = PeakMemory(device, segmenter, optimizer)
        self.prediction = PeakMemory(device, segmenter, optimizer)
        self._earlier: dict[str, float] = {}

    def report(self) -> PeakReport:
        """The largest so far, by what was counted."""
        now = self.state_dict()
        return PeakReport(
            kind=self.training.kind,
            training_gib=now[TRAINING],
            prediction_gib=now[PREDICTION],
            reserved_gib=now.get(RESERVED),
        )

    def state_dict(self) -> dict[str, float]:
        """The peaks in GiB, by name."""
        now = {TRAINING: self.training.gib, PREDICTION: self.prediction.gib}
        if self.training.reserved_gib is not None:
            now[RESERVED] = self.training.reserved_gib
        return {name: max(value, self._earlier.get(name, 0.0)) for name, value in now.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the peaks of before a resumption count too; other names in `state` are left aside."""
        self._earlier = {name: state[name] for name in (TRAINING, PREDICTION, RESERVED) if name in state}
