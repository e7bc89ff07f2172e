"""Makes Tune reserve no CPUs and GPUs for a trial.

Seen on Ray 2.60: the workers of a trial's Ray Train run reserve their CPUs and GPUs in their own placement group, which Tune
does not know. If trials held a CPU while waiting for those of their workers, they would block each other forever. Tune's default
is 1 CPU per trial, and it rejects 0 CPUs.

It can go when tests/tuning/test_nodes.py::test_a_gpu_has_one_trial_and_all_gpus_are_busy passes with Tune's default resources.
"""

from __future__ import annotations

DRIVER_RESOURCES = {"memory": 64 * 2**20}
"""Resources of the actor that runs a trial's driver: memory, in bytes."""
