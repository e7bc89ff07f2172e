"""Corrects the artifact locations in a folder of runs that was moved or copied.

MLflow stores absolute paths of artifacts in its database. After the folder with the database was moved, it would write new
artifacts to the old place and find no old ones.
"""

from __future__ import annotations

import contextlib
import sqlite3
import urllib.parse
from pathlib import Path

ARTIFACTS = "artifacts"
"""Name of the folder of artifacts beside the database; inside, each experiment has a folder of its own."""


def rehome(database: Path) -> list[str]:
    """Makes locations of artifacts point to the folder of the database, for experiments that were stored beside it.

    Locations of other kinds, such as URLs or folders chosen by the user, are left as they are. A run's trainer.output is changed
    too if it was inside the folder.

    Args:
        database: MLflow's SQLite database. A missing or empty one is not an error.

    Returns:
        The former folders.
    """
    if not database.is_file():
        return []
    home = database.resolve().parent
    moved: dict[Path, None] = {}
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"experiments", "runs", "params"} <= tables:
            return []
        rows = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        for experiment, location in rows:
            old = folder_of(location or "")
            if old is None or old.parent.name != ARTIFACTS or old.parents[1] == home:
                continue
            new = home / ARTIFACTS / old.name
            # A folder beside the database belongs to it, also where the former one is still there because it was copied.
            if not new.exists() and old.parents[1].exists():
                continue
            _replace(connection, experiment, old.as_uri(), new.as_uri(), models="logged_models" in tables)
            _replace_outputs(connection, experiment, old.parents[1], home)
            moved[old.parents[1]] = None
    return [str(folder) for folder in moved]


def folder_of(location: str) -> Path | None:
    """Returns the folder of this machine that a location of artifacts names; None for a URL of another kind."""
    parts = urllib.parse.urlsplit(location)
    if parts.scheme != "file" or parts.netloc:
        return None
    return Path(urllib.parse.unquote(parts.path))


def _replace(connection: sqlite3.Connection, experiment: int, old: str, new: str, *, models: bool) -> None:
    connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment))
    columns = [("runs", "artifact_uri")] + [("logged_models", "artifact_location")] * models
    for table, column in columns:
        # Names of tables and columns are those above; values are parameters.
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",  # noqa: S608
            (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"),
        )


def _replace_outputs(connection: sqlite3.Connection, experiment: int, old: Path, new: Path) -> None:
    connection.execute(
        "UPDATE params SET value = ? || substr(value, ?) WHERE key = 'trainer.output' AND substr(value, 1, ?) = ? "
        "AND run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ?)",
        (str(new), len(str(old)) + 1, len(str(old)) + 1, f"{old}/", experiment),
    )
