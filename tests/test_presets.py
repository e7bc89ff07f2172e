"""Presets as settings, and a run by name as a user starts it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from mlflow import MlflowClient
from scripts import assert_refused, said

from kiloseg.models import build_segmenter
from kiloseg.overrides import override
from kiloseg.presets import PRESETS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "experiments" / "train.py"


def start(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True)


def test_the_papers_rows_are_there():
    data = ("cityscapes", "voc", "ade20k", "coco-stuff10k", "coco-lvis")
    rows = {f"{name}-{backbone}" for name in data for backbone in ("mobilenetv2", "resnet50", "resnet101")}
    assert rows | {"glyphs", "emoji", "emoji-gpu", "ade20k-full-resnet50"} == set(PRESETS)
    # FACTS of the paper's code: D = 6 for Cityscapes, 12 elsewhere; K = 6 to 8; temperature 20; distance logits.
    for name in rows:
        config = PRESETS[name].config
        assert config.model.embed_dim == (6 if name.startswith("cityscapes") else 12)
        assert 6 <= config.loss.negatives.count <= 8 and config.loss.negatives.kind == "nearest"
        assert (config.loss.temperature, config.loss.logit) == (20.0, "distance")
        assert (config.optimizer.name, config.optimizer.lr, config.optimizer.backbone_lr_factor) == ("sgd", 0.01, 0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_a_network_and_a_builder_that_exist(name):
    preset = PRESETS[name]
    assert timm.is_model(preset.config.model.backbone)
    assert (ROOT / preset.build.split()[1]).is_file()
    segmenter = build_segmenter(override(preset.config, {"model.weights": "none"}), 21, "meta")
    assert sum(parameter.numel() for parameter in segmenter.parameters()) > 1e6
    for one in preset.published:
        assert 0 < one.miou < 1 and one.source.startswith(("https://", "independent run"))


def test_a_run_by_name_is_in_mlflow_and_goes_on(squares, tmp_path):
    words = [
        "--preset", "glyphs", "--data.path", squares, "--data.crop", "64", "--model.backbone", "test_resnet",
        "--model.weights", "none", "--optimizer.warmup-steps", "0", "--trainer.steps", "4", "--trainer.validate-every", "2",
        "--trainer.output", tmp_path / "out", "--runs", tmp_path / "runs", "--trainer.report-every", "2",
    ]  # fmt: skip
    done = start(*words)
    assert done.returncode == 0, done.stderr
    assert "glyphs: val/miou 0." in done.stdout and "after 4 steps" in done.stdout
    assert_refused(
        SCRIPT, list(map(str, words)), "holds a run already (outbox.jsonl, step-00000002.pt, step-00000004.pt): --"
    )
    (tmp_path / "out" / "step-00000004.pt").unlink()  # as if it had died before
    again = start(*words, "--resume")
    assert again.returncode == 0, again.stderr

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert run.data.params["loss.negatives.kind"] == "all" and run.data.params["data.crop"] == "64"
    assert run.data.tags["preset"] == "glyphs" and run.data.tags["head"] == "embedding:all"
    for name in ("val/miou", "train/images_per_s"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [2, 4], "each once"
    assert "iou_per_class.json" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "imagenet"), "--preset 'imagenet' is unknown; the presets are: glyphs, emoji"),
        (("--preset", "ade20k-resnet50"), "python datasets/ade20k.py --root ARCHIVES --out DIR"),
    ],
)
def test_what_cannot_work_says_what_would(words, message):
    assert_refused(SCRIPT, words, message)


def test_list_and_help_say_what_there_is():
    code, listed, _ = said(SCRIPT, "--list")
    assert code == 0
    assert all(f"{name}: " in listed for name in PRESETS) and "0.3440  ESSNet, D = 12, K = 8" in listed
    code, shown, _ = said(SCRIPT, "--preset", "voc-resnet101", "--help")
    assert code == 0
    assert "resnet101" in shown and "--loss.negatives.kind" in shown


@pytest.mark.parametrize(
    ("name", "own"), [("scale_classes", "emoji"), ("tune_embed_dim", "glyphs"), ("ablate", "emoji"), ("train", "emoji")]
)
@pytest.mark.parametrize("preset", [None, "voc-resnet101"])
def test_every_script_takes_what_is_not_given_from_a_preset(name, own, preset):
    words = ("--preset", preset) if preset else ()
    code, shown, _ = said(ROOT / "experiments" / f"{name}.py", *words, "--help")
    assert code == 0
    shown = " ".join(shown.replace("\u2502", " ").split())
    run = PRESETS[preset or own].config
    for flag, value in (("model.embed-dim INT", run.model.embed_dim), ("trainer.steps INT", run.trainer.steps)):
        help_text = shown[shown.index(f"--{flag}") :]
        assert re.search(r"\(default: (.*?)\)", help_text)[1] == str(value)
    assert f"(default: {preset or own})" in shown


@pytest.mark.parametrize(
    ("name", "words"), [("scale_classes", ()), ("tune_embed_dim", ()), ("ablate", ("--question", "logit"))]
)
def test_preset_that_is_not_known_is_refused(name, words):
    script = ROOT / "experiments" / f"{name}.py"
    assert_refused(script, [*words, "--preset", "imagenet"], "--preset 'imagenet' is unknown; the presets are: glyphs,")
