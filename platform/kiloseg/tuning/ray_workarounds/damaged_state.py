"""Refuses to resume a study whose newest state is damaged, missing or from the future, and names the file.

Seen on Ray 2.60: `Tuner.restore` treats a state that it cannot read as missing, and starts the study again with a single
trial. It finds the newest state by the time in the files' names.

It can go when Tune itself refuses the files that tests/tuning/test_study_state.py::test_damaged_state_is_refused_by_name
damages and those that test_study_without_a_state_is_not_begun_anew_by_a_resumption removes.
"""

from __future__ import annotations

import fnmatch
import json
import pickletools
import time

from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder
from kiloseg.tuning.ray_workarounds.state_files import PICKLED, STATE


def check_state(study: str) -> None:
    """Rejects a state that Tune cannot resume from.

    Args:
        study: the folder in which Ray saves the study's state, by path or URL.

    Raises:
        DataError: there is no state yet; the newest cannot be read (the message names the file); or its time is in the future
            by this machine's clock, so that the state that is written next would not be the newest.
    """
    folder = open_folder(study)
    entries = folder.entries()
    states = fnmatch.filter(entries, STATE)
    if not states:
        raise DataError(
            f"{folder.name} has no state to continue from: its study ended right after its start, before Ray saved a state; "
            "start it again without --resume"
        )
    for pattern in (STATE, *PICKLED):
        names = fnmatch.filter(entries, pattern)
        try:
            for name in names[-1:]:
                _check_whole(folder.read(name), pickled=pattern != STATE)
        except ValueError as error:
            remedy = (
                "move it away to continue from the state before it" if len(names) > 1 else "a new study must be started"
            )
            raise DataError(
                f"{folder.at(names[-1])} is damaged ({error}); its trials still exist, but {remedy}"
            ) from error
    newest = states[-1].removeprefix(STATE.partition("*")[0]).removesuffix(".json")
    now = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime())
    if newest >= now:
        raise DataError(
            f"{folder.at(states[-1])} is dated {newest} (UTC), which is in the future on this machine ({now}): the next state "
            "would be taken for an older one; correct this machine's clock, or wait until then"
        )


def _check_whole(content: bytes, *, pickled: bool) -> None:
    """Raises ValueError if the content is truncated. Pickles are parsed but not executed."""
    if not pickled:
        json.loads(content)
        return
    for _ in pickletools.genops(content):
        pass
