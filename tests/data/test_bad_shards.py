"""What is wrong with a shard, or with what a run asks of it, is said with what was expected and the remedy."""

import dataclasses
import re
import tarfile

import numpy as np
import pytest
from bad_data import described, listed, read_all, refused, train_all, write_good

from kiloseg.config import Data
from kiloseg.data.classes import count_classes
from kiloseg.data.description import AGAIN, check_shards, read_info, write_info
from kiloseg.data.reading.loader import TrainBatches, validation_batches


@pytest.fixture
def good(tmp_path):
    """Four samples in one shard, without a fault."""
    return write_good(tmp_path)


def test_without_a_fault_it_reads(good):
    assert [len(batch.labels) for batch in read_all(good)] == [4]
    assert [len(batch.labels) for batch in train_all(good)] == [2, 2]


# Shards


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_shard(good, split):
    (good / "part-000000.tar").unlink()
    refused(
        lambda: read_all(good) if split == "val" else train_all(good),
        f"{good}/part-000000.tar is missing, though dataset.json lists it",
        f"restore it or rebuild: python make.py --out {good} --rebuild",
    )


def test_shard_that_vanishes_after_the_check(good):
    batches = validation_batches(Data(path=str(good), loader_workers=0), read_info(good))
    (good / "part-000000.tar").unlink()
    refused(lambda: list(batches), f"{good}/part-000000.tar is missing; restore it or build the data set again")


@pytest.mark.parametrize("split", ["train", "val"])
def test_shard_cut_short_is_found_before_anything_is_read(good, split):
    path = good / "part-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    info = read_info(good)
    data = Data(path=str(good), loader_workers=0)
    refused(
        lambda: validation_batches(data, info) if split == "val" else TrainBatches(data, info, batch_size=2, seed=0),
        f"{path} has {len(whole) - 1} bytes, expected {len(whole)}; restore it or rebuild: python make.py --out {good} --rebuild",
    )
    path.write_bytes(whole)
    check_shards(good, info, split)


def members_of(path):
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize("member", ["c.png", "c.mask.png"])
def test_shard_cut_in_the_middle_of_a_member(good, member):
    path = good / "part-000000.tar"
    cut = members_of(path)[member]
    path.write_bytes(path.read_bytes()[: cut.offset_data + cut.size // 2])
    described(good, [listed(path, 4)])
    message = refused(lambda: read_all(good), f"{path} cannot be read after ", f"restore it or {AGAIN}")
    assert int(re.search(r"after (\d) samples", message)[1]) in (1, 2)


def test_shard_of_the_right_size_with_other_content(good):
    path = good / "part-000000.tar"
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    refused(
        lambda: read_all(good),
        f"{path} cannot be read after 0 samples (",
        f"restore it or {AGAIN}",
    )


def test_shard_of_zeros_is_an_empty_one(good):
    path = good / "part-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    refused(
        lambda: read_all(good),
        f"{path} ends after 0 samples, dataset.json lists 4; restore it or {AGAIN}",
    )


def test_shard_that_ends_between_two_samples(good):
    path = good / "part-000000.tar"
    path.write_bytes(path.read_bytes()[: members_of(path)["d.png"].offset])
    described(good, [listed(path, 4)])
    refused(
        lambda: read_all(good),
        f"{path} ends after 3 samples, dataset.json lists 4; restore it or {AGAIN}",
    )


def test_fault_in_a_loader_process_arrives_with_its_message(good):
    path = good / "part-000000.tar"
    path.write_bytes(path.read_bytes()[: members_of(path)["d.png"].offset])
    described(good, [listed(path, 4)])
    data = Data(path=str(good), crop=32, loader_workers=2)
    info = read_info(good)
    training, validation = TrainBatches(data, info, batch_size=2, seed=0), validation_batches(data, info)
    for batches in (training.epoch(0), iter(validation)):
        refused(lambda batches=batches: list(batches), f"{path} ends after 3 samples, dataset.json lists 4; restore it")
    # Left to the garbage collector, torch would wait 5 s for each process.
    training._loader._iterator._shutdown_workers()


# What a run asks for


def test_missing_split(good):
    info = read_info(good)
    only_train = dataclasses.replace(info, splits={"train": info.splits["train"]})
    write_info(good, only_train)
    refused(lambda: read_all(good), "data set bad has no split 'val'; it has: train")
    write_info(good, dataclasses.replace(info, splits={}))
    refused(lambda: train_all(good), "data set bad has no split 'train'; it has: none")


def test_fewer_samples_than_a_batch(good):
    data = Data(path=str(good), crop=32, loader_workers=0)
    refused(
        lambda: TrainBatches(data, read_info(good), batch_size=5, seed=0),
        f"{good} has 4 training samples, fewer than one batch of 5; lower trainer.batch_size",
    )
    assert TrainBatches(data, read_info(good), batch_size=4, seed=0).steps_per_epoch == 1


@pytest.mark.parametrize(("batch_size", "world"), [(4, 3), (3, 2), (1, 2)])
def test_batch_that_workers_cannot_share(good, batch_size, world):
    data = Data(path=str(good), crop=32, loader_workers=0)
    message = f"trainer.batch_size = {batch_size} cannot be split over {world} workers; use a multiple of {world}"
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainBatches(data, read_info(good), batch_size=batch_size, seed=0, rank=0, world=world)


def test_more_classes_than_the_data_set_has(good):
    info = read_info(good)
    message = "data.num_classes = 4, but data set bad has only 3 classes"
    # A setting that cannot work, and no damaged data: its trial is not tried again.
    with pytest.raises(ValueError, match=re.escape(message)):
        count_classes(Data(num_classes=4), info)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_all(good, num_classes=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        train_all(good, num_classes=4)
    assert count_classes(Data(num_classes=3), info) == 3
