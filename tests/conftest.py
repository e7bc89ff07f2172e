"""Small data sets, a run that is quick on one, and what else tests of several files share."""

import os
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch

from kiloseg.config import Config
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo, write_info
from kiloseg.data.index import write_index
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.overrides import override

# Ray's workers are nicer than others by 15: beside the other processes of the tests they would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

NUM_CLASSES = 6

ON_RAY = ("tests/tuning/",)

LONGEST_FIRST = (*ON_RAY, "tests/experiments/", "tests/training/", "tests/ops/", "tests/tracking/", "tests/data/")
"""Rooms and files in order of the time that their tests take, as far as the order matters."""


def make_samples(split: str, count: int, size: int = 64):
    """Colored squares on noise: class c has its own color; a stripe is ignored."""
    colors = np.random.default_rng(0).integers(0, 255, (NUM_CLASSES, 3))
    for index in range(count):
        rng = np.random.default_rng([len(split), index])
        mask = np.zeros((size, size), dtype=np.int64)
        for c in rng.permutation(np.arange(1, NUM_CLASSES))[:3]:
            top, left = rng.integers(0, size - 24, 2)
            mask[top : top + 24, left : left + 24] = c
        image = np.clip(colors[mask] + rng.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8)
        mask[:, :2] = IGNORE_ID
        yield Sample(key=f"{split}{index:04d}", image=image, mask=mask, meta={"index": index})


def write_dataset(directory: Path, sizes: dict[str, list[int]]) -> DatasetInfo:
    """Shards of the given numbers of samples for each split."""
    directory.mkdir(parents=True, exist_ok=True)
    splits, rows = {}, []
    for split, counts in sizes.items():
        samples = list(make_samples(split, sum(counts)))
        for number, count in enumerate(counts):
            taken, samples = samples[:count], samples[count:]
            shard, shard_rows = write_shard(directory / f"{split}-{number:06d}.tar", taken, num_classes=NUM_CLASSES)
            splits.setdefault(split, []).append(shard)
            rows += [{"split": split, **row} for row in shard_rows]
    info = DatasetInfo(
        name="squares",
        classes=["background", *(f"square {c}" for c in range(1, NUM_CLASSES))],
        background=0,
        license="none",
        command="tests",
        recipe={"sizes": sizes},
        splits=splits,
    )
    write_index(directory, rows)
    write_info(directory, info)
    return info


def pytest_addoption(parser):
    parser.addoption("--count", type=int, default=1, help="run every test of a fault so many times")


def pytest_generate_tests(metafunc):
    count = metafunc.config.getoption("count")
    if count > 1 and metafunc.definition.get_closest_marker("faults"):
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(1, count + 1))


def pytest_collection_modifyitems(items):
    """Repetitions come in rounds, so that what was counted before a stop counts for every fault alike.

    Within a round the longest rooms come first: processes that share the tests end at about the same time.
    """

    def place(item):
        repetition = item.callspec.params.get("repetition", 0) if hasattr(item, "callspec") else 0
        room = item.path.relative_to(item.config.rootpath).as_posix()
        longest = [number for number, name in enumerate(LONGEST_FIRST) if room.startswith(name)]
        return repetition, *(longest or [len(LONGEST_FIRST)])

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, for their fixtures; those on Ray all stay in one, for its cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return next((room for room in ON_RAY if file.startswith(room)), file)

    config.option.loadscopereorder = False  # files with many tests are not the longest
    return ByFile(config, log)


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("squares")
    write_dataset(directory, {"train": [13, 9, 20], "val": [5, 6]})
    return directory


@pytest.fixture(scope="session")
def numbered(tmp_path_factory) -> Path:
    """42 samples in three shards, each with an identity that can be read off its pixels."""
    from numbered import write_numbered

    return write_numbered(tmp_path_factory.mktemp("numbered"))


def quick_run(squares: Path, output: Path) -> Config:
    """A run of a few seconds."""
    return override(
        Config(),
        {
            "data.path": str(squares),
            "data.crop": 64,
            "data.scale_min": 0.8,
            "data.scale_max": 1.2,
            "data.loader_workers": 0,
            "model.arch": "fpn",
            "model.backbone": "test_resnet",
            "model.embed_dim": 4,
            "loss.negatives.kind": "all",
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-2,
            "optimizer.backbone_lr_factor": 1.0,
            "trainer.steps": 8,
            "trainer.batch_size": 8,
            "trainer.validate_every": 4,
            "trainer.report_every": 2,
            "trainer.output": str(output),
            "trainer.progress": False,
        },
    )


@pytest.fixture
def quick(squares, tmp_path) -> Config:
    """A run of a few seconds."""
    return quick_run(squares, tmp_path / "train")


@pytest.fixture(scope="session")
def trained(squares, tmp_path_factory):
    """The last report of a model that tells the squares apart somewhat."""
    from kiloseg.training.loop import train

    output = tmp_path_factory.mktemp("trained")
    changes = {"trainer.steps": 30, "trainer.validate_every": 0, "data.scale_min": 0.5, "data.scale_max": 2.0}
    return train(override(quick_run(squares, output), changes), lambda report: None)


@pytest.fixture(scope="module")
def one_thread():
    """For tests of small tensors, where threads that wait for each other cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def server():
    """A server that speaks S3, on loopback, with a bucket; what is asked of it is in a URL's query."""
    from moto.server import ThreadedMotoServer  # takes a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with urlopen(Request(f"http://{host}:{port}/bucket", method="PUT")) as answer:
        assert answer.status == 200
    yield f"?endpoint_override={host}:{port}&scheme=http"
    server.stop()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """URL of a folder that does not exist yet; shards that are read from it are copied below `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return f"s3://bucket/{tmp_path.name}/set{server}"


@pytest.fixture(scope="module")
def ray_of_the_module():
    """One Ray on this machine for all tests of a module, gone when they are done: others look whether a study leaves one."""
    from kiloseg.tuning.cluster import ray_connection  # takes two seconds

    with ray_connection():
        yield


@pytest.fixture(scope="session")
def small_packages(tmp_path_factory):
    """Tarballs of three vendors of emoji in a folder, and their descriptions."""
    from small_emoji import write_packages  # takes what draws emoji, which other rooms need not have

    return write_packages(tmp_path_factory.mktemp("tarballs"))


@pytest.fixture(scope="session")
def small_bank(small_packages, tmp_path_factory):
    """The file of a bank of 9 classes of emoji, and its digest."""
    from small_emoji import write_small_bank

    return write_small_bank(tmp_path_factory.mktemp("bank") / "bank.tar", small_packages)


@pytest.fixture(scope="session")
def small_drawings(tmp_path_factory):
    """Tarballs of the vendors that draw emoji in SVG, in a folder, and their descriptions."""
    from small_emoji import write_drawings

    return write_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="session")
def small_bank_2(small_packages, small_drawings, tmp_path_factory):
    """The file of a bank of emoji of all seven vendors, and its digest."""
    from small_emoji import write_small_bank_2

    return write_small_bank_2(tmp_path_factory.mktemp("bank2") / "bank-2.tar", small_packages, small_drawings)
