"""Identifies studies: names a new one, finds the newest of a name, and checks that a resumed study has the same plan."""

from __future__ import annotations

import json
import math
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any

from kiloseg.config import Config
from kiloseg.overrides import MAY_DIFFER, differences, flatten, renamed
from kiloseg.storage.filesystems import Folder, inside, open_folder
from kiloseg.storage.lease import is_held

PLAN = "study.json"
"""Name of the file in a study's folder that holds the study's plan."""
TABLE = "trials.csv"
"""Name of the file in an ended study's folder that holds the table of its trials."""
TRIALS = "num_trials"
"""Key in the plan of a search that holds its number of trials."""
STAMP = r"-\d{8}-\d{6}(-[0-9a-f]{4})?"
"""Regular expression for what follows a study's name in its id."""
SPACE = "search"
"""Key in a plan that says how a search chooses settings; longer keys with this prefix describe its space."""

LATER = {"budget": "device", "tradeoff": "none", "pack": None, "share": None}
"""Options of a search that did not exist when searches began to have conditions, with their values before they existed."""


def new_id(name: str) -> str:
    """Returns the id of a new study called `name`. It holds the time in UTC, so that any machine can find the newest id."""
    # The random suffix keeps two studies apart that start in the same second.
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def newest_id(storage: str, name: str) -> str:
    """Returns the id of the newest study called `name` that Ray can resume.

    Args:
        storage: folder of Ray's results of all studies, by path or URL.
        name: as for `new_id`.

    Raises:
        ValueError: there is no such study.
    """
    return next(_resumable_ids(storage, name))


def idle_id(runs: str, name: str) -> str:
    """Returns the id of the newest study called `name` that no process runs, of those that have not ended if there are any.

    So drivers of one search, which have one name, are resumed one after the other. If all are being run, it is the newest.

    Args:
        runs: folder of results, by path or URL.
        name: as for `new_id`.

    Raises:
        ValueError: there is no such study.
    """
    found = list(_resumable_ids(inside(runs, "ray"), name))
    places = {study_id: open_folder(inside(runs, f"studies/{study_id}")) for study_id in found}
    idle = [study_id for study_id in found if not is_held(places[study_id])]
    unended = [study_id for study_id in idle if TABLE not in places[study_id].entries()]
    return [*unended, *idle, *found][0]


def _resumable_ids(storage: str, name: str) -> Iterator[str]:
    """Yields the ids of the studies of a name that Ray can resume, the newest first; raises ValueError if there is none."""
    from ray import tune  # takes seconds, and commands that only read a study's table need no Ray

    folder = open_folder(storage)
    identity = re.compile(re.escape(name) + STAMP)
    found = [study_id for study_id in folder.entries() if identity.fullmatch(study_id)]
    resumable = (study_id for study_id in reversed(found) if tune.Tuner.can_restore(inside(storage, study_id)))
    newest = next(resumable, None)
    if newest is None:
        raise ValueError(f"no study named {name!r} to resume in {folder.name}; start one without --resume")
    yield newest
    yield from resumable


def newest_with(storage: str, name: str, file: str) -> tuple[str, Folder] | None:
    """Returns id and folder of the newest study of a name, or of the study with an id, that holds a file; None without one.

    Args:
        storage: folder of the studies' own folders, by path or URL.
        name: name or id of a study.
        file: name of the file.
    """
    root = open_folder(storage)
    identity = re.compile(f"{re.escape(name)}({STAMP})?")
    for found in reversed(root.entries()):
        if identity.fullmatch(found):
            place = open_folder(inside(root.location, found))
            if file in place.entries():
                return found, place
    return None


def write_plan(plan: Mapping[str, Any], place: Folder) -> None:
    """Writes the plan of a new study, for `check_same_study`."""
    place.write(PLAN, json.dumps(plan, indent=1).encode())


def read_plan(place: Folder) -> dict[str, Any]:
    """Returns the plan of a study; empty if the study began before plans were written."""
    try:
        return renamed(json.loads(place.read(PLAN)))
    except FileNotFoundError:
        return {}


def check_same_study(study_id: str, plan: Mapping[str, Any], place: Folder) -> None:
    """Refuses to resume a study with other settings, because Ray would continue the trials that it has saved.

    A search may have more trials than it was started with. A setting that did not exist when the study began counts as having
    its current default. The search space is not compared for a study that began before searches had conditions: Ray continues
    with the space that it has saved.

    Raises:
        ValueError: the study was started with another plan; the message names the differences.
    """
    begun = read_plan(place)
    if not begun:
        return
    defaults = flatten(Config())
    begun = defaults | {name: plan[name] for name in ("data digest", "workers")} | LATER | begun
    compared = json.loads(json.dumps(plan))
    if compared.get(TRIALS, 0) > begun.get(TRIALS, math.inf):
        compared[TRIALS] = begun[TRIALS]  # a study may be given further trials
    if SPACE not in begun:
        compared = {name: value for name, value in compared.items() if not name.startswith(SPACE)}
    changes = differences(compared, begun)
    if changes:
        flags = [
            shlex.join(_flag(name, begun[name]))
            for name in defaults
            if name not in MAY_DIFFER and begun[name] != compared[name]
        ]
        raise ValueError(
            f"--resume would continue {study_id}, which is another study ({changes}); give its flags"
            f"{' (' + ' '.join(flags) + ')' if flags else ''}, or start one without --resume. Studies with different --name are "
            "resumed separately."
        )


def _flag(name: str, value: Any) -> list[str]:
    """Returns a setting as words of a command line: one for a switch, several for a tuple."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        group, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{group}{dot}no-{last}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]
