"""Runs MLflow as a service on this machine: a tracking server, PostgreSQL for its numbers and a folder for its artifacts.

    kiloseg services --folder runs/services --port 5000

The server listens on loopback only, and PostgreSQL only on a socket in a folder of its own. PostgreSQL refuses to run as
root: if root starts this, PostgreSQL runs as the user `--user`, who then owns its files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import tyro

from kiloseg.storage.commands import shell
from kiloseg.storage.sockets import short_folder

try:
    import pwd
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "kiloseg.tracking.services needs a POSIX system (users, Unix sockets, signals); on other systems, start an MLflow server "
        "yourself and set MLFLOW_TRACKING_URI to it"
    ) from error


@dataclass(frozen=True, kw_only=True)
class Services:
    """Starts the services, prints the address for MLFLOW_TRACKING_URI, and runs until it is interrupted."""

    folder: Path = Path("runs/services")
    """Folder for the database, artifacts and logs; existing ones are used again."""
    port: int = 5000
    """Port of the tracking server on 127.0.0.1."""
    workers: int = 2
    """Number of processes of the tracking server."""
    user: str = "postgres"
    """User who runs PostgreSQL if root starts this."""


class NotStartedError(ValueError):
    """Raised if a service does not start; the message says what helps, or quotes the service's log."""


class Postgres:
    """A PostgreSQL server that listens on a socket in a folder and has no network port.

    Args:
        folder: folder of its files; created if it does not exist.
        user: user who runs it if this process belongs to root.

    Raises:
        NotStartedError: PostgreSQL is not installed, `user` does not exist or cannot enter the folder, or the server does not
            start; then the message quotes its log.
    """

    def __init__(self, folder: Path, user: str = "postgres") -> None:
        self.folder = folder.resolve()
        self._user = user if os.getuid() == 0 else None
        if self._user:
            _check_exists(self._user)
        programs = _postgres_programs()
        self._data = self.folder / "data"
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            self._check_reachable(self._user)
        prefix = "kiloseg-pg-"
        needs = len(f"/{prefix}01234567/.s.PGSQL.5432")
        self._socket = short_folder(prefix, needs=needs) or Path(tempfile.mkdtemp(prefix=prefix))
        for path in (self.folder, self._socket):
            if self._user:
                shutil.chown(path, self._user)
        if not (self._data / "PG_VERSION").exists():
            self._run(
                [programs / "initdb", "--pgdata", self._data, "--auth", "peer", "--username", "mlflow", "--no-sync"]
            )
            name = pwd.getpwuid(os.getuid()).pw_name
            (self._data / "pg_hba.conf").write_text("local all all peer map=mlflow\n")
            names = {name, self._user or name}
            (self._data / "pg_ident.conf").write_text("".join(f"mlflow {other} mlflow\n" for other in sorted(names)))
        options = ["-D", str(self._data), "-k", str(self._socket), "-c", "listen_addresses="]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(programs / "postgres"), *options],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self.folder,
                start_new_session=True,
            )
        self.uri = f"postgresql+psycopg2://mlflow@/postgres?host={quote(str(self._socket))}"
        ready = [str(programs / "pg_isready"), "--host", str(self._socket), "--quiet"]
        _wait(
            lambda: subprocess.run(ready, check=False).returncode == 0,
            "PostgreSQL",
            self.process,
            self.folder / "log",
            60,
        )

    def _check_reachable(self, user: str) -> None:
        """Raises NotStartedError if the user who runs the server may not enter a folder above its files."""
        account = pwd.getpwnam(user)
        closed = []
        for path in reversed(self.folder.parents):
            state = path.stat()
            if state.st_uid == account.pw_uid:
                needed = stat.S_IXUSR
            else:
                needed = stat.S_IXGRP if state.st_gid in os.getgrouplist(user, account.pw_gid) else stat.S_IXOTH
            if not state.st_mode & needed:
                closed.append(path)
        if closed:
            raise NotStartedError(
                f"PostgreSQL runs as user {user}, since it refuses to run as root, and that user may not enter {closed[0]}; give "
                f"another --folder, or let everyone pass through: {shell('chmod', 'a+x', *closed)}"
            )

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(
            command, user=self._user, cwd=self.folder, capture_output=True, text=True, env=_plain(), check=False
        )
        if done.returncode:
            raise NotStartedError(f"{command[0]} failed: {done.stderr}{done.stdout}")

    def stop(self) -> None:
        """Shuts the server down in an orderly way."""
        _end(self.process, signal.SIGINT)
        shutil.rmtree(self._socket, ignore_errors=True)


class TrackingServer:
    """An MLflow server that listens on loopback.

    Args:
        folder: folder for artifacts and the server's log.
        database: the database for its numbers, as a URI of SQLAlchemy.
        port: port on 127.0.0.1.
        workers: number of the server's processes.

    Raises:
        NotStartedError: the server does not start; the message quotes its log.
    """

    def __init__(self, folder: Path, database: str, port: int, workers: int = 2) -> None:
        folder = folder.resolve()
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        self.uri = f"http://127.0.0.1:{port}"
        arguments = {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--workers": str(workers),
            "--backend-store-uri": database,
            "--artifacts-destination": (folder / "artifacts").as_uri(),
        }
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(word for pair in arguments.items() for word in pair)],
                stdout=log,
                stderr=log,
                cwd=folder,
                # With MLflow's background jobs the start takes half a minute.
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )
        _wait(lambda: _answers(f"{self.uri}/health"), "the MLflow server", self.process, folder / "server.log", 180)

    def kill(self) -> None:
        """Kills the server and its workers at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Shuts the server down in an orderly way."""
        _end(self.process, signal.SIGTERM)
        self.kill()


def _postgres_programs() -> Path:
    found = shutil.which("postgres")
    # Debian keeps most of PostgreSQL's programs out of the PATH.
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if all((folder / name).exists() for name in ("postgres", "initdb", "pg_isready")):
            return folder
    raise NotStartedError("PostgreSQL is not installed; on Debian or Ubuntu: apt install postgresql")


def _plain() -> Mapping[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _wait(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise NotStartedError(f"{what} did not start within {seconds:.0f} s; the end of {log}:\n{_tail(log)}")
        time.sleep(0.2)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check_exists(user: str) -> None:
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise NotStartedError(
            f"--user {user}: there is no such user; expected the one who runs PostgreSQL, which refuses to run as root, such as "
            "postgres or nobody"
        ) from None


def _check_free(port: int) -> None:
    """Raises NotStartedError if a program listens on the port; it could be taken for the server that is started."""
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            here.bind(("127.0.0.1", port))
        except OSError as error:
            here.bind(("127.0.0.1", 0))
            raise NotStartedError(
                f"--port {port} of 127.0.0.1 cannot be used ({error.strerror}); end the program that uses it, or give another, "
                f"such as --port {here.getsockname()[1]}"
            ) from error


def main(services: Services) -> None:
    """Runs the services until SIGINT or SIGTERM; raises NotStartedError if one does not start."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    _check_free(services.port)
    database = Postgres(services.folder / "postgres", services.user)
    try:
        server = TrackingServer(services.folder, database.uri, services.port, services.workers)
        try:
            print(f"MLflow is ready:  export MLFLOW_TRACKING_URI={server.uri}   (press Ctrl+C to stop)", flush=True)
            server.process.wait()
        except KeyboardInterrupt:
            print("stopping")
        finally:
            server.stop()
    finally:
        database.stop()


if __name__ == "__main__":
    try:
        main(tyro.cli(Services, description=__doc__))
    except NotStartedError as error:
        sys.exit(str(error))
