"""Opens the storage through which several drivers share a search: a journal in the folder of results, or a database."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from kiloseg.storage.credentials import require_no_credentials, shown
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import LocalFolder, inside, open_folder

FOLDER = "shared"
"""Folder inside that of results which holds the journals of shared studies."""
ATTEMPTS = 5
"""How often a database is opened before an error counts: drivers that create its tables at the same time disturb each other."""
LOCKED_S = 60
"""Seconds for which a SQLite database may be locked by other processes."""
OF_MLFLOW = {"experiments", "runs"}
"""Tables by which MLflow's database is recognized."""
VERSIONS = "alembic_version"
"""Table in which both MLflow and Optuna keep the version of their tables, so that a database has room for one of them."""


@dataclass(frozen=True, kw_only=True)
class SharedPlace:
    """The place of a shared study."""

    name: str
    """The study's name in the storage."""
    location: str
    """Path of a journal, or the URL of a database."""

    def __str__(self) -> str:
        return f"{self.name} in {shown(self.location)}"


def check_share(share: str) -> None:
    """Checks that --share is a word or the URL of a database.

    Raises:
        ValueError: it is something else, or the URL has credentials.
    """
    require_no_credentials("share", share)
    if "://" not in share and (not share or set(share) & set("/\\'\"#")):
        raise ValueError(
            f"share = {share!r}: expected a word without slashes and quotes, for a journal in the folder of results, or the URL of "
            "a database, such as postgresql+psycopg2://HOST/DATABASE"
        )


def shared_place(share: str, runs: str, name: str) -> SharedPlace:
    """Returns the place that --share names.

    Args:
        share: a word, for a journal in the folder of results; or the URL of a database, whose fragment (#NAME) may name the study.
        runs: folder of results, by path or URL.
        name: name of the search, which is that of the study in a database without a fragment.

    Raises:
        ValueError: a journal is wanted, and results are at a URL.
    """
    if "://" in share:
        location, _, fragment = share.partition("#")
        return SharedPlace(name=fragment or name, location=location)
    root = open_folder(runs)
    if not isinstance(root, LocalFolder):
        raise ValueError(
            f"--share {share}: results are at {root.name}, where no journal can be written, since a journal grows in place; give "
            "the URL of a database, such as postgresql+psycopg2://HOST/DATABASE"
        )
    journal = inside(str(root.path.resolve()), f"{FOLDER}/{share}.journal")
    return SharedPlace(name=share, location=journal)


def open_storage(place: SharedPlace) -> BaseStorage:
    """Opens the storage of a shared study, which is created if it does not exist.

    Raises:
        DataError: the journal is damaged.
        ValueError: the URL is that of no database, or of one that belongs to MLflow or another program.
        ConnectionError: the database does not answer.
    """
    if "://" in place.location:
        return _database(place.location)
    path = Path(place.location)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=RepairingLock(str(path))))
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error}); every line should be JSON: remove the line that is not, or give another name to --share"
        ) from error


class RepairingLock(JournalFileSymlinkLock):
    """The lock of a journal; its holder removes what another process left of a line in whose middle it died.

    Otherwise the next line would be appended to the rest, and no process could read the journal any more.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = Path(path)

    def acquire(self) -> bool:
        """Takes the lock; a process that died with it is waited for 30 s."""
        super().acquire()
        try:
            self._repair()
        except BaseException:
            self.release()
            raise
        return True

    def _repair(self) -> None:
        with self._path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def _database(url: str) -> BaseStorage:
    try:
        engine = sqlalchemy.create_engine(url)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ValueError(
            f"--share {shown(url)}: {_first_line(error)}; expected the URL of a database that SQLAlchemy knows and whose driver is "
            "installed, such as postgresql+psycopg2://HOST/DATABASE or sqlite:///FILE"
        ) from error
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    except SQLAlchemyError as error:
        raise ConnectionError(
            f"--share: {shown(url)} does not answer ({_first_line(error)}); check the address, and that the database exists"
        ) from error
    finally:
        engine.dispose()
    if tables >= OF_MLFLOW or (VERSIONS in tables and "studies" not in tables):
        owner = "MLflow" if tables >= OF_MLFLOW else "another program"
        raise ValueError(
            f"--share {shown(url)}: this database belongs to {owner}, and Optuna would keep the version of its tables in the same "
            f"table {VERSIONS}; give a database of its own (createdb NAME), or on PostgreSQL a schema of its own "
            "(CREATE SCHEMA optuna, and ?options=-csearch_path%3Doptuna at the end of the URL)"
        )
    options: dict[str, Any] = {"pool_pre_ping": True}  # servers close connections that were idle while trials ran
    if engine.name == "sqlite":
        options["connect_args"] = {"timeout": LOCKED_S}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt == ATTEMPTS:
                raise ConnectionError(f"--share: {shown(url)} cannot be used ({_first_line(error)})") from error
            time.sleep(0.5 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
