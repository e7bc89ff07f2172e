"""Makes Train workers in a process group treat SIGTERM as a warning of preemption; the part of `sigterm` that needs torch.

Seen on Ray 2.60. What goes wrong without it, and when it can go, are the same as in `kiloseg.tuning.ray_workarounds.sigterm`.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig

from kiloseg.training import preemption

_TorchBackend: Any = TorchConfig().backend_cls


class ListeningTorchConfig(TorchConfig):
    """Torch's process group with workers that treat SIGTERM as a warning of preemption (see `kiloseg.training.preemption`)."""

    @property
    def backend_cls(self) -> Any:
        """The backend class that sets up the workers."""
        return _ListeningBackend


class _ListeningBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Installs the signal handler. This method runs in the controller; `execute` runs in every worker's main thread."""
        worker_group.execute(preemption.install_handler)
        super().on_start(worker_group, backend_config)
