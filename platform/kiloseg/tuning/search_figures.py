"""Draws what a search says about its settings with Optuna: which ones matter, and how mIoU depends on them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEAST = 4
"""Fewest trials with a result from which importances and curves are drawn."""
PAIR = ("model.embed_dim", "loss.negatives.count")
"""Settings whose contours are drawn if a search varies both."""
TARGET = "validation mIoU"


class Section(NamedTuple):
    """A figure of the page of a search, with its heading and a sentence that says how to read it."""

    heading: str
    sentence: str
    figure: go.Figure | None = None


def sections(study: optuna.Study) -> list[Section]:
    """Returns the figures that Optuna draws of a search: importances, slices, contours, parallel coordinates and history.

    Args:
        study: the study as Optuna knows it, with mIoU as its first objective.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = _varied(complete)
    if len(complete) < LEAST or not varied:
        sentence = (
            f"This takes at least {LEAST} trials with a result, in which a setting varies; there are {len(complete)}."
        )
        return [Section("Which settings matter", sentence)]
    show = optuna.visualization
    importances = importance(study, varied)
    with _without_notes():
        found = [
            Section(
                "Which settings matter",
                "The share of each setting in whether a trial is among the best by mIoU (PED-ANOVA), where it applies. "
                "That of a setting which few trials have is rough.",
                show.plot_param_importances(
                    study, evaluator=PedAnovaImportanceEvaluator(), params=varied, target=_loss, target_name=TARGET
                ),
            ),
            Section(
                "mIoU against each setting",
                "A dot per trial; later trials are darker.",
                show.plot_slice(study, params=varied, target=_miou, target_name=TARGET),
            ),
        ]
        found += [
            Section(
                f"mIoU against {first} and {second}",
                "Interpolated between the trials, which are dots.",
                show.plot_contour(study, params=[first, second], target=_miou, target_name=TARGET),
            )
            for first, second in _pairs(complete, list(importances))
        ]
        found += [
            Section(
                "All settings of each trial",
                "A line per trial from axis to axis, colored by mIoU.",
                show.plot_parallel_coordinate(study, params=varied, target=_miou, target_name=TARGET),
            ),
            Section(
                "mIoU in the order of the trials",
                "The line is the best so far.",
                show.plot_optimization_history(study, target=_miou, target_name=TARGET),
            ),
        ]
    return found


def importance(study: optuna.Study, params: list[str]) -> dict[str, float]:
    """Returns the importance of settings for mIoU by PED-ANOVA, in decreasing order, with a sum of 1.

    Source: https://arxiv.org/abs/2304.10255.
    """
    with _without_notes():
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=params, target=_loss)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Silences what Optuna says about every use of these functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # It reminds of the sign of a target, which `_loss` has.
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes the importances")
        # The page says this of all searches: in a short one, few trials have negatives that are counted.
        warnings.filterwarnings("ignore", message="Some regimes for parameter")
        yield


def _miou(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _loss(trial: FrozenTrial) -> float:
    # PED-ANOVA takes small values of a target for good ones.
    return -_miou(trial)


def _varied(trials: list[FrozenTrial]) -> list[str]:
    """Returns the settings that have several values."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return [name for name in names if len({trial.params[name] for trial in trials if name in trial.params}) > 1]


def _pairs(trials: list[FrozenTrial], ranked: list[str]) -> list[tuple[str, str]]:
    """Returns the pairs of settings whose contours are drawn: `PAIR`, and the two that matter most."""
    wanted = {frozenset(pair): pair for pair in (PAIR, tuple(ranked[:2])) if len(pair) == 2}
    return [
        (pair[0], pair[1])
        for pair in wanted.values()
        if all(name in ranked for name in pair) and _together(trials, pair) >= LEAST
    ]


def _together(trials: list[FrozenTrial], names: tuple[str, ...]) -> int:
    return sum(all(name in trial.params for name in names) for trial in trials)
