"""Makes Train workers treat SIGTERM as a warning of preemption, and write a checkpoint before they exit.

Seen on Ray 2.60: a worker's training function runs in a thread, where no signal handler can be set, and Train has no hook for
one. SIGTERM, which clouds send minutes before they stop a preemptible machine, ends the worker at once. The backend of a
trainer is the only place where our code runs in a worker's main thread.

It can go when tests/tuning/test_faults.py::test_notice_of_a_spot_machine passes with Ray's own backends.
"""

from __future__ import annotations

from typing import Any

from ray.train.backend import Backend, BackendConfig

from kiloseg.training import preemption


class SingleWorkerConfig(BackendConfig):
    """The backend of a trial with one worker, which has no process group and treats SIGTERM as a warning of preemption."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend class that sets up the worker."""
        return _SingleWorkerBackend


class _SingleWorkerBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Installs the signal handler. This method runs in the controller; `execute` runs in every worker's main thread."""
        worker_group.execute(preemption.install_handler)
