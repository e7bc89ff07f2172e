"""Runs a grid: trials at given settings, none of which is stopped early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import BasicVariantGenerator

from kiloseg.config import Config
from kiloseg.overrides import flatten, override
from kiloseg.tuning.study import RunningStudy, Study, StudyResult, running_study
from kiloseg.tuning.trial_row import TrialRow
from kiloseg.tuning.trials import run_trials


@contextlib.contextmanager
def run_grid(
    study: Study,
    base: Config,
    points: Sequence[Mapping[str, Any]],
    *,
    script: str,
    tags: Mapping[str, str],
) -> Iterator[StudyResult]:
    """Runs a trial at each of `points`, none stopped early; the result is the value of a `with` block.

    Files and runs that are added to the result inside the block belong to the study. The study ends when the block ends, even
    by an error.

    Args:
        study: how trials are run.
        base: the run that trials vary; paths must be absolute.
        points: settings of each trial by dotted names; if there are none, the study has a run in MLflow but no trials.
        script: name of the script that started the study, for MLflow.
        tags: tags of the study's run and of every trial's, for MLflow.

    Raises:
        ValueError: a name is no setting, or a value is out of its range, or as `kiloseg.tuning.search.search`.
        ConnectionError: as `kiloseg.tuning.search.search`.
        StudyRunningError: as `kiloseg.tuning.search.search`.
    """
    complete = complete_points(base, points)
    plan = {"trials": len(points), **tags} | {
        f"trial {number}: {name}": value for number, values in enumerate(complete, 1) for name, value in values.items()
    }

    with running_study(study, base, plan, script=script, tags=tags) as running:
        rows = []
        if points:
            rows = run_points(running, study, base, complete, tags=tags)
        yield running.result(rows)


def complete_points(base: Config, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the points with a value for every name that any of them has, as Tune needs it.

    Raises:
        ValueError: a name is no setting, or a value is out of its range.
    """
    names = dict.fromkeys(name for values in points for name in values)
    return [{name: flatten(override(base, values))[name] for name in names} for values in points]


def run_points(
    running: RunningStudy, study: Study, base: Config, points: Sequence[Mapping[str, Any]], *, tags: Mapping[str, str]
) -> list[TrialRow]:
    """Runs a trial at each of `points`, which all have the same names, as trials of a running study."""

    def searcher(at_once: int) -> BasicVariantGenerator:
        # Tune does not pass its own limit on to a generator that we construct.
        return BasicVariantGenerator(points_to_evaluate=[dict(values) for values in points], max_concurrent=at_once)

    space = dict.fromkeys(points[0])
    return run_trials(running, study, base, space, len(points), searcher, FIFOScheduler(), tags=tags)
