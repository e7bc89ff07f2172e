"""The public face costs no torch, and `kiloseg COMMAND` is there at once and says what it is given wrong."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kiloseg
from kiloseg import cli
from kiloseg.presets import PRESETS

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "mlflow", "ray", "pyarrow")

ASK = f"""
import sys
from kiloseg.cli import main
try:
    main()
finally:
    print("imported:", [name for name in {HEAVY} if name in sys.modules])
"""


def python(source, *words):
    """Exit code, output and complaints of a fresh Python."""
    done = subprocess.run(
        [sys.executable, "-c", source, *words],
        env={"PYTHONPATH": str(ROOT / "platform"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_names_are_there_before_anything_is_imported():
    code, output, complaints = python(
        "import sys, kiloseg\n"
        "print(len(set(kiloseg.__all__) - set(dir(kiloseg))), 'torch' in sys.modules, 'numpy' in sys.modules)\n"
        "print(kiloseg.Config().model.head, kiloseg.override.__name__, 'torch' in sys.modules)\n"
    )
    assert (code, output) == (0, "0 False False\nembedding override False\n"), complaints


def test_every_name_leads_to_what_it_says():
    found = {name: getattr(kiloseg, name) for name in kiloseg.__all__}
    assert found["nearest_class"].__module__ == "kiloseg.models.prediction"
    assert found["PRESETS"] is PRESETS
    assert all(value is getattr(kiloseg, name) for name, value in found.items())
    with pytest.raises(AttributeError, match="module 'kiloseg' has no attribute 'trains'"):
        kiloseg.trains  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = (ROOT / "platform/kiloseg/__init__.py").read_text()
    imports = re.findall(r"^    from \S+ import (.+)$", source, re.MULTILINE)
    assert sorted(name for line in imports for name in line.split(", ")) == sorted(kiloseg.__all__)


def test_train_is_a_function_and_the_module_it_lives_in(quick):
    from kiloseg.train import train

    reports = []
    last = kiloseg.train(kiloseg.override(quick, {"trainer.steps": 1, "trainer.validate_every": 0}), reports.append)
    assert len(reports) == 1 and callable(train) and callable(kiloseg.train)
    assert last == reports[0]


@pytest.mark.parametrize("words", [("--help",), (), *((name, "--help") for name in cli.COMMANDS)], ids=" ".join)
def test_help_is_there_without_torch(words):
    code, output, complaints = python(ASK, *words)
    assert code == 0, complaints
    imported = output.splitlines()[-1]
    assert "torch" not in imported and "mlflow" not in imported and "ray" not in imported
    if len(words) == 2:
        assert f"usage: kiloseg {words[0]}" in output
    else:
        assert all(f"    {name} " in output and command.does in output for name, command in cli.COMMANDS.items())


@pytest.mark.parametrize("words", [("train", "--help"), ("plan", "--help")], ids=" ".join)
def test_help_is_wrapped_where_a_line_is_full(words):
    """And not where the lines of the source end."""
    code, output, complaints = python(ASK, *words)
    assert code == 0, complaints
    lines = [line[1:-1] for line in output.splitlines() if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL}")]
    wrapped = 0
    for line, following in itertools.pairwise(lines):
        indent = len(following) - len(following.lstrip())
        if not following.strip() or indent < 5 or len(line) - len(line.lstrip()) != indent:
            continue
        wrapped += 1
        assert len(line.rstrip()) + 1 + len(following.split()[0]) > len(line) - 1, f"{line}\n{following}"
    assert wrapped > 20


def test_an_unknown_command_names_the_nearest():
    code, output, complaints = python(ASK, "trian")
    assert code == 1
    assert complaints.startswith("kiloseg trian is not a command; did you mean train?\n\nusage: kiloseg COMMAND")
    assert output == "imported: []\n"


def test_refusals_have_no_trace(tmp_path):
    for words in (
        ("describe", str(tmp_path)),
        ("train",),
        ("plan", "--fit", "much"),
        ("train", "--preset", "imagenet"),
    ):
        code, _, complaints = python(ASK, *words)
        assert code == 1 and complaints.strip() and "Traceback" not in complaints, words


def test_settings_take_a_preset():
    code, output, complaints = python(ASK, "train", "--preset", "voc-resnet101", "--help")
    assert code == 0, complaints
    assert "(default: resnet101)" in output and "(default: voc-resnet101)" in output


def test_completion_knows_commands_and_their_settings():
    code, output, complaints = python(ASK, "--tyro-print-completion", "bash")
    assert code == 0, complaints
    assert all(name in output for name in cli.COMMANDS)
    assert "--model.embed-dim" in output and "--processes" in output
