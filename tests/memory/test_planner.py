"""Plans against steps that are really taken, with and without tiles left out; the largest batch by trying them all."""

import contextlib
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kiloseg.config import Config, Loss, Model, Negatives
from kiloseg.data.reading.loader import Batch
from kiloseg.memory import PeakMemory, largest_batch, plan, plan_evaluation
from kiloseg.memory.live_tensors import LiveTensors
from kiloseg.models import build_segmenter
from kiloseg.models.heads import EmbeddingHead
from kiloseg.ops import cpu
from kiloseg.ops.tiles import TILE_BYTES, shapes_only
from kiloseg.overrides import head_overrides, override
from kiloseg.training.evaluation import evaluate
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.precision import autocast_of
from kiloseg.training.step import training_step

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = override(
    Config(),
    {
        "data.num_classes": 30,
        "data.crop": 64,
        "data.val_batch_size": 5,
        "model.arch": "fpn",
        "model.backbone": "test_resnet",
        "trainer.batch_size": 3,
    },
)

RUNS = {
    "all": {"loss.negatives.kind": "all"},
    "all, distances": {"loss.negatives.kind": "all", "loss.logit": "distance"},
    "nearest": {"loss.negatives.kind": "nearest", "loss.logit": "distance"},
    "random": {"loss.negatives.kind": "random"},
    "mixed": {"loss.negatives.kind": "mixed"},
    "1,284 classes": {"data.num_classes": 1284, "loss.negatives.kind": "all"},
    "12 dimensions": {"model.embed_dim": 12},
    "dense": {"model.head": "dense"},
    "dense, 300 classes": {"model.head": "dense", "data.num_classes": 300},
    "prototypes": head_overrides("prototype"),
    "one prototype": {**head_overrides("prototype"), "model.prototypes": 1},
    "prototypes, 300 classes": {**head_overrides("prototype"), "data.num_classes": 300, "model.prototypes": 3},
    "bf16": {"trainer.precision": "bf16"},
    "prototypes, bf16": {**head_overrides("prototype"), "trainer.precision": "bf16"},
    "dense, bf16": {"model.head": "dense", "trainer.precision": "bf16"},
    "recomputed": {"trainer.checkpoint_activations": True},
    "recomputed, bf16": {"trainer.checkpoint_activations": True, "trainer.precision": "bf16"},
    "channels first": {"trainer.channels_last": False},
    "adamw, clipped": {"optimizer.name": "adamw", "optimizer.clip_norm": 1.0},
    "deeplabv3plus": {"model.arch": "deeplabv3plus", "trainer.checkpoint_activations": True},
    "efficientnet": {"model.backbone": "test_efficientnet"},
    "transformer": {"model.arch": "dpt", "model.backbone": "test_vit"},
}


def run_of(values):
    torch.manual_seed(0)
    config = override(SMALL, values)
    segmenter = build_segmenter(config, config.data.num_classes)
    return config, segmenter, build_optimizer(segmenter, config.optimizer)


def batch_of(config, images):
    shape = (images, config.data.crop, config.data.crop)
    return Batch(
        torch.randint(0, 256, (images, 3, *shape[1:]), dtype=torch.uint8),
        torch.randint(-1, config.data.num_classes, shape),
    )


def measured(values):
    """Peaks of two steps and of the first validation batch, as the training loop counts them."""
    config, segmenter, optimizer = run_of(values)
    autocast = autocast_of(config.trainer.precision, torch.device("cpu"))
    peak, val_peak = (PeakMemory(torch.device("cpu"), segmenter, optimizer) for _ in range(2))
    for _ in range(2):
        batch = batch_of(config, config.trainer.batch_size)
        with peak.step(*batch):
            training_step(config, segmenter, optimizer, *batch, autocast=autocast)
    batch = batch_of(config, config.data.val_batch_size)
    evaluate(segmenter, [batch], autocast=autocast, peak=val_peak)
    return peak.gib, val_peak.gib


@pytest.mark.parametrize("name", RUNS)
def test_plan_is_what_a_real_step_is_counted_to_take(name):
    config = override(SMALL, RUNS[name])
    training, evaluation = measured(RUNS[name])
    assert plan(config) == pytest.approx(training, rel=0.01)
    assert plan_evaluation(config) == pytest.approx(evaluation, rel=0.01)


def loss_bytes(kind, context, mode=None, classes=300, side=64):
    """Peak of the loss alone, whose tiles count where no network hides them; on fake tensors unless `mode` is another."""
    with mode or FakeTensorMode():
        pixels = torch.zeros(3, 12, side // 4, side // 4, requires_grad=True)
        head = EmbeddingHead(Model(embed_dim=12), Loss(negatives=Negatives(kind=kind)), classes)
        labels = torch.zeros((3, side, side), dtype=torch.int64)
        live = LiveTensors()
        with live, context:
            head.loss(pixels, labels)
    return live.peak_bytes


@pytest.mark.parametrize("kind", ["all", "nearest", "random", "mixed"])
@pytest.mark.parametrize("classes", [300, 3000])
def test_compiled_loss_is_planned_as_it_is_counted(kind, classes):
    """3,000 classes are too many for their weights to be kept."""
    real = loss_bytes(kind, contextlib.nullcontext(), contextlib.nullcontext(), classes)
    assert loss_bytes(kind, shapes_only(), classes=classes) == real


@pytest.mark.parametrize("kind", ["all", "nearest", "random", "mixed"])
def test_tiles_left_out_do_not_change_the_peak(monkeypatch, kind):
    """Blocks of 7 rows, of which the last has one, and tiles of one pixel."""
    side = 3 * 7 + 1
    monkeypatch.setenv("KILOSEG_NATIVE", "0")  # its kernel has no tiles
    monkeypatch.setattr("kiloseg.losses.embedding.BLOCK_BYTES", 7 * side * 12 * 4)
    monkeypatch.setitem(TILE_BYTES, "cpu", 1)
    every = loss_bytes(kind, contextlib.nullcontext(), side=side)
    assert loss_bytes(kind, shapes_only(), side=side) == pytest.approx(every, rel=1e-3)


@pytest.mark.parametrize("kind", ["all", "random"])
@pytest.mark.parametrize("tile_bytes", [60_000, 2**21])
def test_blocks_of_patches_left_out_do_not_change_the_peak(monkeypatch, kind, tile_bytes):
    """Scores at feature cells by torch's operations: patches of several sizes, with all candidates at a time or some."""
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    monkeypatch.setattr("kiloseg.losses.reference_cells.pays", lambda *_: True)
    monkeypatch.setitem(TILE_BYTES, "cpu", tile_bytes)
    every = loss_bytes(kind, contextlib.nullcontext(), side=60)
    assert loss_bytes(kind, shapes_only(), side=60) == pytest.approx(every, rel=1e-3)


DEPTHWISE_BF16 = {"model.backbone": "test_efficientnet", "trainer.precision": "bf16"}


@pytest.mark.skipif(cpu.library() is None, reason="no compiler")
def test_bf16_of_a_cpu_is_planned_as_it_runs():
    config = override(SMALL, DEPTHWISE_BF16)
    on_cpu = plan(config, device="cpu")
    assert on_cpu == pytest.approx(measured(DEPTHWISE_BF16)[0], rel=0.01)
    assert on_cpu == pytest.approx(plan(config, device="cuda"), rel=0.01)


def test_without_a_compiler_bf16_of_a_cpu_is_planned_with_the_encoder_in_float32(monkeypatch):
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    values = DEPTHWISE_BF16
    config = override(SMALL, values)
    on_cpu = plan(config, device="cpu")
    assert on_cpu == pytest.approx(measured(values)[0], rel=0.01)
    assert on_cpu > 1.05 * plan(config, device="cuda")
    assert largest_batch(config, on_cpu, device="cpu") < largest_batch(config, on_cpu, device="cuda")


@pytest.mark.parametrize("values", [{}, {"model.head": "dense", "data.num_classes": 300}], ids=["embedding", "dense"])
def test_largest_batch_fits_and_one_image_more_does_not(values):
    config = override(SMALL, {"loss.negatives.kind": "random", **values})
    peaks = {images: plan(override(config, {"trainer.batch_size": images})) for images in (1, 2, 9, 10)}
    for images in (1, 2, 9):
        assert largest_batch(config, peaks[images]) == images, images
    assert largest_batch(config, (peaks[9] + peaks[10]) / 2) == 9
    assert largest_batch(config, 0.99 * peaks[1]) == 0


def test_network_that_cannot_train_on_one_image_fits_two_or_none():
    config = override(SMALL, {"model.arch": "deeplabv3plus"})
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        plan(override(config, {"trainer.batch_size": 1}))
    two = plan(override(config, {"trainer.batch_size": 2}))
    assert largest_batch(config, two) == 2
    assert largest_batch(config, 0.999 * two) == 0


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_budget_that_is_none(budget):
    with pytest.raises(ValueError, match=rf"budget_gib = {budget}: expected more than 0 GiB"):
        largest_batch(SMALL, budget)


def test_classes_come_from_the_config_the_data_set_or_the_caller(squares):
    dense = override(SMALL, {"model.head": "dense"})
    unknown = override(dense, {"data.num_classes": None})
    with pytest.raises(ValueError, match=re.escape("data.num_classes = None and data.path is empty")):
        plan(unknown)
    six = plan(override(dense, {"data.num_classes": 6}))
    assert plan(override(unknown, {"data.path": str(squares)})) == six  # it has 6 classes
    assert plan(unknown, num_classes=6) == six
    assert plan(dense) > six
    with pytest.raises(ValueError, match=r"data.num_classes = 7, but data set squares has only 6"):
        plan(override(dense, {"data.path": str(squares), "data.num_classes": 7}))
    with pytest.raises(ValueError, match=r"loss.negatives.count = 8: 5 classes"):
        plan(override(SMALL, {"data.num_classes": None, "loss.negatives.kind": "nearest"}), num_classes=5)


def test_terabytes_are_planned_and_weights_are_not_fetched():
    values = {"model.head": "dense", "data.crop": 512, "trainer.batch_size": 64, "model.weights": "hub"}
    assert plan(override(SMALL, values), num_classes=100_000) > 10_000


def test_images_of_another_size_are_predicted():
    assert plan_evaluation(SMALL, size=(64, 64)) == plan_evaluation(SMALL)
    # Large enough that buffers of fixed size hardly count.
    square, wide = plan_evaluation(SMALL, size=(512, 512)), plan_evaluation(SMALL, size=(512, 1024))
    assert 1.8 < wide / square < 2.1


def test_model_that_cannot_be_built_is_refused_as_in_training():
    with pytest.raises(ValueError, match=r"model.backbone = 'resnet5O' is not a timm model"):
        plan(override(SMALL, {"model.backbone": "resnet5O"}))


def test_planning_leaves_no_trace():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    plan(override(SMALL, {"loss.negatives.kind": "random", "trainer.checkpoint_activations": True}))
    assert torch.equal(torch.rand(3), expected)
