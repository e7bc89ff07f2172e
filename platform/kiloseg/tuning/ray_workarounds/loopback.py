"""Makes a local cluster listen only on loopback, and lets its processes find its own dashboard.

Seen on Ray 2.60: Ray uses the machine's own address, and so listens to the network, even for a cluster of one node. Train frees
the resources of a stopped trial through the dashboard's state API. Processes that do not know its address ask the newest cluster
on the machine, which may be another one or one that was killed, and the study hangs.

It can go when tests/test_security.py::test_a_study_on_this_machine_listens_on_loopback_alone and
tests/tuning/test_cores.py::test_stopped_trials_give_their_cores_back pass with `ray.init(address="local")` alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from ray._private import ray_constants


def keep_to_loopback() -> None:
    """Makes clusters that this process starts listen on loopback, as Ray does on systems other than Linux."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


@contextlib.contextmanager
def dashboard_port() -> Iterator[int]:
    """Yields a free port for the dashboard; processes started inside the `with` block look for the dashboard there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    name = ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
    before = os.environ.get(name)
    os.environ[name] = f"http://127.0.0.1:{port}"
    try:
        yield port
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
