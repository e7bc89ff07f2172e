"""IoU from three counters against numbers worked out by hand and a whole confusion matrix."""

import math
import multiprocessing
import os
import re

import numpy as np
import pytest
import torch
import torch.distributed

from kiloseg.metrics import IoU


def counted(num_classes, *batches, **keywords):
    metric = IoU(num_classes, **keywords)
    for predicted, labels in batches:
        metric.update(predicted, labels)
    return metric


def by_confusion(num_classes, predicted, labels):
    """The same numbers from a C x C matrix, filled pixel by pixel, in plain Python and NumPy."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for label, guess in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if label != -1:
            matrix[label, guess] += 1
    ious = []
    for c in range(num_classes):
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        ious.append(matrix[c, c] / union if union else math.nan)
    present = [iou for iou in ious if not math.isnan(iou)]
    return sum(present) / len(present), np.trace(matrix) / matrix.sum(), ious


def random_batch(num_classes, seed, shape=(2, 24, 31)):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, num_classes, shape, generator=generator)
    guesses = torch.randint(0, num_classes, shape, generator=generator)
    right = torch.rand(shape, generator=generator) < 0.6
    return torch.where(right & (labels >= 0), labels, guesses), labels


def test_small_example_by_hand():
    labels = torch.tensor([[[0, 0, 0, 1], [1, 2, -1, -1]]])
    predicted = torch.tensor([[[0, 0, 1, 1], [3, 2, 4, 0]]])
    result = counted(6, (predicted, labels)).compute()
    # Class 0: 2 of 3. Class 1: 1 of 3 (labeled twice, predicted twice). Class 2: 1 of 1. Class 3 is predicted but
    # nowhere labeled: 0 of 1. Class 4 is predicted on an ignored pixel only, and 5 nowhere: no IoU.
    assert result["iou_per_class"].tolist()[:4] == pytest.approx([2 / 3, 1 / 3, 1, 0])
    assert result["iou_per_class"][4:].isnan().all()
    assert result["miou"] == pytest.approx((2 / 3 + 1 / 3 + 1 + 0) / 4)
    assert result["pixel_accuracy"] == pytest.approx(4 / 6)
    assert result["iou_per_class"].dtype == torch.float64
    assert isinstance(result["miou"], float)
    assert isinstance(result["pixel_accuracy"], float)


def test_equals_a_confusion_matrix_of_300_classes():
    predicted, labels = random_batch(300, seed=0)
    labels[labels > 280] = 5  # classes that are predicted but never labeled
    predicted[(predicted > 290) | (predicted == 7)] = 11
    labels[(labels > 290) | (labels == 7)] = 11  # and class 7 and the last occur nowhere
    result = counted(300, (predicted, labels)).compute()
    miou, accuracy, ious = by_confusion(300, predicted, labels)
    assert math.isnan(ious[7])
    assert math.isnan(ious[299])
    assert 0.0 in ious
    np.testing.assert_allclose(result["iou_per_class"].numpy(), ious, rtol=1e-12)
    assert result["miou"] == pytest.approx(miou, rel=1e-12)
    assert result["pixel_accuracy"] == pytest.approx(accuracy, rel=1e-12)


def test_batches_add_up():
    batches = [random_batch(20, seed) for seed in range(3)]
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    parts, once = counted(20, *batches), counted(20, whole)
    assert torch.equal(parts.counts_3C, once.counts_3C)
    mean_of_means = sum(counted(20, batch).compute()["miou"] for batch in batches) / 3
    assert parts.compute()["miou"] == once.compute()["miou"] != mean_of_means


def test_counts_beyond_32_bits():
    metric = counted(2, (torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4, dtype=torch.int64)))
    metric.counts_3C *= 2**40
    metric.update(torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.int64))
    assert metric.counts_3C[1, 0] == 2**44 + 1
    assert metric.compute()["pixel_accuracy"] == 2**44 / (2**44 + 1)


def test_another_ignore_index():
    labels = torch.tensor([[[0, 1, 255]]])
    predicted = torch.tensor([[[0, 0, 1]]])
    assert counted(2, (predicted, labels), ignore_index=255).compute()["pixel_accuracy"] == 0.5


@pytest.mark.parametrize("labels", [torch.full((2, 3, 4), -1), torch.empty((0, 3, 4), dtype=torch.int64)])
def test_nothing_labeled_is_nan_and_no_failure(labels):
    result = counted(4, (torch.zeros_like(labels), labels)).compute()
    assert math.isnan(result["miou"])
    assert math.isnan(result["pixel_accuracy"])
    assert result["iou_per_class"].shape == (4,)
    assert result["iou_per_class"].isnan().all()


def test_nothing_right_is_zero():
    result = counted(3, (torch.ones(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))).compute()
    assert result["miou"] == result["pixel_accuracy"] == 0.0
    assert result["iou_per_class"].tolist()[:2] == [0.0, 0.0]
    assert math.isnan(result["iou_per_class"][2])


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([[[0, 3]]], [[[0, 1]]], "predictions hold ids 0 to 3: expected 0 to 2"),
        ([[[0, -1]]], [[[0, 1]]], "predictions hold ids -1 to 0: expected 0 to 2"),
        ([[[0, 1]]], [[[0, 3]]], "labels hold ids 0 to 3: expected 0 to 2"),
        ([[[0, 1]]], [[[-2, 1]]], "labels hold ids -2 to 1: expected 0 to 2"),
        ([[[0, 1]]], [[[0], [1]]], "predictions (1, 1, 2) and labels (1, 2, 1): expected equal shapes"),
        ([[0, 1]], [[[0, 1]]], "predictions (1, 2) and labels (1, 1, 2): expected equal shapes"),
    ],
)
def test_wrong_ids_and_shapes_are_refused_and_not_counted(predicted, labels, message):
    metric = IoU(3)
    with pytest.raises(ValueError, match=re.escape(message)):
        metric.update(torch.tensor(predicted), torch.tensor(labels))
    assert not metric.counts_3C.any()


def test_any_prediction_may_stand_on_an_ignored_pixel():
    result = counted(3, (torch.tensor([[[99, 1]]]), torch.tensor([[[-1, 1]]]))).compute()
    assert result["miou"] == result["pixel_accuracy"] == 1.0


def reduced_in_group(rank, seeds, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29531")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metric = counted(300, *(random_batch(300, seed) for seed in seeds))
    metric.all_reduce()
    results.put((metric.counts_3C.tolist(), metric.compute()["miou"]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_workers_count_as_one():
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=reduced_in_group, args=(rank, seeds, results))
        for rank, seeds in enumerate([[0, 1], [2]])
    ]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    whole = counted(300, *(random_batch(300, seed) for seed in range(3)))
    assert outcomes == [(whole.counts_3C.tolist(), whole.compute()["miou"])] * 2


def test_without_a_group_nothing_is_summed():
    metric = counted(20, random_batch(20, 0))
    before = metric.counts_3C.clone()
    metric.all_reduce()
    assert torch.equal(metric.counts_3C, before)
