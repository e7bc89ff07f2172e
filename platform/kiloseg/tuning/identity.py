"""Which study is which: the name of a new one, the newest of a name, and whether it is the one that is asked for."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from ray import tune

from kiloseg.config import Config
from kiloseg.overrides import MAY_DIFFER, differences, flatten
from kiloseg.storage.filesystems import Folder, inside, open_folder

PLAN = "study.json"
"""File in a study's folder that says what the study consists of."""
SPACE = "search"
"""Name in a plan for how a search chooses; names that begin so describe its space."""


def new_id(name: str) -> str:
    """A name for a new study of the kind `name`, by the time in UTC: the newest is found by its name on any machine."""
    # Two studies of one name may be started in the same second.
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def newest_id(storage: str, name: str) -> str:
    """The newest study of the kind `name` that Ray can resume.

    Args:
        storage: folder of Ray's results of all studies, by path or URL.
        name: as for `new_id`.

    Raises:
        ValueError: there is none.
    """
    folder = open_folder(storage)
    identity = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-[0-9a-f]{4})?")
    for found in reversed(folder.entries()):
        if identity.fullmatch(found) and tune.Tuner.can_restore(inside(storage, found)):
            return found
    raise ValueError(f"no study of the name {name!r} to resume in {folder.name}; start one without --resume")


def write_plan(plan: Mapping[str, Any], place: Folder) -> None:
    """Writes down what a new study consists of, for `check_same_study`."""
    place.write(PLAN, json.dumps(plan, indent=1).encode())


def check_same_study(study_id: str, plan: Mapping[str, Any], place: Folder) -> None:
    """Refuses to resume a study with other settings: Ray would go on with the trials that it knows.

    A setting that there was not when the study began had the value that is its default now. What a study searches in is not
    compared where it began before searches had conditions: Ray goes on with the space that it keeps.

    Raises:
        ValueError: the study was begun with another plan; the message names what differs.
    """
    try:
        begun = json.loads(place.read(PLAN))
    except FileNotFoundError:  # of a study that began before there was such a file
        return
    defaults = flatten(Config())
    begun = defaults | {name: plan[name] for name in ("data digest", "workers")} | begun
    compared = json.loads(json.dumps(plan))
    if SPACE not in begun:
        compared = {name: value for name, value in compared.items() if not name.startswith(SPACE)}
    changes = differences(compared, begun)
    if changes:
        flags = [
            f"--{name.replace('_', '-')} {begun[name]}"
            for name in defaults
            if name not in MAY_DIFFER and begun[name] != compared[name]
        ]
        raise ValueError(
            f"--resume would go on with {study_id}, which is another study ({changes}); give its flags"
            f"{' (' + ' '.join(flags) + ')' if flags else ''}, or start one without --resume. Studies of different --name are "
            "resumed apart."
        )
