"""Removes a damaged list of a trial's checkpoints before Ray Train reads it.

Seen on Ray 2.60: Train writes `checkpoint_manager_snapshot.json` in place. A full disk or a crash can truncate it, or a
checkpoint that it names may be gone, and then Train permanently refuses the run.

It can go when tests/tuning/test_faults.py::test_full_disk passes without `drop_damaged_snapshot`.
"""

from __future__ import annotations

import json
import logging

from kiloseg.storage.filesystems import open_folder

logger = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Name of the file in a run's folder in which Ray Train lists the checkpoints."""


def drop_damaged_snapshot(directory: str) -> None:
    """Removes Train's list of a run's checkpoints if it is damaged or names some that are gone.

    Args:
        directory: the run's folder, by path or URL.
    """
    folder = open_folder(directory)
    try:
        listed = json.loads(folder.read(SNAPSHOT))["checkpoint_results"]
        gone = {entry["checkpoint_dir_name"] for entry in listed} - set(folder.entries())
    except FileNotFoundError:
        return
    except (ValueError, KeyError):
        gone = {SNAPSHOT}
    if gone:
        logger.warning("%s is damaged (%s); it is made again", folder.at(SNAPSHOT), ", ".join(sorted(gone)))
        folder.remove(SNAPSHOT)
