"""Peak memory against torch's own tracker and against sizes worked out by hand."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from kiloseg.config import Config, Loss, Model, Negatives, Optimizer
from kiloseg.memory import PeakMemory, is_out_of_memory
from kiloseg.memory.live_tensors import LiveTensors
from kiloseg.models import build_segmenter
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.step import training_step

MIB = 2**20


def test_views_count_once_and_freed_storages_no_more():
    live = LiveTensors()
    kept = torch.empty(MIB, dtype=torch.uint8)
    live.add(kept, kept[:5])
    with live:
        first = torch.zeros(2 * MIB, dtype=torch.uint8)
        view = first.view(2, MIB)[1]
        assert live.live_bytes == 3 * MIB
        del first
        assert live.live_bytes == 3 * MIB, "a view keeps its storage alive"
        del view
        assert live.live_bytes == MIB
        torch.zeros(MIB, dtype=torch.uint8)
    assert live.peak_bytes == 3 * MIB


def measured(head, num_classes, images=4, side=64):
    torch.manual_seed(0)
    config = Config(
        model=Model(arch="linknet", backbone="test_resnet", head=head),
        loss=Loss(negatives=Negatives(kind="all")),
        optimizer=Optimizer(name="adamw"),
    )
    segmenter = build_segmenter(config, num_classes)
    optimizer = build_optimizer(segmenter, config.optimizer)
    batch = torch.zeros(images, 3, side, side, dtype=torch.uint8), torch.randint(0, num_classes, (images, side, side))
    peak = PeakMemory(torch.device("cpu"), segmenter, optimizer)
    for _ in range(2):
        with peak.step(*batch):
            training_step(config, segmenter, optimizer, *batch)
    tracker = MemTracker()
    tracker.track_external(segmenter, optimizer, *batch)
    with tracker:
        training_step(config, segmenter, optimizer, *batch)
    return peak.gib, max(sizes["Total"] for sizes in tracker.get_tracker_snapshot("peak").values()) / 2**30


@pytest.mark.parametrize("head", ["embedding", "dense"])
def test_equals_torch_tracker(head):
    ours, torchs = measured(head, 30)
    assert ours == pytest.approx(torchs, rel=0.01)


def test_embedding_head_does_not_grow_with_classes_and_dense_does():
    few, many = (measured("embedding", num_classes, images=8, side=128)[0] for num_classes in (20, 1000))
    assert many < 1.05 * few
    assert measured("dense", 1000)[0] > 5 * measured("dense", 20)[0]


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    wrapped = ValueError("step failed")
    wrapped.__cause__ = failed.value
    assert is_out_of_memory(wrapped)
