"""The loop: it learns, resumes to the same numbers, agrees between one worker and two, and stops clearly."""

import dataclasses
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed
from conftest import quick_run
from damage import spoil
from heads import free_ports
from torch.nn.parallel import DistributedDataParallel

from kiloseg.config import Model
from kiloseg.data.description import read_info, write_info
from kiloseg.data.reading.batches import Batch
from kiloseg.data.reading.loader import validation_batches
from kiloseg.memory import plan, plan_evaluation
from kiloseg.models.heads import EmbeddingHead, PrototypeHead
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.training import loop
from kiloseg.training.checkpoint import load_checkpoint
from kiloseg.training.evaluation import load_segmenter, predict_samples
from kiloseg.training.loop import NonFiniteLossError, PreemptedError, train
from kiloseg.training.meters import RunningMean
from kiloseg.training.step import training_step

MEASURED = ("train/images_per_s",)


def run(config, **keywords):
    reports = []
    last = train(config, reports.append, **keywords)
    return reports, last


def numbers(report):
    return {name: value for name, value in report.items() if name not in MEASURED and name != "checkpoint"}


def test_learns_and_reports(quick):
    reports, last = run(override(quick, {"trainer.steps": 60, "trainer.validate_every": 30}))
    losses = [report["train/loss"] for report in reports]
    assert losses[-1] < 0.5 * losses[0]
    assert last["val/miou"] > 0.2  # all background gives 0.1
    assert len(last["val/iou_per_class"]) == 6
    assert [report["step"] for report in reports if "val/miou" in report] == [30, 60]
    assert [report["step"] for report in reports] == list(range(2, 61, 2))
    assert last["peak_memory_kind"] == ("cuda_allocated" if torch.cuda.is_available() else "cpu_live_tensors")
    assert 0.01 < last["peak_memory_gib"] < 2
    assert 0.01 < last["val/peak_memory_gib"] < 2
    assert last["val/peak_memory_gib"] != last["peak_memory_gib"]
    assert ("peak_memory_reserved_gib" in last) == torch.cuda.is_available()
    assert last["train/images_per_s"] > 0


def test_further_validation_splits_are_reported_by_name(quick, squares, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(squares, folder)
    info = read_info(folder)
    splits = {**info.splits, "again": info.shards("val"), "seen": info.shards("train")[:1]}
    write_info(folder, dataclasses.replace(info, splits=splits))
    settings = {"data.path": str(folder), "data.val_splits": ("val", "again", "seen"), "trainer.output": str(tmp_path)}
    config = override(quick, settings)
    reports, last = run(config)
    assert last["again/miou"] == last["val/miou"] and last["again/pixel_accuracy"] == last["val/pixel_accuracy"]
    assert last["seen/miou"] != last["val/miou"]
    alone = train(override(quick, {"trainer.output": str(tmp_path / "alone")}), lambda report: None)
    assert {name: last[name] for name in numbers(alone)} == numbers(alone), "more splits change no number"
    again, kept = run(config, resume=reports[-1]["checkpoint"])
    assert not again and numbers(kept) == numbers(last)
    with pytest.raises(DataError, match="none"):
        train(override(config, {"data.val_splits": ("val", "none")}), lambda report: None)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_resumed_run_equals_uninterrupted(quick, tmp_path, loader_workers):
    config = override(quick, {"trainer.keep_checkpoints": 9, "data.loader_workers": loader_workers})
    config = override(config, {"loss.negatives.kind": "random", "loss.negatives.count": 2})
    reports, last = run(config)
    halfway = tmp_path / "train" / "step-00000004.pt"
    resumed_reports, resumed = run(override(config, {"trainer.output": str(tmp_path / "other")}), resume=halfway)
    assert [numbers(report) for report in resumed_reports] == [
        numbers(report) for report in reports if report["step"] > 4
    ]
    assert resumed["val/iou_per_class"] == last["val/iou_per_class"]
    for name, tensor in load_checkpoint(tmp_path / "train" / "step-00000008.pt")["model"].items():
        assert torch.equal(tensor, load_checkpoint(tmp_path / "other" / "step-00000008.pt")["model"][name]), name


def test_resumption_with_other_loader_processes_is_exact(quick, tmp_path):
    reports, last = run(override(quick, {"trainer.keep_checkpoints": 9, "data.loader_workers": 2}))
    other = override(quick, {"trainer.output": str(tmp_path / "other"), "data.loader_workers": 1})
    resumed_reports, resumed = run(other, resume=tmp_path / "train" / "step-00000004.pt")
    assert [numbers(report) for report in resumed_reports] == [
        numbers(report) for report in reports if report["step"] > 4
    ]
    assert numbers(resumed) == numbers(last)


def test_frozen_backbone_stays_as_it_is_and_takes_less_memory(quick, tmp_path):
    frozen = override(quick, {"optimizer.backbone_lr_factor": 0.0})
    _, last = run(frozen)
    begin, end = (load_checkpoint(tmp_path / "train" / f"step-0000000{step}.pt")["model"] for step in (4, 8))
    weights = [name for name in begin if name.endswith("weight")]
    still = {name for name in weights if torch.equal(begin[name], end[name])}
    assert still == {name for name in weights if name.startswith("network.encoder.")}
    assert plan(frozen) == pytest.approx(last["peak_memory_gib"], rel=0.01)
    assert plan(frozen) < 0.9 * plan(quick)


def preempted_after(times):
    """Says yes when it has been asked so many times."""
    counts = iter(range(times + 1))
    return lambda: next(counts) == times


@pytest.fixture(scope="module")
def uninterrupted(squares, tmp_path_factory):
    """What preempted runs are compared with: a run's settings, reports and result."""
    quick = quick_run(squares, tmp_path_factory.mktemp("uninterrupted"))
    config = override(quick, {"trainer.report_every": 3, "data.val_batch_size": 8})
    return config, *run(config)


@pytest.mark.parametrize("times", [0, 3, 4, 5, 6, 11])
def test_preempted_run_goes_on_exactly(uninterrupted, tmp_path, times):
    """After any step, before any batch of a validation, before the first report and at the end of the run."""
    config, reports, last = uninterrupted
    preempted = override(config, {"trainer.output": str(tmp_path / "preempted")})
    before = []
    with pytest.raises(
        PreemptedError, match=r"preempted after step \d; resume from .*preempted/step-0000000\d\.pt"
    ) as error:
        train(preempted, before.append, preempted=preempted_after(times))
    assert load_checkpoint(error.value.checkpoint)["step"] == error.value.step
    after, resumed = run(preempted, resume=error.value.checkpoint)
    assert [numbers(report) for report in before + after] == [numbers(report) for report in reports]
    assert numbers(resumed) == numbers(last)
    expected = load_checkpoint(Path(config.trainer.output) / "step-00000008.pt")["model"]
    for name, tensor in load_checkpoint(tmp_path / "preempted" / "step-00000008.pt")["model"].items():
        assert torch.equal(tensor, expected[name]), name


def test_error_of_preemption_survives_pickling():
    error = pickle.loads(pickle.dumps(PreemptedError(3, "step-00000003.pt")))
    assert (error.step, error.checkpoint) == (3, "step-00000003.pt")
    assert str(error) == "preempted after step 3; resume from step-00000003.pt"


def test_checkpoint_without_the_keys_of_today_goes_on(quick, tmp_path):
    """As those of the first versions of the format are."""
    config = override(quick, {"trainer.keep_checkpoints": 9})
    reports, last = run(config)
    stored = load_checkpoint(tmp_path / "train" / "step-00000004.pt")
    for name in ("location", "reports", "peaks", "bad_samples", "unreported", "mean_loss"):
        del stored[name]
    torch.save(stored, tmp_path / "old.pt")
    resumed_reports, resumed = run(config, resume=tmp_path / "old.pt")
    assert [numbers(report) for report in resumed_reports] == [
        numbers(report) for report in reports if report["step"] > 4
    ]
    assert numbers(resumed) == numbers(last)


def test_run_whose_validation_failed_goes_on_exactly(quick, tmp_path, monkeypatch):
    """Validation needs memory of its own; what was trained is kept before it."""
    reports, last = run(quick)
    failing = override(quick, {"trainer.output": str(tmp_path / "failing")})

    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError("out of memory")

    before = []
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError) as error:
        patch.setattr("kiloseg.training.loop.evaluate", full)
        train(failing, before.append)
    assert f"is kept in {tmp_path}/failing/step-00000004.pt" in error.value.__notes__[0]
    after, resumed = run(failing, resume=tmp_path / "failing")
    assert [numbers(report) for report in before + after] == [numbers(report) for report in reports]
    assert numbers(resumed) == numbers(last)


def test_a_checkpoint_is_written_before_every_validation(quick, monkeypatch):
    """However fast validations are, so that a process that is killed in one has lost no step."""
    found = []
    whole = loop.evaluate

    def looking(*arguments, **keywords):
        newest = load_checkpoint(max(Path(quick.trainer.output).glob("step-*.pt")))
        found.append((newest["step"], newest["unreported"]))
        return whole(*arguments, **keywords)

    monkeypatch.setattr(loop, "evaluate", looking)
    run(override(quick, {"trainer.validate_every": 2}))
    assert found == [(2, True), (4, True), (6, True), (8, True)]


def test_what_was_trained_before_a_later_validation_is_kept_too(quick, monkeypatch):
    whole = loop.evaluate
    calls = iter(range(9))

    def second_fails(*arguments, **keywords):
        if next(calls) == 1:
            raise MemoryError("not enough")
        return whole(*arguments, **keywords)

    monkeypatch.setattr(loop, "evaluate", second_fails)
    with pytest.raises(MemoryError) as error:
        run(quick)
    (note,) = error.value.__notes__
    assert note.endswith("is kept in " + str(Path(quick.trainer.output) / "step-00000008.pt"))
    assert load_checkpoint(Path(quick.trainer.output) / "step-00000008.pt")["step"] == 8
    _, last = run(quick, resume=quick.trainer.output)
    assert last.step == 8


def test_network_that_cannot_take_a_batch_names_the_settings(quick):
    with pytest.raises(
        ValueError, match=r"'deeplabv3plus' over .*'test_resnet'.*data.crop = 64 px, trainer.batch_size = 1 "
    ):
        run(override(quick, {"model.arch": "deeplabv3plus", "trainer.batch_size": 1}))


def test_finished_run_is_not_run_again(quick, tmp_path):
    _, last = run(quick)
    reports, again = run(quick, resume=tmp_path / "train")
    assert reports == []
    assert numbers(again) == numbers(last)


def test_resume_of_another_run_is_refused(quick, tmp_path):
    run(override(quick, {"trainer.steps": 1}))
    with pytest.raises(ValueError, match=r"model.embed_dim was 4, is 6"):
        run(override(quick, {"trainer.steps": 1, "model.embed_dim": 6}), resume=tmp_path / "train")


def test_damaged_checkpoint_is_passed_over(quick, tmp_path):
    config = override(quick, {"trainer.keep_checkpoints": 9})
    _, last = run(config)
    newest = tmp_path / "train" / "step-00000008.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step-00000008.pt is damaged"):
        reports, again = run(config, resume=tmp_path / "train")
    assert reports[-1]["step"] == 8
    assert numbers(again) == numbers(last)


def test_only_newest_checkpoints_are_kept(quick, tmp_path):
    run(override(quick, {"trainer.validate_every": 2, "trainer.keep_checkpoints": 2}))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["step-00000006.pt", "step-00000008.pt"]


def test_loss_that_is_not_finite_stops_the_run(quick):
    with pytest.raises(NonFiniteLossError, match=r"nan before step \d+; lower optimizer.lr"):
        run(override(quick, {"optimizer.name": "sgd", "optimizer.lr": 1e30, "trainer.steps": 40}))


def test_peaks_are_those_that_are_planned(quick):
    config = override(quick, {"trainer.steps": 3, "trainer.validate_every": 0})
    _, last = run(config)
    assert last["peak_memory_gib"] == pytest.approx(plan(config), rel=0.03)
    # The 11 images of 64 px are one batch.
    config = override(config, {"data.val_batch_size": 11})
    assert last["val/peak_memory_gib"] == pytest.approx(plan_evaluation(config), rel=0.03)


def test_run_goes_on_with_less_memory(quick, tmp_path):
    run(override(quick, {"trainer.keep_checkpoints": 9}))
    less = override(quick, {"trainer.checkpoint_activations": True})
    reports, last = run(less, resume=tmp_path / "train" / "step-00000004.pt")
    assert [report["step"] for report in reports] == [6, 8]
    assert last["train/loss"] > 0


def test_dense_head_learns(quick):
    reports, last = run(override(quick, {"model.head": "dense", "trainer.steps": 40, "trainer.validate_every": 0}))
    assert reports[-1]["train/loss"] < 0.5 * reports[0]["train/loss"]
    assert last["val/miou"] > 0.12


def test_bf16_autocast(quick):
    _, last = run(override(quick, {"trainer.precision": "bf16", "trainer.steps": 2}))
    assert torch.isfinite(torch.tensor(last["train/loss"]))


def test_checkpoint_gives_the_model_back(quick, tmp_path):
    _, last = run(quick)
    segmenter, config = load_segmenter(tmp_path / "train" / "step-00000008.pt")
    assert config == quick
    batches = list(validation_batches(config.data, read_info(config.data.path)))
    samples = predict_samples(segmenter, batches, 3)
    assert len(samples) == 3
    right = torch.cat([(segmenter.predict(images) == labels)[labels >= 0] for images, labels in batches])
    assert right.double().mean().item() == pytest.approx(last["val/pixel_accuracy"])


def test_fewer_classes_are_one_table_away(quick):
    _, last = run(override(quick, {"data.num_classes": 3, "trainer.steps": 1}))
    assert len(last["val/iou_per_class"]) == 3


def in_group(rank, world, port, tasks, results):
    """What each process of a group does: it answers one task after the other."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    while (task := tasks.get()) is not None:
        work, arguments = task
        results.put((rank, work(rank, world, *arguments)))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_workers():
    """Runs a function in each of two processes of one group; what they return. All tests share them, and import torch once."""
    (port,) = free_ports(1)
    context = multiprocessing.get_context("spawn")
    tasks, results = [context.Queue() for _ in range(2)], context.Queue()
    processes = [context.Process(target=in_group, args=(rank, 2, port, tasks[rank], results)) for rank in range(2)]
    for process in processes:
        process.start()

    def run(work, *arguments):
        for queue in tasks:
            queue.put((work, arguments))
        outcomes = dict(results.get(timeout=120) for _ in processes)
        return outcomes[0], outcomes[1]

    yield run
    for queue in tasks:
        queue.put(None)
    for process in processes:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def train_in_group(rank, world, config):
    return run(config)


def test_two_workers_end_with_the_same_metrics(quick, on_two_workers):
    config = override(quick, {"trainer.steps": 4, "trainer.validate_every": 2})
    (reports, first), (_, second) = on_two_workers(train_in_group, config)
    assert first["val/iou_per_class"] == second["val/iou_per_class"]
    assert [report["step"] for report in reports] == [2, 4]
    assert "checkpoint" in first
    assert "checkpoint" not in second, "only rank 0 writes"


@pytest.mark.filterwarnings("ignore:.*it is left out")
def test_resumed_run_knows_the_bad_samples_it_has_met(quick, squares, tmp_path):
    """Else a run that is killed often enough could do without any number of them."""
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    allowed = len(spoil(data / "train-000002.tar"))
    config = override(quick, {"data.path": str(data), "data.max_bad_samples": allowed, "trainer.keep_checkpoints": 9})
    (*_, halfway, _, _), last = run(config)
    assert 0 < halfway["train/bad_samples"] < last["train/bad_samples"]
    checkpoint = tmp_path / "train" / f"step-{halfway['step']:08d}.pt"
    elsewhere = override(config, {"trainer.output": str(tmp_path / "other")})
    _, resumed = run(elsewhere, resume=checkpoint)
    assert resumed["bad_samples"] == last["bad_samples"]
    one_less = override(elsewhere, {"data.max_bad_samples": last["train/bad_samples"] - 1})
    with pytest.raises(DataError, match=f"max_bad_samples = {last['train/bad_samples'] - 1} allows no more"):
        run(one_less, resume=checkpoint)


def test_bad_samples_of_all_workers_are_named(quick, squares, tmp_path, on_two_workers):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    keys = spoil(data / "train-000002.tar")
    changes = {"data.path": str(data), "data.max_bad_samples": len(keys), "data.loader_workers": 1, "trainer.steps": 16}
    changes["trainer.validate_every"] = 16  # each time processes that load are started
    (reports, first), (_, second) = on_two_workers(train_in_group, override(quick, changes))
    assert first["bad_samples"] == second["bad_samples"]
    assert first["train/bad_samples"] == len(first["bad_samples"]) == len(keys)
    assert all(any(f"sample {key} cannot be decoded" in text for text in first["bad_samples"]) for key in keys)
    assert reports[-1]["train/bad_samples"] == len(keys)
    assert "bad_samples" not in reports[0], "only validations say"
    met = load_checkpoint(first["checkpoint"])["bad_samples"]["met"]
    assert sorted({tuple(sample) for sample in met.flatten(end_dim=1).tolist()} - {(-1, -1)}) == [
        (2, number) for number in range(0, 20, 2)
    ]


class PerPixel(torch.nn.Module):
    """A network without batch statistics, so that halves of a batch give the same outputs as the whole."""

    def __init__(self, loss, head=EmbeddingHead):
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Conv2d(3, 4, 1)
        self.head = head(Model(embed_dim=4, prototypes=1), loss, 5)

    def forward(self, images):
        return self.head(self.network(images.float()))


def uneven_batch():
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 5, (4, 8, 8), generator=generator)
    labels[:2, 1:] = -1  # the first worker has an eighth of the other's labeled pixels
    return Batch(torch.randint(0, 9, (4, 3, 8, 8), generator=generator), labels)


def stepped(model, batch, config, world):
    """The loss of a step, as a run reports it, and the parameters after it."""
    mean_loss = RunningMean(torch.device("cpu"))
    mean_loss.add(training_step(config, model, torch.optim.SGD(model.parameters(), lr=1.0), *batch, world=world))
    mean_loss.average(world)
    return [mean_loss.value(1), *(tensor.tolist() for tensor in model.state_dict().values())]


def step_in_group(rank, world, config, head):
    images, labels = uneven_batch()
    mine = slice(2 * rank, 2 * rank + 2)
    model = DistributedDataParallel(PerPixel(config.loss, head))
    return stepped(model, Batch(images[mine], labels[mine]), config, world)


@pytest.mark.parametrize("head", [EmbeddingHead, PrototypeHead])
@pytest.mark.parametrize("parts", [None, 1])
def test_step_of_two_workers_equals_one_worker_with_the_whole_batch(quick, on_two_workers, parts, head):
    quick = override(quick, {"loss.prototype_momentum": 0.5})
    whole = stepped(PerPixel(quick.loss, head), uneven_batch(), quick, 1)
    start = [None, *(tensor.tolist() for tensor in PerPixel(quick.loss, head).state_dict().values())]
    first, second = on_two_workers(step_in_group, override(quick, {"trainer.micro_batch_size": parts}), head)
    for mine, other, expected, before in zip(first, second, whole, start, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(expected), rtol=1e-5, atol=1e-6)
        assert mine == other
        assert expected != before
