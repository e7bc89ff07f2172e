"""Where a data set lies: a folder of this machine, or one on any filesystem that pyarrow knows by a URL.

A local folder needs nothing but Python; pyarrow is imported for URLs alone. Whatever is written appears under its name
whole or not at all: by renaming on this machine, by the end of an upload elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kiloseg.storage.atomic import PARTIAL, write_whole
from kiloseg.storage.credentials import shown
from kiloseg.storage.errors import DataError

WORK = PARTIAL
"""Folder inside a data set's that holds what is not finished."""


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

    def open(self, name: str) -> IO[bytes]:
        """For reading from start to end; raises FileNotFoundError."""
        return (self.path / name).open("rb")

    def random_access(self, name: str) -> Any:
        """What pyarrow.parquet reads parts of; FileNotFoundError comes at the latest when it is read."""
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
        write_whole(self.path / name, content)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder of this machine to write large files in before `put`; nobody else has it."""
        folder = self.path / WORK
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="write-", dir=folder) as scratch:
            yield Path(scratch)
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


class RemoteFolder:
    """The same on any filesystem that pyarrow knows by a URL, such as s3://BUCKET/FOLDER?region=... and gs://BUCKET/FOLDER.

    Credentials come from the environment, as the filesystem's own tools take them.

    Raises:
        ConnectionError: from every method, where the filesystem does not answer or refuses; names the URL and the mend.
    """

    def __init__(self, url: str) -> None:
        from pyarrow.fs import FileSystem

        parts = urllib.parse.urlsplit(url)
        self.name = f"{parts.scheme}://{shown(url).partition('://')[2].partition('?')[0].rstrip('/')}"
        """As messages call it: without credentials and options."""
        self.location = url
        with self._reaching("opened"):
            try:
                self._files, path = FileSystem.from_uri(url)
            except (NotImplementedError, ValueError) as error:
                raise DataError(
                    f"{self.name}: {_first_line(error).replace(url, self.name)}; expected a path, or a URL of a filesystem "
                    "that pyarrow knows, as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
                ) from error
        self._path = path.rstrip("/")
        if "/" not in self._path:
            raise DataError(f"{self.name}: expected a folder inside a bucket, as {parts.scheme}://BUCKET/FOLDER")

    def at(self, name: str) -> str:
        """As LocalFolder."""
        return f"{self.name}/{name}"

    def is_file(self) -> bool:
        """As LocalFolder."""
        from pyarrow.fs import FileType

        with self._reaching("read"):
            return self._files.get_file_info(self._path).type == FileType.File

    def entries(self, inner: str = "") -> list[str]:
        """As LocalFolder."""
        return sorted(found.base_name for found in self._list(inner))

    def sizes(self) -> dict[str, int]:
        """As LocalFolder."""
        return {found.base_name: found.size for found in self._list("") if found.is_file}

    def _list(self, inner: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        with self._reaching("read"):
            return self._files.get_file_info(FileSelector(f"{self._path}/{inner}".rstrip("/"), allow_not_found=True))

    def open(self, name: str) -> IO[bytes]:
        """As LocalFolder."""
        with self._reaching("read"):
            return self._files.open_input_stream(f"{self._path}/{name}", compression=None, buffer_size=2**20)

    def random_access(self, name: str) -> Any:
        """As LocalFolder."""
        with self._reaching("read"):
            return self._files.open_input_file(f"{self._path}/{name}")

    def read(self, name: str) -> bytes:
        """As LocalFolder."""
        with self._reaching("read"), self.open(name) as file:
            return file.read()

    def blocks(self, name: str) -> Iterator[bytes]:
        """A file from start to end, 1 MiB at a time; raises FileNotFoundError."""
        with self._reaching("read"), self.open(name) as file:
            while block := file.read(2**20):
                yield block

    def sha256(self, name: str) -> str:
        """As LocalFolder."""
        digest = hashlib.sha256()
        for block in self.blocks(name):
            digest.update(block)
        return digest.hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """As LocalFolder."""
        with (
            self._reaching("written"),
            self._files.open_output_stream(f"{self._path}/{name}", compression=None) as file,
        ):
            file.write(content)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """As LocalFolder."""
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
            yield Path(folder)

    def put(self, source: Path, name: str) -> None:
        """As LocalFolder."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._reaching("written"):
            copy_files(str(source), f"{self._path}/{name}", LocalFileSystem(), self._files)

    def remove(self, name: str) -> None:
        """As LocalFolder."""
        path = f"{self._path}/{name}"
        with self._reaching("written"):
            found = self._files.get_file_info(path)
            if found.is_file:
                self._files.delete_file(path)
            elif found.type.name == "Directory":
                self._files.delete_dir(path)

    @contextlib.contextmanager
    def _reaching(self, done: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ConnectionError):
            raise
        except OSError as error:
            raise ConnectionError(
                f"{self.name} cannot be {done} ({_first_line(error)}); check the address, the bucket and the credentials"
            ) from error


Folder = LocalFolder | RemoteFolder


def open_folder(where: Path | str) -> Folder:
    """The folder that a path or URL names.

    Raises:
        ConnectionError: as `RemoteFolder`.
        DataError: a URL that names no folder of a filesystem.
    """
    if not isinstance(where, str) or "://" not in where:
        return LocalFolder(Path(where))
    parts = urllib.parse.urlsplit(where)
    if parts.scheme == "file" and not parts.netloc:
        return LocalFolder(Path(urllib.parse.unquote(parts.path)))
    return RemoteFolder(where)


def inside(location: str, name: str) -> str:
    """The path or URL of what is called `name` in the folder at a path or URL."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def holder(location: Path | str) -> tuple[Folder, str]:
    """The folder that a file is in and the file's name there, from its path or URL; raises as `open_folder`."""
    if not isinstance(location, str) or "://" not in location:
        return LocalFolder(Path(location).parent), Path(location).name
    place, mark, options = location.partition("?")
    directory, _, name = place.rpartition("/")
    return open_folder(directory + mark + options), name


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
