"""The processes that train one model together, as Ray Train starts them: torch's process group, and SIGTERM as preemption."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig

from kiloseg.training import preemption

_TorchBackend: Any = TorchConfig().backend_cls


class _ListeningBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Signals are for the main thread of a process, which training does not run in."""
        worker_group.execute(preemption.install_handler)
        super().on_start(worker_group, backend_config)


class ListeningTorchConfig(TorchConfig):
    """Torch's process group; its workers take SIGTERM as preemption (see `kiloseg.training.preemption`)."""

    @property
    def backend_cls(self) -> Any:
        """What sets the workers up."""
        return _ListeningBackend
