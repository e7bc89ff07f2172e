"""Exchanges trials between several drivers that search together, through a study of Optuna that all of them open.

Each driver has a study of its own, with its folder, its lease, Ray's state and its runs in MLflow, so that it can be interrupted
and resumed by itself. In the shared study every trial of every driver is once: as running from the moment it is chosen, so that
no other driver chooses the same, and with its values when it has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from kiloseg.overrides import differences
from kiloseg.tuning.objectives import Objective, numbers_of, values_of
from kiloseg.tuning.shared_storage import SharedPlace, open_storage
from kiloseg.tuning.shared_trials import (
    CLAIM,
    PEAKS,
    STUDY,
    TRIAL,
    WITHDRAWN,
    counting_trials,
    end_trial,
    entry_of,
    peaks_of,
)
from kiloseg.tuning.trial_row import TrialRow

logger = logging.getLogger(__name__)

PLAN = "plan of "
"""Start of the names of the shared study's attributes that hold what each driver searches; its study's id follows."""

Claim = Literal["granted", "taken", "full"]

_current: SharedStudy | None = None
"""The shared study of this process's search."""


class SharedStudy:
    """A study of Optuna that several drivers search together, as one of them sees it.

    If the storage fails while trials run, the search goes on with what it knows, and `settle` sends what is missing.

    Args:
        place: where it is.
        objectives: what trials are compared by.
        num_trials: number of trials of all drivers together, after which this driver begins no further ones.

    Raises:
        DataError: as `open_storage`; also ValueError and ConnectionError.
    """

    def __init__(self, place: SharedPlace, objectives: Sequence[Objective], num_trials: int) -> None:
        global _current
        self.place = place
        self.objectives = tuple(objectives)
        self.num_trials = num_trials
        self.study_id = ""
        """Id of the study of this process, which is empty until it joins."""
        self._failing = False
        self.study = optuna.create_study(
            study_name=place.name,
            storage=open_storage(place),
            directions=["maximize" if each.mode == "max" else "minimize" for each in objectives],
            load_if_exists=True,
        )
        _current = self

    def __reduce__(self) -> tuple[Callable[[], SharedStudy | None], tuple[()]]:
        """Unpickles as the shared study of the current process, because Tune saves the searcher that holds it."""
        return _of_this_process, ()

    def trials(self) -> list[FrozenTrial]:
        """Returns the trials that count, of all drivers, in the order in which they were chosen.

        Two drivers may choose the same given settings at the same moment; every driver counts the earlier trial alone.
        """
        return counting_trials(self.study.get_trials(deepcopy=False))

    def num_free(self) -> int:
        """Returns how many further trials there may be, of all drivers together."""
        return max(self.num_trials - len(self.trials()), 0)

    def has_room(self) -> bool:
        """Returns whether there may be a further trial, as far as the storage can tell."""
        with self._tolerant():
            return self.num_free() > 0
        return True

    def check(self, plan: Mapping[str, Any], study_id: str = "") -> None:
        """Checks that the other drivers search the same.

        Args:
            plan: what this driver searches, by names, in values that JSON supports.
            study_id: id of this driver's study, whose own plan is not compared.

        Raises:
            ValueError: another driver has another space, other data, other settings or other objectives.
        """
        mine = json.loads(json.dumps(plan))
        for name, theirs in self.study.user_attrs.items():
            if not name.startswith(PLAN) or name == PLAN + study_id or theirs is None:
                continue
            changes = differences(dict.fromkeys(theirs) | mine, theirs)
            if changes:
                raise ValueError(
                    f"--share: study {name.removeprefix(PLAN)} searches something else in {self.place} ({changes}); give the same "
                    "flags, or another name to --share"
                )

    def join(self, study_id: str, plan: Mapping[str, Any]) -> None:
        """Enters a study as one of the drivers' studies. Raises the same errors as `check`."""
        self.study_id = study_id
        if self.study.user_attrs.get(PLAN + study_id) is None:
            self.study.set_user_attr(PLAN + study_id, dict(plan))
        try:
            # Only now would two drivers that begin at the same moment see each other.
            self.check(plan, study_id)
        except ValueError:
            self.study.set_user_attr(PLAN + study_id, None)
            raise

    def pull(self, own: optuna.Study) -> None:
        """Adds the trials of the other drivers to a driver's own study: those that have ended, and those that run.

        Samplers keep away from the settings of those that run (`constant_liar`).
        """
        with self._tolerant():
            held = {
                trial.user_attrs[CLAIM]: trial for trial in own.get_trials(deepcopy=False) if CLAIM in trial.user_attrs
            }
            trials = self.study.get_trials(deepcopy=False)
            counting = {trial.number for trial in counting_trials(trials)}
            for trial in trials:
                if trial.user_attrs.get(STUDY) in (None, self.study_id):
                    continue
                mirror = held.get(trial.user_attrs[CLAIM])
                if mirror is None:
                    if trial.number in counting:
                        own.add_trial(trial)
                elif not mirror.state.is_finished():
                    if trial.number not in counting:
                        own.tell(mirror.number, state=TrialState.FAIL)
                    elif trial.state.is_finished():
                        end_trial(own, mirror, trial.values, trial.state, constraints=trial.constraints)

    def claim(self, trial_id: str, chosen: FrozenTrial) -> Claim:
        """Enters settings as a trial that this driver begins.

        Args:
            trial_id: the trial's id.
            chosen: the trial in the driver's own study.

        Returns:
            granted: the trial may begin. taken: another driver has tried the same given settings, or does so. full: all
            drivers together have enough trials.
        """
        with self._tolerant():
            entry = entry_of(trial_id, self.study_id, chosen, TrialState.RUNNING)
            self.study.add_trial(entry)
            trials = self.study.get_trials(deepcopy=False)
            mine = next(trial for trial in trials if trial.user_attrs.get(CLAIM) == entry.user_attrs[CLAIM])
            numbers = [trial.number for trial in counting_trials(trials)]
            if mine.number in numbers[: self.num_trials]:
                return "granted"
            self._withdraw(mine)
            return "full" if mine.number in numbers else "taken"
        return "granted"

    def tell(self, trial_id: str, ended: FrozenTrial, numbers: Mapping[str, Any] | None) -> None:
        """Enters the end of one of this driver's trials.

        Args:
            trial_id: the trial's id.
            ended: the trial in the driver's own study; one that Optuna could not end, such as by a mIoU of NaN, has failed.
            numbers: numbers of its result by their names in MLflow, of which the peaks of memory are entered.
        """
        with self._tolerant():
            claimed = self._own().get(trial_id)
            if claimed is not None and not claimed.state.is_finished():
                state = ended.state if ended.state.is_finished() else TrialState.FAIL
                peaks = {name: value for name in PEAKS if (value := (numbers or {}).get(name)) is not None}
                end_trial(self.study, claimed, ended.values, state, constraints=ended.constraints, attributes=peaks)

    def settle(self, rows: Sequence[TrialRow], own: optuna.Study | None) -> None:
        """Enters what an interruption, or a storage that was away, has left out, and withdraws trials that never began.

        Args:
            rows: all trials of this driver; none of them runs any more.
            own: the driver's own study, which then has the other drivers' newest trials too; None if there is none.
        """
        with self._tolerant():
            began = {row.trial: row for row in rows}
            claimed = self._own()
            for trial_id, trial in claimed.items():
                row = began.get(trial_id)
                if trial.state.is_finished():
                    continue
                if row is None:
                    self._withdraw(trial)
                    continue
                values = values_of(numbers_of(row) | {"outcome": row.outcome}, self.objectives)
                state = TrialState.FAIL if values is None else TrialState.COMPLETE
                end_trial(self.study, trial, values, state, attributes=peaks_of(row))
            for trial in () if own is None else own.get_trials(deepcopy=False):
                name = str(trial.user_attrs.get(TRIAL))
                if STUDY not in trial.user_attrs and name in began.keys() - claimed and trial.state.is_finished():
                    self.study.add_trial(entry_of(name, self.study_id, trial, trial.state, peaks_of(began[name])))
        if own is not None:
            self.pull(own)

    def _own(self) -> dict[str, FrozenTrial]:
        """Returns this driver's trials that count, by their ids."""
        trials = self.study.get_trials(deepcopy=False)
        return {
            trial.user_attrs[TRIAL]: trial
            for trial in trials
            if trial.user_attrs.get(STUDY) == self.study_id and WITHDRAWN not in trial.user_attrs
        }

    def _withdraw(self, trial: FrozenTrial) -> None:
        end_trial(self.study, trial, None, TrialState.FAIL, attributes={WITHDRAWN: True})

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Turns an error of the storage into a warning, one for errors in a row."""
        try:
            yield
        except (OSError, json.JSONDecodeError, SQLAlchemyError, StorageInternalError) as error:
            if not self._failing:
                logger.warning(
                    "the shared study %s does not answer (%s); the search goes on with the trials that it knows, and enters its "
                    "own at the end",
                    self.place,
                    str(error).partition("\n")[0],
                )
            self._failing = True
        else:
            self._failing = False


def _of_this_process() -> SharedStudy | None:
    return _current
