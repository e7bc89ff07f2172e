"""Removes the files of ended trials from the driver's folder once the study's storage has them.

Seen on Ray 2.60: Tune copies the driver's whole folder each time it saves a study's state, with several files for every trial
so far; on an object store, each file is a request.

It can go when tests/tuning/test_staging.py::test_what_the_storage_has_goes_and_results_stay passes without `CopiedFiles`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial


class CopiedFiles(tune.Callback):
    """Removes the files of ended trials from the driver's folder as soon as the study's storage has them."""

    def __init__(self) -> None:
        self.ended: list[Trial] | None = None
        """Ended trials whose files may still be in the driver's folder; None until the study runs."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Records the ended trials of a resumed study, each of which has a folder again."""
        if self.ended is None:
            self.ended = [trial for trial in trials if trial.is_finished()]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records a trial that will write nothing more."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records a trial that will write nothing more."""
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        if self.ended is not None:
            self.ended.append(trial)

    def get_state(self) -> None:
        """Removes the files of ended trials that the storage has; there is no state to save.

        Ray calls this right before a copy. Trials are copied in the order in which they ended: if the first is not in the
        storage yet, or the storage does not answer, there is no need to look for the others.
        """
        while self.ended and _cleared(self.ended[0]):
            self.ended.pop(0)


def _cleared(trial: Trial) -> bool:
    """Removes the trial's folder from the driver if the storage has its files; returns whether the storage has them."""
    folder = Path(trial.local_path)
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [f"{trial.storage.trial_fs_path}/{path.relative_to(folder).as_posix()}" for path in files]
    try:
        infos = trial.storage.storage_filesystem.get_file_info(kept)
        copied = all(info.size == path.stat().st_size for info, path in zip(infos, files, strict=True))
    except OSError:  # for example, the storage is unreachable; Ray reports that when it cannot copy
        return False
    if copied:
        shutil.rmtree(folder, ignore_errors=True)
    return copied
