"""Turns errors about a folder that cannot be written into a DataError."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import Folder

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)


@contextmanager
def writing(folder: Folder) -> Iterator[None]:
    """Raises DataError, which says what to do, if the folder cannot be written. Errors of the builder pass unchanged."""
    try:
        yield
    except OSError as error:
        file = str(error.filename or "")
        inside = file.startswith(folder.name) or (file != "" and folder.name.startswith(file))
        if error.errno in _FULL or (error.errno in _FORBIDDEN and inside):
            remedy = "make room there" if error.errno in _FULL else "change its permissions"
            raise DataError(f"{folder.name} cannot be written ({error}); {remedy}, or choose another --out") from error
        raise
