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
import random
import socket
from collections.abc import Iterator

from ray._private import ray_constants

PORTS = range(20_000, 32_768)
"""The ports for the dashboard: Ray gives its workers 10002 to 19999, and Linux serves `bind(0)` from 32768 on."""


def keep_to_loopback() -> None:
    """Makes clusters that this process starts listen on loopback, as Ray does on systems other than Linux."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def free_port() -> int:
    """Returns a port of loopback that is free now and that the system does not give out by itself.

    The range lies above that of Ray's workers and below that from which Linux serves `bind(0)`. A port of the latter can be
    taken by a process of the same cluster, such as its GCS, before the dashboard binds it; `ray.init` then fails.

    Raises:
        OSError: no port was found.
    """
    for port in random.Random().sample(PORTS, 100):  # seeded by the system: trials seed the shared generator alike
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError(
        f"100 ports of 127.0.0.1 between {PORTS.start} and {PORTS.stop - 1} were tried for Ray's dashboard; none is free"
    )


@contextlib.contextmanager
def dashboard_port() -> Iterator[int]:
    """Yields a free port for the dashboard; processes started inside the `with` block look for the dashboard there."""
    port = free_port()
    name = ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE
    before = os.environ.get(name)
    os.environ[name] = f"http://127.0.0.1:{port}"
    try:
        yield port
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
