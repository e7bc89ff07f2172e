"""Where a data set lies: a folder of this machine, or one on any filesystem that pyarrow knows by a URL.

A local folder needs nothing but Python; pyarrow is imported for URLs alone. Whatever is written appears under its name
whole or not at all: by renaming on this machine, by the end of an upload elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

WORK = ".partial"
"""Folder inside a data set's, and suffix of files, that hold what is not finished."""


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file or sample, what was expected and the mend."""


class LocalFolder:
    """A folder of this machine, or of a filesystem mounted on it; it need not exist before it is written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        """As messages call it."""
        self.location = str(path.absolute())
        """As another process opens it."""

    def at(self, name: str) -> str:
        """A file in it, for messages."""
        return str(self.path / name)

    def is_file(self) -> bool:
        """Whether something that is no folder has this name."""
        return self.path.exists() and not self.path.is_dir()

    def entries(self, inner: str = "") -> list[str]:
        """Names of all files and folders directly inside, or in a folder inside, sorted; none where there is no folder."""
        path = self.path / inner
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def sizes(self) -> dict[str, int]:
        """Bytes of every file directly inside."""
        return {name: (self.path / name).stat().st_size for name in self.entries() if (self.path / name).is_file()}

    def open(self, name: str) -> BinaryIO:
        """For reading from start to end; raises FileNotFoundError."""
        return (self.path / name).open("rb")

    def open_anywhere(self, name: str) -> Any:
        """What pyarrow.parquet reads parts of; raises FileNotFoundError when it is read."""
        return self.path / name

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self.path / name).read_bytes()

    def sha256(self, name: str) -> str:
        """Digest of a file, hexadecimal; raises FileNotFoundError."""
        with (self.path / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + WORK)
        partial.write_bytes(content)
        partial.replace(path)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this machine to write large files in before `put`."""
        folder = self.path / WORK
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless a build keeps more in it

    def put(self, source: Path, name: str) -> None:
        """Gives a finished file in `scratch` its place."""
        source.replace(self.path / name)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all it holds, or nothing where there is none of that name."""
        if (self.path / name).is_dir():
            shutil.rmtree(self.path / name)
        else:
            (self.path / name).unlink(missing_ok=True)


def open_folder(where: Path | str) -> LocalFolder:
    """The folder that a path or URL names."""
    return LocalFolder(Path(where))
