"""Ray nodes as machines run them: `ray start --block`, token authentication on, the head's dashboard on loopback."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    address: str
    """Of the cluster, for RAY_ADDRESS."""
    dashboard: str
    """Where jobs are submitted."""
    environment: dict[str, str]
    """Of programs that speak with it: the token, and where jobs go."""
    token: str
    folder: Path
    """Of what it writes, with a name short enough for Ray's sockets."""

    @property
    def session(self) -> Path:
        """Ray's own folder of this head."""
        return self.folder / "ray" / "session_latest"

    def submit(self, tree: Path, *words: object) -> list[str]:
        """The command that a user types in `tree`."""
        command = ["ray", "job", "submit", "--working-dir", str(tree), "--", "python", *words]
        return [str(BIN / command[0]), *map(str, command[1:])]

    def nodes(self) -> list[str]:
        """The ids of the nodes that are alive, itself among them."""
        status, content = self._get("/nodes?view=summary", self.token)
        nodes = json.loads(content)["data"]["summary"] if status == 200 else []
        return [node["raylet"]["nodeId"] for node in nodes if node["raylet"].get("state") == "ALIVE"]

    def takes_jobs(self) -> bool:
        """Whether it knows the agent that starts its jobs.

        The dashboard and the agent's own port answer before that, and a job that is submitted then may be refused. Ray lists a
        node's logs by the same entry, through the same agent.
        """
        return any(self.status(f"/api/v0/logs?node_id={node}&glob=none", self.token) == 200 for node in self.nodes())

    def status(self, path: str, token: str | None) -> int:
        """HTTP status of a GET."""
        return self._get(path, token)[0]

    def _get(self, path: str, token: str | None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@contextlib.contextmanager
def running_head(*, cpus: int = 2):
    """Starts a head and ends it."""
    folder = Path(tempfile.mkdtemp(prefix="kr-", dir="/tmp"))
    gcs, dashboard, client, agent = free_ports(4)
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than the 30 s that Ray waits
    }
    command = [
        *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"),
        *(f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"),
    ]
    url = f"http://127.0.0.1:{dashboard}"
    head = Head(
        address=f"127.0.0.1:{gcs}",
        dashboard=url,
        environment=environment | {"RAY_API_SERVER_ADDRESS": url},
        token=token,
        folder=folder,
    )
    try:
        with _running(command, environment, folder / "head.log") as process:
            _wait(head, process, folder / "head.log")
            yield head
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_nodes(head: Head, *resources: dict[str, int]):
    """Starts a node for each of `resources` (cpus, gpus), waits until the head knows them all, and ends them; their processes."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for number, each in enumerate(resources):
            (agent,) = free_ports(1)
            command = [
                *(BIN / "ray", "start", "--block", "--disable-usage-stats", f"--address={head.address}"),
                *(f"--num-cpus={each['cpus']}", f"--num-gpus={each['gpus']}", f"--dashboard-agent-listen-port={agent}"),
                f"--object-store-memory={100 * 2**20}",
            ]
            log = head.folder / f"node-{number}.log"
            nodes.append(stack.enter_context(_running(command, head.environment, log)))
            # One after the other: two nodes of one machine that start together can miss each other's ports.
            deadline = time.monotonic() + 120
            while len(head.nodes()) < number + 2:
                assert nodes[-1].poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"the node did not come up:\n{log.read_text()}"
                time.sleep(0.5)
        yield nodes


@contextlib.contextmanager
def _running(command: list[object], environment: dict[str, str], log: Path):
    with log.open("w") as file:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits half a minute for workers of a job that ended
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(head: Head, process: subprocess.Popen, log: Path) -> None:
    """Waits until jobs can be submitted."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if head.takes_jobs():
                return
        time.sleep(0.2)
    raise AssertionError(f"the head did not come up:\n{log.read_text()}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
