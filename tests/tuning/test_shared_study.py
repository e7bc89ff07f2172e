"""Several drivers of one search: real Optuna, real processes, real storages, and no Ray."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from trial_rows import row

from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import LocalFolder
from kiloseg.storage.lease import Lease
from kiloseg.tuning.identity import TABLE, idle_id
from kiloseg.tuning.objectives import OBJECTIVES
from kiloseg.tuning.search import Search
from kiloseg.tuning.search_run import SearchRun
from kiloseg.tuning.searcher import BudgetedSearcher, sampler_of
from kiloseg.tuning.shared_result import shared_result
from kiloseg.tuning.shared_storage import SharedPlace, shared_place
from kiloseg.tuning.shared_study import SharedStudy
from kiloseg.tuning.shared_trials import STUDY, TRIAL
from kiloseg.tuning.space import Space, choice, log

ROOT = Path(__file__).parents[2]
FIRST = [{"model.embed_dim": 8}, {"model.embed_dim": 16, "optimizer.lr": 1e-2}]

DRIVER = """
import json, sys, time
from pathlib import Path
import optuna
from kiloseg.config import Config
from kiloseg.tuning.objectives import OBJECTIVES
from kiloseg.tuning.search import Search
from kiloseg.tuning.searcher import BudgetedSearcher, sampler_of
from kiloseg.tuning.shared_storage import SharedPlace
from kiloseg.tuning.shared_study import SharedStudy
from kiloseg.tuning.space import Space, log

optuna.logging.set_verbosity(optuna.logging.WARNING)
driver, location, trials, folder, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
search = Search(name="s", num_trials=trials)
space = Space(Config(), (log("model.embed_dim", 4, 512), log("optimizer.lr", 1e-5, 1e-1)))
chooser = BudgetedSearcher(space, json.loads(first), sampler_of(search))
chooser.find_first()
(folder / f"{driver} is ready").touch()
while len(list(folder.glob("* is ready"))) < 2:
    time.sleep(0.001)
shared = SharedStudy(SharedPlace(name="s", location=location), OBJECTIVES["none"], trials)
shared.join(driver, {"space": 1})
chooser.share(shared, sampler_of(search, 0, driver))
mine = {}
while (settings := chooser.suggest(trial := f"{driver}-{len(mine)}")) != chooser.FINISHED:
    mine[trial] = settings
    time.sleep(0.05)
    chooser.on_trial_complete(trial, {"val/miou": settings["model.embed_dim"] / 1000, "training_iteration": 1})
while any(not trial.state.is_finished() for trial in shared.trials()):
    time.sleep(0.01)
shared.pull(chooser.study)
known = [trial.user_attrs["trial"] for trial in chooser.study.trials if trial.state.name == "COMPLETE"]
print(json.dumps({"mine": mine, "known": known}))
"""


@pytest.fixture
def place(tmp_path):
    return shared_place("mine", str(tmp_path / "runs"), "s")


def driver_of(place, space, study_id, *, num_trials=8, first=(), tradeoff="none"):
    """A driver as `SearchRun` sets it up, without trials of its own."""
    study = Search(name="s", num_trials=num_trials, tradeoff=tradeoff)
    shared = SharedStudy(place, OBJECTIVES[tradeoff], num_trials)
    shared.join(study_id, {"space": 1})
    chooser = BudgetedSearcher(space, first, sampler_of(study), objectives=OBJECTIVES[tradeoff])
    chooser.find_first()
    chooser.share(shared, sampler_of(study, 0, study_id))
    return chooser


@pytest.fixture
def space(quick):
    return Space(quick, (log("model.embed_dim", 4, 512), log("optimizer.lr", 1e-5, 1e-1)))


def result(miou, **more):
    return {"val/miou": miou, "training_iteration": 1, "outcome": "finished"} | more


@pytest.mark.parametrize(("kind", "first"), [("journal", FIRST), ("sqlite", [])])
def test_two_processes_share_trials_and_none_is_run_twice(tmp_path, kind, first):
    """They create the storage at the same moment, and choose their first trial at the same moment."""
    location = str(tmp_path / "s.journal") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    words = [location, "9", str(tmp_path), json.dumps(first)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, name, *words], stdout=subprocess.PIPE, text=True, env=environment
        )
        for name in ("one", "two")
    ]
    try:
        one, two = (json.loads(driver.communicate(timeout=400)[0].splitlines()[-1]) for driver in drivers)
    finally:
        for driver in drivers:  # one that dies leaves the other waiting
            driver.kill()
            driver.wait()
    assert len(one["mine"]) + len(two["mine"]) == 9, "as many as were asked for, of both together"
    assert one["mine"] and two["mine"]
    chosen = [*one["mine"].values(), *two["mine"].values()]
    assert len({json.dumps(each, sort_keys=True) for each in chosen}) == 9, chosen
    for given in first:
        assert sum(given.items() <= each.items() for each in chosen) == 1, (given, chosen)
    assert sorted(one["known"]) == sorted(two["known"]) == sorted([*one["mine"], *two["mine"]])


def test_trials_of_others_are_known_while_they_run_and_when_they_end(place, space):
    one, two = driver_of(place, space, "one"), driver_of(place, space, "two")
    settings = one.suggest("a")
    two.suggest("b")
    (running,) = [trial for trial in two.study.trials if trial.user_attrs.get(STUDY) == "one"]
    assert (running.state, running.params) == (TrialState.RUNNING, settings)
    one.on_trial_complete("a", result(0.25))
    two.suggest("c")
    ended = two.study.trials[running.number]
    assert (ended.state, ended.value, ended.user_attrs[TRIAL]) == (TrialState.COMPLETE, 0.25, "a")
    assert sorted(trial.user_attrs[TRIAL] for trial in two.study.trials if TRIAL in trial.user_attrs) == ["a", "b", "c"]


def test_infeasible_trials_are_infeasible_for_all(place, space):
    one, two = (driver_of(place, space, name, tradeoff="memory") for name in ("one", "two"))
    one.suggest("a")
    two.suggest("b")  # which knows that a runs
    one.on_trial_complete("a", result(0.0) | {"outcome": "oom"})
    three = driver_of(place, space, "three", tradeoff="memory")
    for chooser in (two, three):
        chooser.suggest(f"next of {chooser}")
        (told,) = [trial for trial in chooser.study.trials if trial.user_attrs.get(TRIAL) == "a"]
        assert (told.state, told.constraints) == (TrialState.PRUNED, {"failed": 1.0})


def test_drivers_draw_different_settings(place, space):
    """With one seed, and before any of them knows a result."""
    alone = BudgetedSearcher(space, [], sampler_of(Search(name="s"))).suggest("alone")
    again = BudgetedSearcher(space, [], sampler_of(Search(name="s"))).suggest("again")
    assert alone == again
    drawn = [driver_of(place, space, name).suggest(name)["optimizer.lr"] for name in ("one", "two", "three")]
    assert len({*drawn, alone["optimizer.lr"]}) == 4


def test_driver_that_dies_gets_its_trials_back_and_withdraws_what_never_began(place, space):
    """Tune has forgotten trial b; the end of trial a was not entered before the driver died."""
    one = driver_of(place, space, "one", num_trials=3, first=FIRST)
    settings = one.suggest("a")
    one.suggest("b")
    other = driver_of(place, space, "two", num_trials=3)
    other.suggest("c")
    assert other.suggest("d") == other.FINISHED, "what the dead driver began counts"

    resumed = SharedStudy(place, OBJECTIVES["none"], 3)
    resumed.join("one", {"space": 1})
    sampled = one.study
    resumed.settle([row("a", 0.5, 2.0)], sampled)
    assert resumed.num_free() == 1
    (told,) = [trial for trial in resumed.trials() if trial.user_attrs[TRIAL] == "a"]
    assert (told.params, told.value, told.user_attrs["peak_memory_gib"]) == (settings, 0.5, 2.0)
    resumed.settle([row("a", 0.5, 2.0)], sampled)
    assert len(resumed.trials()) == 2, "nothing is entered twice"
    assert other.suggest("d") != other.FINISHED


def test_line_that_a_driver_died_in_is_removed(place, space):
    """Where the next line is appended to it, as Optuna itself does, nobody can read the journal any more."""
    one = driver_of(place, space, "one")
    one.suggest("a")
    journal = Path(place.location)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"')
    assert len(driver_of(place, space, "two").shared.trials()) == 1, "a reader is not stopped by it"
    one.on_trial_complete("a", result(0.5))
    assert [trial.value for trial in driver_of(place, space, "three").shared.trials()] == [0.5]
    assert all(json.loads(line) for line in journal.read_text().splitlines())

    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"')
    plain = JournalStorage(JournalFileBackend(str(journal)))
    for name in ("x", "y"):
        plain._backend.append_logs([{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {name: 1}}])
    with pytest.raises(DataError, match=r"mine\.journal is damaged .* give another name to --share"):
        SharedStudy(place, OBJECTIVES["none"], 8)


@pytest.mark.slow
def test_lock_of_a_dead_driver_is_broken(place, space):
    one = driver_of(place, space, "one")
    Path(place.location + ".lock").symlink_to(place.location)
    began = time.monotonic()
    one.suggest("a")
    assert 25 < time.monotonic() - began < 90
    assert len(one.shared.trials()) == 1


def test_search_goes_on_while_the_storage_is_away(place, space, caplog):
    one = driver_of(place, space, "one", num_trials=4)
    folder = Path(place.location).parent
    folder.rename(folder.with_name("away"))
    for trial in ("a", "b"):
        assert one.suggest(trial) != one.FINISHED
        one.on_trial_complete(trial, result(0.5))
    assert len([line for line in caplog.messages if "does not answer" in line]) == 1
    folder.with_name("away").rename(folder)
    one.shared.settle([row("a", 0.5, 2.0), row("b", 0.5, 2.0)], one.study)
    assert [trial.user_attrs[TRIAL] for trial in SharedStudy(place, OBJECTIVES["none"], 4).trials()] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "dimensions", "options", "reason"),
    [
        ({"trainer.steps": 5000}, [], {}, "trainer.steps was"),
        ({}, [log("optimizer.weight_decay", 1e-4, 1e-2)], {}, "search of optimizer.weight_decay was None, is 'log"),
        ({}, [choice("model.embed_dim", [4, 8])], {}, "search of model.embed_dim was 'log 4 to 512', is 'choice"),
        ({}, [], {"tradeoff": "memory"}, "tradeoff was 'none', is 'memory'"),
        ({}, [], {"workers": 2}, "workers was 1, is 2"),
    ],
)
def test_drivers_that_search_something_else_are_refused_by_name(space, tmp_path, changes, dimensions, options, reason):
    """Before they begin, and also where both begin at the same moment."""
    common = {"name": "s", "share": "mine", "runs": str(tmp_path / "runs")}
    first = SearchRun(Search(**common), space)
    other = Space(override(space.base, changes), space.with_dimensions(*dimensions).dimensions)
    late = SearchRun(Search(**common, **options), other)
    assert late.shared.num_free() == 8
    first.shared.join("s-1", first._plan())
    with pytest.raises(ValueError) as refused:
        late.shared.join("s-2", late._plan())
    assert f"--share: study s-1 searches something else in mine in {tmp_path}" in str(refused.value)
    assert reason in str(refused.value)
    with pytest.raises(ValueError, match="give the same flags, or another name to --share"):
        SearchRun(Search(**common, **options), other)
    SearchRun(Search(**common), space).shared.join("s-3", first._plan())  # the refused one is in nobody's way


def test_other_data_is_refused(space, tmp_path, monkeypatch):
    common = {"name": "s", "share": "mine", "runs": str(tmp_path / "runs")}
    run = SearchRun(Search(**common), space)
    run.shared.join("s-1", run._plan() | {"data digest": "0" * 32})
    with pytest.raises(ValueError, match=r"data digest was '0{32}', is"):
        SearchRun(Search(**common), space)


def test_study_that_has_its_trials_takes_no_further_driver(space, tmp_path, place):
    one = driver_of(place, space, "one", num_trials=2)
    one.suggest("a")
    one.suggest("b")
    common = {"name": "s", "share": "mine", "runs": str(tmp_path / "runs")}
    one.shared.study.set_user_attr("plan of one", None)
    with pytest.raises(
        ValueError, match=r"has its 2 trials already, of all drivers together; give a larger --num-trials"
    ):
        SearchRun(Search(**common, num_trials=2), space)
    assert SearchRun(Search(**common, num_trials=3), space).shared.num_free() == 1


def test_result_names_the_best_of_all_drivers(place, space):
    one, two = driver_of(place, space, "one"), driver_of(place, space, "two")
    first, second = one.suggest("a"), two.suggest("b")
    one.on_trial_complete("a", result(0.5, peak_memory_gib=4.0) | {"val/peak_memory_gib": 9.0})
    two.on_trial_complete("b", result(0.25, peak_memory_gib=4.0) | {"val/peak_memory_gib": 3.0})
    two.suggest("c")
    found = shared_result(two.shared, space)
    assert (found.best.trial, found.best.study_id, found.best.settings) == ("a", "one", first)
    assert (found.trials, found.num_running) == ({"one": 1, "two": 2}, 1)
    assert "3 trials (one 1, two 2), 1 of which have not ended yet" in str(found)
    assert "best of all drivers: trial a of study one, val/miou 0.5000 at its end: --model.embed-dim" in str(found)
    assert shared_result(two.shared, space, 5.0).best.settings == second
    assert shared_result(two.shared, space, 1.0).best is None
    assert not math.isnan(found.best.miou)


def test_searcher_is_saved_without_the_storage(place, space, tmp_path):
    """What Tune saves belongs to the process that resumes it, whose results may lie elsewhere by then."""
    one = driver_of(place, space, "one")
    one.suggest("a")
    one.save(str(tmp_path / "searcher"))
    elsewhere = SharedPlace(name="mine", location=str(tmp_path / "moved" / "mine.journal"))
    shared = SharedStudy(elsewhere, OBJECTIVES["none"], 8)
    again = BudgetedSearcher(space, [], optuna.samplers.RandomSampler(seed=0))
    again.restore(str(tmp_path / "searcher"))
    assert again.shared is shared


def test_drivers_that_died_are_resumed_one_after_the_other(tmp_path):
    """The one that no process runs and that has not ended; with all at work, the newest, whose lease says so."""
    names = [f"s-20261129-10000{second}-0000" for second in range(4)]
    for name in names:
        for kind, file in (("ray", "tuner.pkl"), ("studies", "study.json")):
            (tmp_path / kind / name).mkdir(parents=True)
            (tmp_path / kind / name / file).touch()
    away = {"token": "t", "host": "another/1", "pid": 7, "time": time.time()}
    (tmp_path / "studies" / names[3] / "running.json").write_text(json.dumps(away))
    assert idle_id(str(tmp_path), "s") == names[2]
    (tmp_path / "studies" / names[2] / TABLE).touch()
    assert idle_id(str(tmp_path), "s") == names[1]
    with Lease(LocalFolder(tmp_path / "studies" / names[1]), "s", contested=False):
        assert idle_id(str(tmp_path), "s") == names[0]
    (tmp_path / "studies" / names[0] / TABLE).touch()
    (tmp_path / "studies" / names[1] / TABLE).touch()
    assert idle_id(str(tmp_path), "s") == names[2], "an ended one gets further trials"
    for name in names:
        (tmp_path / "studies" / name / "running.json").write_text(json.dumps(away))
    assert idle_id(str(tmp_path), "s") == names[3]
    with pytest.raises(ValueError, match="no study named 'other' to resume"):
        idle_id(str(tmp_path), "other")
