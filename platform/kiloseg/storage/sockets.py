"""Finds a folder whose path is short enough for Unix sockets, which processes of one machine talk through.

The path of a socket may have at most 107 bytes, and TMPDIR of a batch job often takes most of them.
"""

from __future__ import annotations

import multiprocessing.process
import os
import shutil
import tempfile
from multiprocessing import util
from pathlib import Path

LONGEST_PATH = 107
"""Most bytes that Linux allows for the path of a socket."""

PROCESSES_NEED = len("/pymp-01234567/listener-01234567")
"""Bytes that Python's multiprocessing adds to the temporary folder."""


def short_folder(prefix: str, *, needs: int, usual: str | None = None) -> Path | None:
    """Makes a temporary folder for sockets outside of TMPDIR, if paths in TMPDIR would be too long.

    Args:
        prefix: start of the folder's name.
        needs: number of bytes that paths of sockets add to a temporary folder.
        usual: the folder that would be used; None: TMPDIR.

    Returns:
        A new folder that the caller removes, or None if TMPDIR is short enough.

    Raises:
        ValueError: TMPDIR is too long and there is no other folder that this process can write to.
    """
    usual = usual or tempfile.gettempdir()
    if len(os.fsencode(usual)) + needs <= LONGEST_PATH:
        return None
    for candidate in ("/tmp", "/var/tmp", f"/run/user/{os.getuid()}", "/dev/shm"):  # noqa: S108
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=candidate))
        except OSError:
            continue
    raise ValueError(
        f"TMPDIR = {usual!r} is too long: paths of sockets in it would exceed {LONGEST_PATH} bytes, and no shorter folder can be "
        f"written to; set TMPDIR to a folder whose path has at most {LONGEST_PATH - needs} bytes"
    )


def keep_socket_paths_short() -> None:
    """Makes this process and those it starts keep their sockets in a short folder if TMPDIR is too long for them.

    The folder is removed when the process ends.

    Raises:
        ValueError: there is no short folder that this process can write to.
    """
    settings = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    if settings.get("tempdir") is not None:
        return
    folder = short_folder("kiloseg-sockets-", needs=PROCESSES_NEED)
    if folder is not None:
        settings["tempdir"] = str(folder)
        util.Finalize(None, shutil.rmtree, args=[str(folder)], kwargs={"ignore_errors": True}, exitpriority=-100)
