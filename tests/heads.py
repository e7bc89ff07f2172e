"""A Ray head as a head node runs it: `ray start --head --block`, token authentication on, dashboard on loopback."""

import contextlib
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
    session: Path

    def submit(self, tree: Path, *words: object) -> list[str]:
        """The command that a user types in `tree`."""
        command = ["ray", "job", "submit", "--working-dir", str(tree), "--", "python", *words]
        return [str(BIN / command[0]), *map(str, command[1:])]

    def status(self, path: str, token: str | None) -> int:
        """HTTP status of a GET."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.dashboard + path, headers=headers), timeout=5
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@contextlib.contextmanager
def running_head(*, cpus: int = 2):
    """Starts a head and ends it. Ray's socket paths have a length limit, so its folder is not pytest's."""
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
    }
    command = [
        *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"),
        *(f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"),
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        url = f"http://127.0.0.1:{dashboard}"
        head = Head(
            address=f"127.0.0.1:{gcs}",
            dashboard=url,
            environment=environment | {"RAY_API_SERVER_ADDRESS": url},
            token=token,
            session=folder / "ray" / "session_latest",
        )
        try:
            _wait(head, agent, process, folder / "head.log")
            yield head
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # it waits half a minute for workers of a job that ended
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _wait(head: Head, agent: int, process: subprocess.Popen, log: Path) -> None:
    """Until jobs can be submitted: the dashboard hands them to an agent, which comes up after it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", agent), timeout=1).close()
            if head.status("/api/jobs/", head.token) == 200:
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
