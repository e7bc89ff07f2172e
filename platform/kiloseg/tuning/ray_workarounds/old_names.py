"""Resumes studies that were started with earlier versions of this package, or refuses them.

Seen on Ray 2.60: Tune pickles a study's callbacks, searcher and trials with the names of our modules and classes. Once one of
them has moved, Tune prints a traceback, treats the state as missing, and starts the study again with a single trial.

It can go when `OLD_NAMES` is empty, or when Tune no longer pickles the classes that we pass to it:
tests/tuning/test_old_studies.py resumes a study with the old names.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from types import ModuleType

from ray import cloudpickle

from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder
from kiloseg.tuning.ray_workarounds.state_files import STATE, newest

OLD_NAMES = {
    # Names from before the package was split into subpackages, 2026-11-28.
    "kiloseg.progress.Progress": "kiloseg.tuning.callbacks.console.Progress",
    "kiloseg.recorder._of_this_process": "kiloseg.tuning.callbacks.recorder._of_this_process",
    "kiloseg.resumption.Retries": "kiloseg.tuning.ray_workarounds.retries.Retries",
    "kiloseg.resumption.Rungs": "kiloseg.tuning.ray_workarounds.asha_rungs.Rungs",
    "kiloseg.search._Searcher": "kiloseg.tuning.ray_workarounds.searcher.ResumableOptunaSearch",
    "kiloseg.search._trial_name": "kiloseg.tuning.trials.trial_name",
    "kiloseg.staging.Staging": "kiloseg.tuning.ray_workarounds.copied_files.CopiedFiles",
    "kiloseg.storage._WaitedFor": "kiloseg.tuning.ray_workarounds.waiting_for_copies.WaitingSyncer",
    "kiloseg.storage._WholeFiles": "kiloseg.tuning.ray_workarounds.whole_files.WholeFiles",
}
"""Maps names in pickles of earlier versions to the current names of the same objects."""


@contextlib.contextmanager
def old_names() -> Iterator[None]:
    """Makes pickles of earlier versions readable inside the `with` block."""
    with contextlib.ExitStack() as stack:
        for old, new in OLD_NAMES.items():
            module, _, name = new.rpartition(".")
            _alias(old, getattr(importlib.import_module(module), name), stack)
        yield


def check_readable(study: str, checkpoints: str) -> None:
    """Rejects a state whose pickles use names that no longer exist, by loading them as Tune is about to do.

    Args:
        study: the folder in which Ray saves the study's state, by path or URL.
        checkpoints: the folder of its checkpoints, for the message.

    Raises:
        DataError: a pickle cannot be loaded; the message says which parts of the study can still be used.
    """
    folder = open_folder(study)
    names = folder.entries()
    state = newest(names, STATE)
    assert state is not None, "`check_state` refuses a study without a state"
    read = [state, *(name for name in names if name == "tuner.pkl")]
    try:
        for name in read:
            content = folder.read(name)
            # Ray's JSON holds pickles as hexadecimal text inside strings of JSON.
            inner = [] if name == "tuner.pkl" else re.findall(rb'"(80[0-9a-f]{20,})\\?"', content)
            for pickled in [bytes.fromhex(text.decode()) for text in inner] or [content]:
                cloudpickle.loads(pickled)
    except (AttributeError, ImportError) as error:
        raise DataError(
            f"{folder.at(name)} was written by another version of kiloseg or Ray and cannot be read by this one ({error}); "
            "resume the study with that version, or start a new one without --resume. "
            f"Its checkpoints in {checkpoints} can still be used, and so can its numbers in MLflow."
        ) from error


def _alias(old: str, value: object, stack: contextlib.ExitStack) -> None:
    module, _, name = old.rpartition(".")
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError:
        holder = sys.modules[module] = ModuleType(module, "Names of an earlier version.")
        stack.callback(sys.modules.pop, module)
    setattr(holder, name, value)
    stack.callback(delattr, holder, name)
