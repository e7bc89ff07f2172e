"""What Tune reserves for a trial is free of CPUs and GPUs.

Seen on Ray 2.60: the workers of a trial's Ray Train run reserve their CPUs and GPUs in a placement group of their own, of which
Tune knows nothing. Trials that held a CPU while they waited for their workers' would block each other for ever; Tune's default
is 1 CPU a trial, and 0 CPUs are refused.

It can go when tests/tuning/test_nodes.py::test_a_gpu_has_one_trial_and_all_gpus_are_busy passes with Tune's default resources.
"""

from __future__ import annotations

DRIVER_RESOURCES = {"memory": 64 * 2**20}
"""Resources of the actor that runs a trial's driver, in bytes."""
