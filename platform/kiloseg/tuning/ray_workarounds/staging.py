"""The folder of a study's driver from which Ray copies to the study's storage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial


class Staging(tune.Callback):
    """Takes from the driver's folder what trials that have ended left there, as soon as the study's storage has it.

    Ray copies the whole folder each time it writes down what a study is resumed from: without this some files for every trial
    there ever was, each a request where the storage is an object store.
    """

    def __init__(self) -> None:
        self.ended: list[Trial] | None = None
        """Whose files may still be there; None until the study runs."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """A study that is resumed has a folder again for each of its trials."""
        if self.ended is None:
            self.ended = [trial for trial in trials if trial.is_finished()]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """It writes nothing more."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """As well."""
        self._end(trial)

    def _end(self, trial: Trial) -> None:
        if self.ended is not None:
            self.ended.append(trial)

    def get_state(self) -> None:
        """Removes them, and has no state.

        Ray asks for it right before a copy. What ended first is copied first: if that is not there yet, or the storage does not
        answer, the others need not be asked for.
        """
        while self.ended and _cleared(self.ended[0]):
            self.ended.pop(0)


def _cleared(trial: Trial) -> bool:
    """Whether nothing of the trial is left in the driver's folder."""
    folder = Path(trial.local_path)
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [f"{trial.storage.trial_fs_path}/{path.relative_to(folder).as_posix()}" for path in files]
    try:
        infos = trial.storage.storage_filesystem.get_file_info(kept)
        copied = all(info.size == path.stat().st_size for info, path in zip(infos, files, strict=True))
    except OSError:  # of the storage, say; Ray tells of it when it cannot copy
        return False
    if copied:
        shutil.rmtree(folder, ignore_errors=True)
    return copied
