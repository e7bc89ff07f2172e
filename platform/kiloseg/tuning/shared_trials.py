"""The trials of a shared study: what tells them apart, which of them count, and how they begin and end."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from kiloseg.tuning.trial_row import TrialRow

TRIAL = "trial"
"""Name of the attribute of a trial in Optuna that holds the trial's id, also in a driver's own study."""
STUDY = "study"
"""Name of the attribute that holds the id of the driver's study. In a driver's own study only trials of others have it."""
FIRST = "first"
"""Name of the attribute of a trial whose settings were given, as JSON; missing if the sampler chose them."""
CLAIM = "claim"
"""Name of the attribute that tells the trials of a shared study apart; a trial that is begun again has another one."""
WITHDRAWN = "withdrawn"
"""Name of the attribute of a trial that was never launched, and does not count."""
PEAKS = ("peak_memory_gib", "val/peak_memory_gib")
"""Names of the attributes that hold an ended trial's peaks, as in MLflow."""


def entry_of(
    trial_id: str,
    study_id: str,
    own: FrozenTrial,
    state: TrialState,
    attributes: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """Returns a trial of a driver's own study as one of the shared study.

    Args:
        trial_id: the trial's id.
        study_id: id of the driver's study.
        own: the trial in the driver's own study.
        state: its state in the shared study.
        attributes: further attributes.
    """
    identity = {TRIAL: trial_id, STUDY: study_id, CLAIM: secrets.token_hex(8)}
    return optuna.trial.create_trial(
        state=state,
        params=own.params,
        distributions=own.distributions,
        values=own.values if state == TrialState.COMPLETE else None,
        user_attrs={**own.user_attrs, **identity, **(attributes or {})},
        constraints=own.constraints,
    )


def counting_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns those of a shared study's trials that count, in their order, also if drivers are about to withdraw others."""
    kept, given = [], set()
    for trial in trials:
        first = trial.user_attrs.get(FIRST)
        if WITHDRAWN not in trial.user_attrs and first not in given:
            given |= set() if first is None else {first}
            kept.append(trial)
    return kept


def peaks_of(row: TrialRow) -> dict[str, float]:
    """Returns the peaks of memory of a trial's row as attributes of a trial in Optuna."""
    peaks = {PEAKS[0]: row.peak_memory_gib, PEAKS[1]: row.val_peak_memory_gib}
    return {name: value for name, value in peaks.items() if value is not None}


def end_trial(
    study: optuna.Study,
    trial: FrozenTrial,
    values: Sequence[float] | None,
    state: TrialState,
    *,
    constraints: Mapping[str, float] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Ends a running trial of a study, which nothing can be added to afterwards."""
    running = Trial(study, trial._trial_id)
    for name, value in (constraints or {}).items():
        if name not in trial.constraints:
            running.set_constraint(name, value)
    for name, attribute in (attributes or {}).items():
        running.set_user_attr(name, attribute)
    study.tell(trial.number, list(values) if state == TrialState.COMPLETE and values else None, state=state)
