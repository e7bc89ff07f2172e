"""Writes a search's trials to a file that optuna-dashboard opens and that another search can start from."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from kiloseg.storage.commands import shell
from kiloseg.tuning.shared_trials import TRIAL

JOURNAL = "optuna.journal"
"""Name of the file in a study's folder."""


def write_journal(study: optuna.Study, path: Path, name: str) -> None:
    """Writes the ended trials of a study, with settings that did not fit the budget, in place of an earlier file.

    Settings that other drivers of a shared study had tried first are left out: they are failed trials without a trial's id.

    Args:
        study: the study as Optuna knows it.
        path: the file, on this machine.
        name: the name of the study in the file.
    """
    path.unlink(missing_ok=True)
    copy = optuna.create_study(
        study_name=name, storage=JournalStorage(JournalFileBackend(str(path))), directions=study.directions
    )
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    copy.add_trials([trial for trial in ended if trial.state != TrialState.FAIL or TRIAL in trial.user_attrs])


def read_journal(path: Path) -> optuna.Study:
    """Returns the study in a file that `write_journal` wrote."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def dashboard_command(folder: Path) -> str:
    """Returns the command that opens optuna-dashboard on the study of a folder; it comes with kiloseg[dashboard]."""
    return shell("optuna-dashboard", folder / JOURNAL)
