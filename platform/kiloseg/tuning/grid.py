"""A grid: trials at given settings, all run to their end."""

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
    """Runs a trial at each of `points`, all to their end; the result is the value of a `with` block.

    What is added to the result inside the block belongs to the study. At its end the study is over, however the block ends.

    Args:
        study: how trials are run.
        base: the run that trials vary; paths must be absolute.
        points: settings of each trial by dotted names; without any there is a study's run, and nothing in it.
        script: what started it, for MLflow.
        tags: tags of the study's run and of every trial's, for MLflow.

    Raises:
        ValueError: a name that is no setting or a value it cannot have, or as `kiloseg.tuning.search.search`.
        ConnectionError: as `kiloseg.tuning.search.search`.
        StudyRunningError: as `kiloseg.tuning.search.search`.
    """
    for values in points:
        override(base, values)
    # Tune wants a value for every name of its space at every point, and the names in its space.
    names = dict.fromkeys(name for values in points for name in values)
    defaults = flatten(base)
    complete = [{name: values.get(name, defaults[name]) for name in names} for values in points]
    plan = {"trials": len(points), **tags} | {
        f"trial {number}: {name}": value for number, values in enumerate(complete, 1) for name, value in values.items()
    }

    def searcher(at_once: int) -> BasicVariantGenerator:
        # Tune's own limit does not reach a generator that it is given.
        return BasicVariantGenerator(points_to_evaluate=complete, max_concurrent=at_once)

    with running_study(study, base, plan, script=script, tags=tags) as running:
        rows = []
        if points:
            space = dict.fromkeys(names)
            rows = run_trials(running, study, base, space, len(points), searcher, FIFOScheduler(), tags=tags)
        yield running.result(rows)
