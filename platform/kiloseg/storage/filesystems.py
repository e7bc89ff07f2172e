"""Accesses the folder of a data set, on this machine or on any filesystem that pyarrow supports by URL.

A local folder needs nothing but Python; pyarrow is imported only for URLs. A written file appears under its name complete
or not at all: by renaming on this machine, or when an upload ends elsewhere.
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
"""Name of the folder inside a data set's folder that holds unfinished files."""


class LocalFolder:
    """Accesses a folder of this machine or of a mounted filesystem. It does not have to exist before it is written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        """The name of the folder in messages."""
        self.location = str(path.absolute())
        """The location by which another process can open the folder."""

    def at(self, name: str) -> str:
        """Returns the name of a file in the folder for messages."""
        return str(self.path / name)

    def is_file(self) -> bool:
        """Returns whether something that is not a folder has this name."""
        return self.path.exists() and not self.path.is_dir()

    def entries(self, inner: str = "") -> list[str]:
        """Returns the sorted names of all files and folders directly inside, or in folder `inner`; none without a folder."""
        path = self.path / inner
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of every file directly inside."""
        return {name: (self.path / name).stat().st_size for name in self.entries() if (self.path / name).is_file()}

    def open(self, name: str) -> IO[bytes]:
        """Opens a file for reading from start to end; raises FileNotFoundError."""
        return (self.path / name).open("rb")

    def random_access(self, name: str) -> Any:
        """Returns an object of which pyarrow.parquet can read parts. FileNotFoundError is raised now or when it is read."""
        return self.path / name

    def read(self, name: str) -> bytes:
        """Returns the content of a file; raises FileNotFoundError."""
        return (self.path / name).read_bytes()

    def sha256(self, name: str) -> str:
        """Returns the sha256 digest of a file in hexadecimal digits; raises FileNotFoundError."""
        with (self.path / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, whole, also if other processes write it at the same time: the last one wins."""
        write_whole(self.path / name, content, shared=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Provides an empty, private folder of this machine to write large files to before `put`."""
        folder = self.path / WORK
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="write-", dir=folder) as scratch:
            yield Path(scratch)
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails if a build keeps more files in it

    def put(self, source: Path, name: str) -> None:
        """Moves a finished file from `scratch` to its place."""
        source.replace(self.path / name)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content; does nothing if the name does not exist."""
        if (self.path / name).is_dir():
            shutil.rmtree(self.path / name)
        else:
            (self.path / name).unlink(missing_ok=True)


class RemoteFolder:
    """Accesses a folder on any filesystem that pyarrow supports by URL, in the same way as LocalFolder.

    Examples of URLs are s3://BUCKET/FOLDER?region=... and gs://BUCKET/FOLDER.

    Credentials come from the environment, as for the filesystem's own tools.

    Raises:
        ConnectionError: the filesystem does not answer or denies access. Every method can raise it; the message names the
            URL and the fix.
    """

    def __init__(self, url: str) -> None:
        from pyarrow.fs import FileSystem

        parts = urllib.parse.urlsplit(url)
        self.name = f"{parts.scheme}://{shown(url).partition('://')[2].partition('?')[0].rstrip('/')}"
        """The name of the folder in messages, without credentials and options."""
        self.location = url
        with self._reaching("opened"):
            try:
                self._files, path = FileSystem.from_uri(url)
            except (NotImplementedError, ValueError) as error:
                raise DataError(
                    f"{self.name}: {_first_line(error).replace(url, self.name)}; expected a path, or a URL of a filesystem "
                    "that pyarrow knows, such as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
                ) from error
        self._path = path.rstrip("/")
        if "/" not in self._path:
            raise DataError(f"{self.name}: expected a folder inside a bucket, such as {parts.scheme}://BUCKET/FOLDER")

    def at(self, name: str) -> str:
        """Does the same as in LocalFolder."""
        return f"{self.name}/{name}"

    def is_file(self) -> bool:
        """Does the same as in LocalFolder."""
        from pyarrow.fs import FileType

        with self._reaching("read"):
            return self._files.get_file_info(self._path).type == FileType.File

    def entries(self, inner: str = "") -> list[str]:
        """Does the same as in LocalFolder."""
        return sorted(found.base_name for found in self._list(inner))

    def sizes(self) -> dict[str, int]:
        """Does the same as in LocalFolder."""
        return {found.base_name: found.size for found in self._list("") if found.is_file}

    def _list(self, inner: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        with self._reaching("read"):
            return self._files.get_file_info(FileSelector(f"{self._path}/{inner}".rstrip("/"), allow_not_found=True))

    def open(self, name: str) -> IO[bytes]:
        """Does the same as in LocalFolder."""
        with self._reaching("read"):
            return self._files.open_input_stream(f"{self._path}/{name}", compression=None, buffer_size=2**20)

    def random_access(self, name: str) -> Any:
        """Does the same as in LocalFolder."""
        with self._reaching("read"):
            return self._files.open_input_file(f"{self._path}/{name}")

    def read(self, name: str) -> bytes:
        """Does the same as in LocalFolder."""
        with self._reaching("read"), self.open(name) as file:
            return file.read()

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yields a file from start to end, 1 MiB at a time; raises FileNotFoundError."""
        with self._reaching("read"), self.open(name) as file:
            while block := file.read(2**20):
                yield block

    def sha256(self, name: str) -> str:
        """Does the same as in LocalFolder."""
        digest = hashlib.sha256()
        for block in self.blocks(name):
            digest.update(block)
        return digest.hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Does the same as in LocalFolder."""
        with (
            self._reaching("written"),
            self._files.open_output_stream(f"{self._path}/{name}", compression=None) as file,
        ):
            file.write(content)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Does the same as in LocalFolder."""
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
            yield Path(folder)

    def put(self, source: Path, name: str) -> None:
        """Does the same as in LocalFolder."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._reaching("written"):
            copy_files(str(source), f"{self._path}/{name}", LocalFileSystem(), self._files)

    def remove(self, name: str) -> None:
        """Does the same as in LocalFolder."""
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
    """Returns the folder that a path or URL names.

    Raises:
        ConnectionError: `RemoteFolder` raised it.
        DataError: the URL does not name a folder of a filesystem.
    """
    if not isinstance(where, str) or "://" not in where:
        return LocalFolder(Path(where))
    parts = urllib.parse.urlsplit(where)
    if parts.scheme == "file" and not parts.netloc:
        return LocalFolder(Path(urllib.parse.unquote(parts.path)))
    return RemoteFolder(where)


def inside(location: str, name: str) -> str:
    """Returns the path or URL of the entry `name` in the folder at a path or URL."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def holder(location: Path | str) -> tuple[Folder, str]:
    """Returns the folder of a file and its name there, from its path or URL. Raises the same errors as `open_folder`."""
    if not isinstance(location, str) or "://" not in location:
        return LocalFolder(Path(location).parent), Path(location).name
    place, mark, options = location.partition("?")
    directory, _, name = place.rpartition("/")
    return open_folder(directory + mark + options), name


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
