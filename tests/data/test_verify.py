"""verify names every kind of damage, all of them at once; describe counts what it says by hand."""

import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_build import build_numbered

from kiloseg.data import describe
from kiloseg.data.codec import IGNORE_ID, encode_mask
from kiloseg.data.description import DatasetInfo, read_info, write_info
from kiloseg.data.index import class_samples, read_index, write_index
from kiloseg.data.verify import verify
from kiloseg.data.writing.build import build, plan_shards
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError

SHARD = "train-000001.tar"  # samples train00004 to train00007
KEY = "train00005"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    build_numbered(folder)
    return folder


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "set")


def problems(folder):
    return verify(str(folder), processes=1)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def replaced(folder, change):
    """Writes the shard with other members, and notes its new size and digest; `change` takes and gives a list of them."""
    with tarfile.open(folder / SHARD) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(folder / SHARD, "w") as tar:
        for name, content in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = (folder / SHARD).read_bytes()
    listed(folder, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def listed(folder, **changes):
    info = read_info(folder)
    train = [dataclasses.replace(shard, **changes) if shard.name == SHARD else shard for shard in info.splits["train"]]
    write_info(folder, dataclasses.replace(info, splits={**info.splits, "train": train}))


def part(suffix, content):
    """Replaces a part of the sample, or leaves it out for None."""

    def change(members):
        changed = [(name, content if name == f"{KEY}.{suffix}" else old) for name, old in members]
        return [(name, new) for name, new in changed if new is not None]

    return lambda folder: replaced(folder, change)


def rows(change):
    """Changes the index as a list of rows."""

    def damage(folder):
        table = read_index(folder).to_pylist()
        change(table)
        write_index(folder, table)

    return damage


def flip(folder):
    content = bytearray((folder / SHARD).read_bytes())
    content[1536 - 20] ^= 0xFF  # in the padding behind the first header, where nothing else notices
    (folder / SHARD).write_bytes(content)


def cut(folder):
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:700])


def strange_id():
    mask = np.arange(256).reshape(16, 16)
    mask[0, :2] = 300, 65534
    return encode_mask(mask)


GRAY = encoded(np.zeros((16, 16), np.uint8))
DAMAGE = {
    "lost shard": (lambda folder: (folder / SHARD).unlink(), ["{shard}: is missing, though dataset.json lists it"]),
    "changed byte": (flip, ["{shard}: has sha256 "]),
    "cut shard": (cut, ["{shard}: has 700 bytes, expected ", "{shard}: cannot be read after 0 samples: "]),
    "no tar": (
        lambda folder: (folder / SHARD).write_bytes(b"x" * 20480),
        ["{shard}: has sha256", "{shard}: cannot be read"],
    ),
    "zeros": (
        lambda folder: (folder / SHARD).write_bytes(bytes((folder / SHARD).stat().st_size)),
        [
            "{shard}: has sha256",
            "{shard}: has 0 samples, dataset.json lists 4",
            *["in index.parquet, but not in the shard"] * 4,
        ],
    ),
    "wrong size listed": (lambda folder: listed(folder, bytes=5), ["{shard}: has 20480 bytes, expected 5"]),
    "wrong count listed": (lambda folder: listed(folder, samples=5), ["{shard}: has 4 samples, dataset.json lists 5"]),
    "unlisted shard": (
        lambda folder: shutil.copy(folder / SHARD, folder / "train-000009.tar"),
        ["train-000009.tar: a shard that dataset.json does not list"],
    ),
    "no image": (part("jpg", None), ["{sample}: expected one image (.jpg or .png); it has: json, mask.png"]),
    "no mask": (part("mask.png", None), ["{sample}: expected a mask (.mask.png); it has: jpg, json"]),
    "no json": (part("json", None), ["{sample}: its .json is missing or cannot be read"]),
    "broken json": (part("json", b"{"), ["{sample}: its .json is missing or cannot be read"]),
    "json list": (part("json", b"[]"), ["{sample}: its .json is not an object"]),
    "broken image": (
        part("jpg", b"junk"),
        ["{sample}: its .jpg cannot be decoded: its 4 bytes are not such a file"],
    ),
    "8-bit mask": (part("mask.png", GRAY), ["{sample}: its .mask.png cannot be decoded: mask is a PNG of mode L"]),
    "other size": (
        part("jpg", encoded(np.zeros((16, 8, 3), np.uint8), "JPEG")),
        ["{sample}: mask is (16, 16), its image (16, 8)", "{sample}: index.parquet says width = 16, the shard 8"],
    ),
    "ids outside": (
        part("mask.png", strange_id()),
        [
            "{sample}: mask has class id 300, 65534, expected 0 to 299 or 65535 for ignore",
            "{sample}: index.parquet says class_ids = [",
        ],
    ),
    "two images": (
        lambda folder: replaced(folder, lambda members: [*members[:4], (f"{KEY}.png", GRAY), *members[4:]]),
        ["{sample}: expected one image (.jpg or .png); it has: jpg, json, mask.png, png"],
    ),
    "sample left out": (
        lambda folder: replaced(folder, lambda members: [pair for pair in members if KEY not in pair[0]]),
        ["{shard}: has 3 samples, dataset.json lists 4", "{sample}: in index.parquet, but not in the shard"],
    ),
    "sample twice": (
        lambda folder: replaced(folder, lambda members: members + [pair for pair in members if KEY in pair[0]]),
        ["{sample}: its key occurs twice", "{shard}: has 5 samples, dataset.json lists 4"],
    ),
    "file without suffix": (
        lambda folder: replaced(folder, lambda members: [("README", b"hello"), *members]),
        ["{shard}: cannot be read after 0 samples: member 'README' is not named KEY.SUFFIX"],
    ),
    "no index": (lambda folder: (folder / "index.parquet").unlink(), ["index.parquet does not exist; build"]),
    "broken index": (lambda folder: (folder / "index.parquet").write_bytes(b"PAR1"), ["index.parquet is damaged ("]),
    "row left out": (rows(lambda table: table.pop(5)), ["{sample}: not in index.parquet"]),
    "row twice": (rows(lambda table: table.append(table[5])), ["{sample}: two rows in index.parquet"]),
    "row of another shard": (
        rows(lambda table: table.append(table[5] | {"shard": "train-000077.tar"})),
        ["index.parquet: 1 rows of shard train-000077.tar in split train, which dataset.json does not list"],
    ),
    "wrong height": (
        rows(lambda table: table[5].update(height=17)),
        ["{sample}: index.parquet says height = 17, the shard 16"],
    ),
    "wrong pixels": (
        rows(lambda table: table[5]["class_pixels"].__setitem__(0, 2)),
        ["{sample}: index.parquet says class_pixels = [2, 1, 1"],
    ),
}


def test_whole_data_set_has_no_problems(built):
    assert problems(built) == []
    assert verify(f"file://{built}", processes=2) == []


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(copy, damage, expected):
    damage(copy)
    found = problems(copy)
    assert len(found) == len(expected), found
    for problem, fragment in zip(found, expected, strict=True):
        assert fragment.format(shard=copy / SHARD, sample=f"{copy / SHARD}: sample {KEY}") in problem
        assert str(copy) in problem


DESCRIPTION_DAMAGE = {
    "cut description": lambda folder: (folder / "dataset.json").write_text('{"format": "kiloseg-shards-1", "na'),
    "empty description": lambda folder: (folder / "dataset.json").write_bytes(b""),
    "other format": lambda folder: (folder / "dataset.json").write_text('{"format": "kiloseg-shards-0"}'),
}


@pytest.mark.parametrize(
    "damage",
    [*(damage for damage, _ in DAMAGE.values()), *DESCRIPTION_DAMAGE.values()],
    ids=[*DAMAGE, *DESCRIPTION_DAMAGE],
)
def test_whatever_is_damaged_is_built_again(built, copy, damage):
    damage(copy)
    build_numbered(copy, rebuild=True)
    assert problems(copy) == []
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }


def test_what_may_be_of_another_is_not_built_over(copy):
    (copy / "index.parquet").unlink()
    (copy / "dataset.json").write_text('{"rows": 5}')
    with pytest.raises(DataError, match=r"holds a data set that cannot be read .*empty this folder yourself"):
        build_numbered(copy, rebuild=True)


def run(module, *arguments):
    command = [sys.executable, "-m", f"kiloseg.data.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_all_problems_are_printed_and_the_exit_code_is_1(copy):
    whole = run("verify", copy, "--processes", 1)
    assert whole.returncode == 0, whole.stderr
    *twins, line = whole.stdout.splitlines(keepends=True)
    assert line == f"{copy}: 7 shards with 27 samples are whole, digest {read_info(copy).digest}\n"
    assert twins and all("has the same image, byte for byte, as sample train" in twin for twin in twins)
    part("jpg", b"junk")(copy)
    (copy / "val-000000.tar").unlink()
    rows(lambda table: table.pop(0))(copy)
    damaged = run("verify", copy, "--processes", 2)
    assert damaged.returncode == 1
    lines = damaged.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [
        str(copy / name) for name in ("train-000000.tar", SHARD, "val-000000.tar")
    ]
    assert lines[-1] == "3 problems; restore what is damaged, or build the data set again: tests --rebuild"
    nothing = run("verify", copy / "nowhere")
    assert nothing.returncode == 1 and "dataset.json does not exist" in nothing.stdout
    assert "Traceback" not in nothing.stderr + damaged.stderr


# describe


def tailed(task):
    """Class c is in the samples of which the number can be divided by c; ignored in the last row."""
    for index in range(task.start, task.stop):
        mask = np.zeros((8, 12 if index else 10), int)
        for c in range(1, 6):
            if index % c == 0:
                mask[c] = c
        mask[7] = IGNORE_ID
        yield Sample(key=f"{task.split}{index}", image=np.full((*mask.shape, 3), 99, np.uint8), mask=mask)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counted")
    info = DatasetInfo(
        name="counted",
        classes=["nothing", "one $ dollar", "two", "three", "four $x^", "five \N{GRINNING FACE}", "never"],
        background=0,
        license="none",
        command="tests",
        recipe={},
    )
    tasks = [*plan_shards("train", 20, 7), *plan_shards("val", 3, 7)]
    build(Output(out=str(folder), shard_size=7, processes=1), info, tasks, tailed)
    return folder


def test_description_is_counted_by_hand(counted):
    lines = describe.describe(str(counted), split=None, rare=6).splitlines()
    megabytes = [sum(shard.bytes for shard in read_info(counted).shards(split)) / 1e6 for split in ("train", "val")]
    assert lines[0] == f"counted: 7 classes, digest {read_info(counted).digest}"
    # Of 0 to 19: 20 are divided by 1, 10 by 2, 7 by 3, 5 by 4, 4 by 5; the background is in all.
    assert lines[1:5] == [
        f"train: 20 samples, 3 shards, {megabytes[0]:.1f} MB",
        "  images: height 8 to 8, median 8; width 10 to 12, median 12; 2 sizes, most often 8 x 12 (19), 8 x 10 (1)",
        "  samples a class: 4 to 20, median 8.5, from 4.5 to 20 for 8 classes in 10; 6 classes occur",
        "  rare (fewer than 6 samples): 2 classes; in no sample: 1",
    ]
    assert lines[5].startswith("val: 3 samples, 1 shards")
    pixels = {1: 20 * 12 - 2, 2: 10 * 12 - 2, 3: 7 * 12 - 2, 4: 5 * 12 - 2, 5: 4 * 12 - 2}
    pixels[0] = 20 * 12 * 7 - 14 - sum(pixels.values())
    start = lines.index("most frequent classes of train") + 2
    samples = {0: 20, 1: 20, 2: 10, 3: 7, 4: 5, 5: 4}
    names = read_info(counted).classes
    assert lines[start : start + 6] == [
        f"  {c:6d} {samples[c]:8d} {pixels[c] / sum(pixels.values()):7.3%}  {names[c]}" for c in range(6)
    ]
    assert lines[-1] == "classes in no sample of train: 6 never"


def test_figures_are_drawn(counted, tmp_path):
    done = run("describe", counted, "--out", tmp_path / "figures", "--pictures", 5, "--split", "train")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("counted: 7 classes")
    for name in ("frequency.png", "samples.png"):
        with Image.open(tmp_path / "figures" / name) as image:
            assert min(image.size) > 300 and len(set(image.convert("L").tobytes())) > 20
    missing = run("describe", counted, "--split", "test")
    assert missing.returncode == 1 and "has no split 'test'; it has: train, val" in missing.stderr
    (shard := counted / "train-000000.tar").rename(tmp_path / "moved.tar")
    lost = run("describe", counted, "--out", tmp_path / "figures")
    (tmp_path / "moved.tar").rename(shard)
    assert (
        lost.returncode == 1 and f"{shard} cannot be read" in lost.stderr and f"kiloseg verify {counted}" in lost.stderr
    )


def test_sheet_shows_classes_in_their_colors(counted):
    info = read_info(counted)
    samples = describe.read_samples(str(counted), info, "train", 5)
    assert [key for key, *_ in samples] == ["train0", "train7", "train8", "train14", "train15"]
    figure = describe.contact_sheet(samples, info, title="five")
    drawn = figure.axes[0].images[0].get_array()
    colors = describe.class_colors(7, 0)
    assert np.array_equal(drawn[0], samples[0][1][0]), "the background is left as it is"
    for c in range(1, 6):
        assert np.abs(drawn[c, 0].astype(int) - (0.45 * 99 + 0.55 * colors[c])).max() <= 3
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == [f"{c} {info.classes[c]}" for c in range(1, 6)]
    assert [axes.axison for axes in figure.axes].count(False) == 8


def test_frequency_figure_holds_the_counts(counted):
    counts = {split: class_samples(read_index(counted, split), 7) for split in ("train", "val")}
    figure = describe.frequency_figure(counts, rare=3, title="counted")
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert line.get_ydata().tolist() == [20, 20, 10, 7, 5, 4]
    assert "1 absent" in line.get_label()


def test_arguments_that_cannot_work():
    for wrong in ({"rare": 0}, {"pictures": 0}):
        with pytest.raises(ValueError, match=r"= 0: expected at least 1"):
            describe.Arguments(directory="unused", **wrong)
