"""A study on a terminal is a table that is drawn in place, elsewhere it is lines; neither has anything of Ray's own."""

import contextlib
import io
import os
import pty
import sys
import threading
from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from rich.console import Console
from scripts import quick_search, said

from kiloseg.tuning.callbacks.console import Progress
from kiloseg.tuning.callbacks.live_table import live_table, shown

STEPS = 240


def trial(name, **settings):
    made = Trial("trial", stub=True, trial_id=name, config={f"loss.{key}": value for key, value in settings.items()})
    made.set_status(Trial.RUNNING)
    return made


def result(step, miou, outcome="finished"):
    return {
        "step": step,
        "outcome": outcome,
        "val/miou": miou,
        "train/loss": 1.25,
        "train/images_per_s": 33.3,
        "peak_memory_gib": 0.197,
        "val/peak_memory_gib": 0.111,
    }


def play(trials):
    """What a study of two trials calls: one is behind and stopped, and one loses its process and goes on to its end."""
    one, two = trials
    progress = Progress(2, STEPS)
    for each in trials:
        progress.on_trial_start(0, trials, each)
    progress.on_trial_result(0, trials, one, result(80, 0.1234))
    progress.on_trial_result(0, trials, two, result(80, 0.0567))
    two.update_last_result(result(80, 0.0567))
    two.set_status(Trial.TERMINATED)
    progress.on_trial_complete(0, trials, two)
    progress.on_trial_recover(0, trials, one)
    progress.on_trial_result(0, trials, one, result(240, 0.4321) | {"bad_samples": ["a.tar: sample 7 is damaged"]})


def drawn(trials, height=30):
    """The table after those calls, and what was printed above it."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=150, height=height, color_system=None)
    with live_table(2, STEPS, console):
        play(trials)
        above = out.getvalue()
        table = Console(file=io.StringIO(), width=150)
        table.print(shown().table())
    return table.file.getvalue(), above


def test_table_has_the_last_numbers_of_every_trial():
    table, above = drawn([trial("aaaa", kind="all", lr=0.003), trial("bbbb", kind="nearest", count=7)])
    assert "1 of 2 trials ended, 1 running" in table
    rows = {words[0]: words for words in map(str.split, table.splitlines()) if words}
    assert "kind=all" in rows["aaaa"] and "lr=0.003" in rows["aaaa"]
    assert {"240/240", "0.4321", "1.250", "33.3", "0.197", "training"} <= set(rows["aaaa"])
    assert {"kind=nearest", "count=7", "80/240", "0.0567", "stopped"} <= set(rows["bbbb"])
    assert "was interrupted and starts again" in above and "leaves out: a.tar: sample 7 is damaged" in above
    assert shown() is None


def test_a_narrow_terminal_keeps_what_matters_most():
    settings = {"kind": "nearest", "count": 7, "temperature": 20.0, "logit": "distance"}
    out = Console(file=io.StringIO(), force_terminal=True, width=80)
    trials = [trial("aaaa", **settings), trial("bbbb", kind="all")]
    with live_table(2, STEPS, out):
        play(trials)
        table = Console(file=io.StringIO(), width=80)
        table.print(shown().table())
    text = table.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for word in ("0.4321", "240/240", "0.197", "training", "count=7", "logit=distance"):
        assert word in text
    assert "images/s" not in text


def test_trials_beyond_the_terminal_are_counted():
    trials = [trial(f"trial{number:02d}") for number in range(30)]
    out = Console(file=io.StringIO(), force_terminal=True, width=150, height=20)
    with live_table(40, STEPS, out):
        progress = Progress(40, STEPS)
        for number, each in enumerate(trials):
            progress.on_trial_result(0, trials, each, result(80, number / 100 if number else float("nan")))
        table = Console(file=io.StringIO(), width=150)
        table.print(shown().table())
    text = table.file.getvalue()
    assert "trial29" in text and "trial00" not in text, "the best ones are shown"
    assert "and 17 more" in text and len(text.splitlines()) < 20


def test_lines_where_there_is_no_terminal(capsys):
    with live_table(2, STEPS):
        assert shown() is None
        play([trial("aaaa", kind="all"), trial("bbbb", kind="nearest")])
    lines = capsys.readouterr().out.splitlines()
    assert any("trial aaaa  starts (1 of 2): kind=all" in line for line in lines)
    assert any("trial aaaa  step 240/240  val/miou 0.4321" in line for line in lines)
    assert any("trial bbbb  is stopped early" in line for line in lines)
    assert not any("\x1b" in line or "│" in line for line in lines)


def read_all(read, seen):
    """Takes what arrives at a terminal until the program closes it, which Linux reports as an error."""
    with os.fdopen(read, "rb", buffering=0) as stream, contextlib.suppress(OSError):
        while part := stream.read(4096):
            seen += part


def test_a_terminal_gets_the_table(monkeypatch):
    read, write = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    seen = bytearray()
    reader = threading.Thread(target=read_all, args=(read, seen))
    reader.start()
    with os.fdopen(write, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with live_table(2, STEPS):
            assert shown() is not None
            play([trial("aaaa", kind="all"), trial("bbbb", kind="nearest")])
        monkeypatch.undo()
    reader.join(timeout=10)
    assert b"aaaa" in seen and b"\x1b[" in seen
    assert b"starts (1 of 2)" not in seen


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_prints_nothing_of_ray(squares, tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "tune_embed_dim.py"
    flags = {"trainer.steps": 2, "trainer.validate-every": 2, "num-trials": 1}
    code, output, complaints = said(script, *quick_search(squares, tmp_path / "runs", flags))
    assert code == 0, complaints
    assert "Configuration for experiment" not in output and "View detailed results" not in output
    assert "Token authentication" not in complaints and "Creating initial MLflow" not in complaints
    for title in ("mIoU against memory: ", "predictions of the best: "):
        (line,) = [line for line in output.splitlines() if line.startswith(title)]
        assert Path(line.removeprefix(title)).is_file()
