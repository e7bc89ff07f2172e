"""Runs a grid: trials at given settings, none of which is stopped early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import BasicVariantGenerator

from kiloseg.config import Config
from kiloseg.overrides import flatten, override
from kiloseg.tuning.study import Study, StudyResult, running_study
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
    for values in points:
        override(base, values)
    # Tune needs a value for every name of its space at every point.
    names = dict.fromkeys(name for values in points for name in values)
    defaults = flatten(base)
    complete = [{name: values.get(name, defaults[name]) for name in names} for values in points]
    plan = {"trials": len(points), **tags} | {
        f"trial {number}: {name}": value for number, values in enumerate(complete, 1) for name, value in values.items()
    }

    def searcher(at_once: int) -> BasicVariantGenerator:
        # Tune does not pass its own limit on to a generator that we construct.
        return BasicVariantGenerator(points_to_evaluate=complete, max_concurrent=at_once)

    with running_study(study, base, plan, script=script, tags=tags) as running:
        rows = []
        if points:
            space = dict.fromkeys(names)
            rows = run_trials(running, study, base, space, len(points), searcher, FIFOScheduler(), tags=tags)
        yield running.result(rows)
