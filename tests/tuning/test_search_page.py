"""The page of a search in a real browser: its figures are drawn without a network, and names are text, not markup."""

import dataclasses
import json
import shlex
import subprocess
import time
import urllib.error
import urllib.request

import optuna
import pytest
from browser import needs_browser, shown
from heads import free_ports
from trial_rows import ROWS

from kiloseg.tuning.journal import JOURNAL, dashboard_command, read_journal, write_journal
from kiloseg.tuning.search_figures import LEAST, importance
from kiloseg.tuning.search_page import search_page

EVIL = "</script><script>document.title = 'taken over'</script>"


@needs_browser
@pytest.mark.timeout(300)
def test_front_is_drawn_with_settings_under_the_pointer(tmp_path):
    rows = [dataclasses.replace(each, overrides={"model.backbone": EVIL, "optimizer.lr": 1e-3}) for each in ROWS]
    path = tmp_path / "search.html"
    path.write_text(search_page(rows, title=f"study {EVIL}", within_gib=12.0))
    with shown(path, "#figure-1 .main-svg") as page:
        assert page.title() == f"study {EVIL}"
        assert page.locator("h2").all_text_contents() == ["mIoU against peak memory", "mIoU against training time"]
        memory = page.locator("#figure-0")
        assert memory.locator(".scatterlayer .trace").count() == 2
        assert "12 GiB" in memory.locator(".annotation-text").all_text_contents()
        # Six trials have both numbers; one with NaN and one without a validation are left out.
        assert memory.locator(".scatterlayer .trace").first.locator("path.point").count() == 6
        point = memory.locator(".scatterlayer .trace").first.locator("path.point").first.bounding_box()
        page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        hover = memory.locator(".hovertext").first
        hover.wait_for(timeout=10_000)
        assert "mIoU 0.8000" in hover.text_content() and "optimizer.lr = 0.001" in hover.text_content()
        assert EVIL in hover.text_content()


def sampled(trials, *, directions=("maximize",)):
    """A search in which the dimension matters most, the rate a little, and the number only where the kind has one."""
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(trials):
        trial = study.ask()
        dim = trial.suggest_int("model.embed_dim", 4, 256, log=True)
        rate = trial.suggest_float("optimizer.lr", 1e-5, 1e-1, log=True)
        kind = trial.suggest_categorical("loss.negatives.kind", ["all", "random"])
        if kind == "random":
            trial.suggest_int("loss.negatives.count", 1, 39, log=True)
        trial.suggest_categorical("model.arch", ["fpn"])
        trial.set_user_attr("trial", str(number))
        if number % 7 == 3:
            trial.set_constraint("memory_gib", 1.5)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, [dim / 256 + 5 * rate, dim / 10][: len(directions)])
    study.ask()  # one that runs
    return study


@needs_browser
@pytest.mark.timeout(300)
@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize")])
def test_settings_are_explained_in_a_browser(tmp_path, directions):
    path = tmp_path / "search.html"
    path.write_text(search_page(ROWS, title="study", sampled=sampled(60, directions=directions)))
    with shown(path, "#figure-7 .main-svg") as page:
        assert page.locator("h2").all_text_contents() == [
            "mIoU against peak memory",
            "mIoU against training time",
            "Which settings matter",
            "mIoU against each setting",
            "mIoU against model.embed_dim and loss.negatives.count",
            "mIoU against model.embed_dim and optimizer.lr",
            "All settings of each trial",
            "mIoU in the order of the trials",
        ]
        importances = page.locator("#figure-2 .ytick text").all_text_contents()
        assert sorted(importances) == ["loss.negatives.count", "loss.negatives.kind", "model.embed_dim", "optimizer.lr"]
        assert importances[-1] == "model.embed_dim", "the most important is at the top"
        slices = page.locator("#figure-3 .xtitle, #figure-3 .x2title, #figure-3 .x3title, #figure-3 .x4title")
        assert sorted(slices.all_text_contents()) == sorted(importances)
        assert page.locator("#figure-4 .contourlayer path").count() > 0
        axes = page.locator("#figure-6 .xtick text").all_text_contents()
        assert {"model.embed_dim", "optimizer.lr", "validation mIoU"} <= set(axes)
        assert page.locator("#figure-7 .scatterlayer .trace").count() >= 1


def test_importance_finds_what_matters():
    found = importance(sampled(60), ["model.embed_dim", "optimizer.lr", "loss.negatives.kind"])
    assert next(iter(found)) == "model.embed_dim"
    assert found["model.embed_dim"] > 0.5
    assert sum(found.values()) == pytest.approx(1)


def test_a_short_search_prints_no_warning():
    names = ["model.embed_dim", "optimizer.lr", "loss.negatives.kind", "loss.negatives.count"]
    assert set(importance(sampled(4), names)) == set(names)  # one trial has a count; a warning would be an error here


@pytest.mark.parametrize("trials", [0, 1, LEAST - 1])
def test_page_of_few_trials_says_what_is_missing(trials):
    text = search_page([], title="study", sampled=sampled(trials))
    assert f"at least {LEAST} trials with a result" in text
    assert 'class="plotly-graph-div"' not in text


def test_dashboard_opens_the_study(tmp_path):
    study = sampled(8)
    write_journal(study, tmp_path / JOURNAL, "mine-1")
    write_journal(study, tmp_path / JOURNAL, "mine-2")  # as after a resumption
    again = read_journal(tmp_path / JOURNAL)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials[:8]]
    assert again.trials[3].constraints == {"memory_gib": 1.5}
    (port,) = free_ports(1)
    process = subprocess.Popen([*shlex.split(dashboard_command(tmp_path)), "--port", str(port), "--host", "127.0.0.1"])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                    (found,) = json.load(answer)["study_summaries"]
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(30)
    assert found["study_name"] == "mine-2"
