"""How much training does the search save, against random search and against Ray Tune's searcher and scheduler used plainly?

    python datasets/glyphs.py --out DIR --num-classes 40
    kiloseg train --preset glyphs --data.path DIR --model.embed-dim 24 --trainer.steps 600 --trainer.output START
    python experiments/search_efficiency.py --data.path DIR --model.weights START          five seeds; some two hours of one core
    python experiments/search_efficiency.py --data.path DIR --model.weights START --seeds 0

All trials start from a network that knows the glyphs, and train a new last layer and class table: the search of somebody who
fine-tunes. So the mIoU of short trials says something about their settings; from pretrained weights of the backbone alone, they
would not have left the background behind. The start must have an embedding dimension that no trial has, or trials of that
dimension would start with its class table.

Methods, each with the same number of trials of the same length:

- random: settings drawn at random from the space of tune_embed_dim.py, every trial to its end;
- plain: OptunaSearch and ASHAScheduler with their defaults over a flat space, as Ray's documentation combines them;
- kiloseg: sampler, conditional space, first trials and early stopping of tune_embed_dim.py.

All run on Ray Tune, one trial at a time in one process that is kept, so that what is compared is training and not the start of
processes. Trial-seconds are processor time of that process while trials train and validate. The question is how many of them a
method needs to come to the best mIoU that random search has at its end. A method that never comes there has none in the table.
At the end the same is printed for the mean over seeds of the best mIoU so far, in which a lucky trial counts for less.

A seed and method that has a row is not run again. Expected: experiments/results/search_efficiency.csv and experiments/LOG.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
import ray
import tyro
from ray import tune
from ray.tune.callback import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.overrides import override
from kiloseg.presets import GLYPHS
from kiloseg.training.loop import train
from kiloseg.tuning.early_stopping import scheduler_of
from kiloseg.tuning.embedding_space import KINDS, embed_dims, embedding_space, known_trials
from kiloseg.tuning.ray_workarounds.environment import TUNE_VARIABLES
from kiloseg.tuning.ray_workarounds.quiet import QUIET_VARIABLES, hide_token_message
from kiloseg.tuning.reports import METRIC, STEP
from kiloseg.tuning.result_tables import append_row, read_rows, require_path
from kiloseg.tuning.search import Search
from kiloseg.tuning.searcher import BudgetedSearcher, sampler_of

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    *("seed", "method", "trials", "trial_seconds", "best_miou", "random_best_miou", "seconds_to_random_best"),
    *("search_seconds", "machine"),
)
CURVE_COLUMNS = ("seed", "method", "trial", "step", "miou", "trial_seconds")
SHORT = override(
    GLYPHS,
    {
        "data.val_samples": 48,
        "optimizer.warmup_steps": 5,
        "trainer.steps": 40,
        "trainer.validate_every": 10,
        "trainer.progress": False,
    },
)
"""Trials of 10 to 30 seconds on one core, with four validations on the way."""
SECONDS = "trial_seconds"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compares the search with random search and with Ray Tune used plainly."""

    run: Annotated[Config, tyro.conf.arg(name="")] = SHORT
    """The settings that all trials share."""
    trials: int = 40
    """The number of trials of every method."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """The seeds of samplers and trials; each is a comparison of its own."""
    methods: tuple[str, ...] = ("random", "plain", "kiloseg")
    """The methods; random must be among them or already have a row for every seed."""
    machine: str = "one core"
    """The machine it runs on, for the table."""
    results: Path = ROOT / "experiments" / "results" / "search_efficiency.csv"
    """The file of the table; the mIoU of every validation goes beside it, as NAME_curves.csv."""

    def __post_init__(self) -> None:
        unknown = set(self.methods) - {"random", "plain", "kiloseg"}
        if unknown:
            raise ValueError(f"--methods {' '.join(sorted(unknown))}: expected random, plain and kiloseg")
        if self.trials < 1:
            raise ValueError(f"--trials {self.trials}: expected 1 or more")


def run_trial(settings: dict[str, Any], *, base: Config) -> None:
    """Trains one trial in this process, and reports every validation to Tune with the processor time so far."""
    kind = settings.get("loss.negatives.kind", base.loss.negatives.kind)
    known = {name: value for name, value in settings.items() if kind != "all" or name != "loss.negatives.count"}
    if kind == "mixed":  # a flat space cannot say that mixed negatives are at least two
        known["loss.negatives.count"] = max(known["loss.negatives.count"], 2)
    begin = time.process_time()

    def report(values: Any) -> None:
        if METRIC in values:
            tune.report({METRIC: values[METRIC], STEP: values["step"], SECONDS: time.process_time() - begin})

    with tempfile.TemporaryDirectory() as folder:
        train(override(base, known | {"trainer.output": folder}), report)


class Spent:
    """Adds up the time in which a searcher chooses settings and learns from results.

    Tune works on copies of the searcher that it is given, so the time is kept with the class.
    """

    seconds = 0.0

    @classmethod
    def timed(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function with its time added."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                cls.seconds += time.perf_counter() - begin

        return call


class TimedSearcher(BudgetedSearcher):
    """The searcher of a study, whose time is added up."""

    suggest = Spent.timed(BudgetedSearcher.suggest)
    on_trial_result = Spent.timed(BudgetedSearcher.on_trial_result)
    on_trial_complete = Spent.timed(BudgetedSearcher.on_trial_complete)


class TimedOptunaSearch(OptunaSearch):
    """Tune's searcher, whose time is added up."""

    suggest = Spent.timed(OptunaSearch.suggest)
    on_trial_result = Spent.timed(OptunaSearch.on_trial_result)
    on_trial_complete = Spent.timed(OptunaSearch.on_trial_complete)


@dataclass
class Curve(Callback):
    """Collects every validation as (trial, step, mIoU, trial-seconds of the whole search so far)."""

    points: list[tuple[int, int, float, float]] = field(default_factory=list)
    by_trial: dict[str, float] = field(default_factory=dict)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Adds a validation."""
        self.by_trial[trial.trial_id] = result[SECONDS]
        number = list(self.by_trial).index(trial.trial_id)
        self.points.append((number, result[STEP], result[METRIC], sum(self.by_trial.values())))


def method_of(
    name: str, base: Config, num_classes: int, trials: int, seed: int
) -> tuple[Searcher, TrialScheduler, dict[str, Any]]:
    """Returns searcher, scheduler and Tune's space of a method; our searchers have their own."""
    study = Search(name="search_efficiency", num_trials=trials, seed=seed)
    space = embedding_space(base, num_classes)
    if name == "kiloseg":
        return TimedSearcher(space, known_trials(base, num_classes), sampler_of(study)), scheduler_of(study, space), {}
    if name == "random":
        return TimedSearcher(space, (), optuna.samplers.RandomSampler(seed=seed)), FIFOScheduler(), {}
    flat = {
        "model.embed_dim": tune.choice(list(embed_dims(num_classes))),
        "loss.negatives.kind": tune.choice(list(KINDS)),
        "loss.negatives.count": tune.lograndint(1, num_classes),
        "loss.temperature": tune.loguniform(5.0, 80.0),
        "loss.logit": tune.choice(["distance", "cosine"]),
        "optimizer.lr": tune.loguniform(base.optimizer.lr / 3, base.optimizer.lr * 3),
    }
    validations = base.trainer.steps // base.trainer.validate_every
    return TimedOptunaSearch(metric=METRIC, mode="max", seed=seed), ASHAScheduler(max_t=validations), flat


def run_method(name: str, base: Config, num_classes: int, trials: int, seed: int) -> tuple[Curve, float]:
    """Runs the trials of a method; returns all their validations and the seconds that the searcher took."""
    Spent.seconds = 0.0
    searcher, scheduler, flat = method_of(name, base, num_classes, trials, seed)
    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, base=base), {"CPU": 1}),
            param_space=flat,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=trials,
                max_concurrent_trials=1,
                search_alg=searcher,
                scheduler=scheduler,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name, storage_path=folder, callbacks=[JsonLoggerCallback(), curve], verbose=0
            ),
        ).fit()
    return curve, Spent.seconds


def mean_curves(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns a line for each method: when the mean over seeds of its best mIoU so far comes to that of random search's end.

    Args:
        rows: those of the table of curves; seeds that not all methods have are left out.
    """
    runs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        runs[row["method"], row["seed"]].append((float(row["trial_seconds"]), float(row["miou"])))
    methods = list(dict.fromkeys(method for method, _ in runs))
    seeds = [seed for seed in {seed for _, seed in runs} if all((method, seed) in runs for method in methods)]
    if not seeds or "random" not in methods:
        return []
    times = np.unique([seconds for (_, seed), points in runs.items() if seed in seeds for seconds, _ in points])

    def mean(method: str) -> np.ndarray:
        best = []
        for seed in seeds:
            seconds, mious = np.array(sorted(runs[method, seed])).T
            reached = np.concatenate([[0.0], np.maximum.accumulate(mious)])
            best.append(reached[np.searchsorted(seconds, times, side="right")])
        return np.mean(best, axis=0)

    target = mean("random")[-1]
    lines = []
    for method in methods:
        curve = mean(method)
        when = f"after {times[np.argmax(curve >= target)]:.0f} trial-seconds" if curve[-1] >= target else "never"
        lines.append(
            f"{method}: mean best mIoU {curve[-1]:.4f} over {len(seeds)} seeds, {target:.4f} (random's) reached {when}"
        )
    return lines


def main(arguments: Arguments) -> None:
    """Runs every method of every seed that has no row yet."""
    path = str(Path(require_path(arguments.run.data)).resolve())
    num_classes = arguments.run.data.num_classes or read_info(path).num_classes
    curves = arguments.results.with_name(arguments.results.stem + "_curves.csv")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ.update(TUNE_VARIABLES | QUIET_VARIABLES)
    hide_token_message()
    ray.init(
        address="local",  # a cluster that runs on this machine is another study's
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}},
    )
    for seed in arguments.seeds:
        base = override(arguments.run, {"data.path": path, "trainer.seed": seed, "data.num_classes": num_classes})
        for name in sorted(arguments.methods, key=["random", "plain", "kiloseg"].index):
            rows = {(row["seed"], row["method"]): row for row in read_rows(arguments.results, COLUMNS)}
            if (str(seed), name) in rows:
                continue
            curve, searching = run_method(name, base, num_classes, arguments.trials, seed=seed)
            best = max(miou for _, _, miou, _ in curve.points)
            if name != "random" and (str(seed), "random") not in rows:
                raise ValueError(
                    f"--methods {name}: seed {seed} of random has no row in {arguments.results}; add random"
                )
            target = best if name == "random" else float(rows[str(seed), "random"]["best_miou"])
            total = curve.points[-1][3]
            reached = [seconds for _, _, miou, seconds in curve.points if miou >= target]
            for point in curve.points:
                append_row(curves, CURVE_COLUMNS, dict(zip(CURVE_COLUMNS, (seed, name, *point), strict=True)))
            row = {
                "seed": seed,
                "method": name,
                "trials": arguments.trials,
                "trial_seconds": total,
                "best_miou": best,
                "random_best_miou": target,
                "seconds_to_random_best": reached[0] if reached else "",
                "search_seconds": searching,
                "machine": arguments.machine,
            }
            append_row(arguments.results, COLUMNS, row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print("\n".join(mean_curves(read_rows(curves, CURVE_COLUMNS))))


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
