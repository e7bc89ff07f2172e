"""The emoji builder builds from tarballs or from a bank, with numpy and Pillow alone, and by its command line."""

import dataclasses
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from damage import built_again_as_verify_says
from PIL import Image
from small_emoji import CLASSES, SMALL_2, photographs

import emoji
from emoji_shards import coverage, write_emoji
from kiloseg.data.description import read_info
from kiloseg.data.index import read_index
from kiloseg.storage.errors import DataError
from synthetic.emoji_photographs import in_folder
from synthetic.emoji_recipes import RECIPES
from synthetic.emoji_scenes import Scenes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_samples": 0},
        {"val_samples": 0},
        {"size": 95},
        {"seed": -1},
        {"val_style_samples": 0},
        {"recipe_version": 3},
        {"frequency": "often"},
        {"shard_size": 0},
        {"processes": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} = {value!r}: expected "):
        emoji.Arguments(out="unused", **wrong)


BUILD = {"train_samples": 7, "val_samples": 5, "size": 96, "shard_size": 3, "processes": 1, "recipe_version": 1}


@pytest.fixture(scope="module")
def built(small_packages, tmp_path_factory):
    """A build from tarballs, with the packaged photographs."""
    folder, packages = small_packages
    work = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, 1, dataclasses.replace(RECIPES[1], pictures=packages))
        arguments = emoji.Arguments(out=str(work / "set"), bank=work / "bank.tar", tarballs=folder, **BUILD)
        info = emoji.build_emoji(arguments)
    return arguments, info


def test_a_build_from_tarballs(built):
    arguments, info = built
    out = Path(arguments.out)
    assert info.num_classes == len(CLASSES) + 1 and info.classes[0] == "background" and info.background == 0
    assert set(info.classes[1:]) == CLASSES
    assert (info.num_samples("train"), info.num_samples("val")) == (7, 5) and len(info.shards("train")) == 3
    attribution = (out / "ATTRIBUTION.md").read_text()
    for word in ("Apache License 2.0", "CC BY 4.0", "MIT", "danielbuechele", "NASA", "Rachel Michetti", "CC BY 2.0"):
        assert word in attribution and word in info.license
    assert (
        attribution.count("linolafett") == 1
        and "| background: coffee.png | val |" in attribution
        and "| sprites: google | train |" in attribution
    )
    with tarfile.open(out / "val-000000.tar") as tar:
        names = tar.getnames()
        assert names[0] == "val-0000000.jpg"
        assert Image.open(io.BytesIO(tar.extractfile("val-0000000.jpg").read())).format == "JPEG"
        assert Image.open(io.BytesIO(tar.extractfile("val-0000000.mask.png").read())).mode.startswith("I")


BARE = (
    "torch",
    "torchvision",
    "webdataset",
    "timm",
    "pyarrow",
    "tqdm",
    "tyro",
    "ray",
    "mlflow",
    "sklearn",
    "skimage",
    "scipy",
    "pandas",
    "matplotlib",
    "fontTools",
)


def test_numpy_and_pillow_draw_the_same_from_the_bank(built, tmp_path, capsys):
    arguments, info = built
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {BARE!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "platform")])}
    blocked = subprocess.run([sys.executable, "-c", "import pyarrow"], env=environment, capture_output=True, text=True)
    assert "pyarrow is blocked" in blocked.stderr
    out = tmp_path / "set"
    command = [sys.executable, ROOT / "datasets" / "emoji_shards.py", "--bank", arguments.bank, "--out", out]
    for name, value in {**BUILD, "processes": 2}.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert info.digest in done.stdout and "labeled in at least" in done.stdout
    assert read_info(out).recipe == info.recipe
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "is up to date" in again.stdout
    damaged = out / "val-000000.tar"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:600] + bytes([whole[600] ^ 255]) + whole[601:])
    (out / "dataset.json").write_text("{")
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "build the data set again with --rebuild" in refused.stderr
    rebuilt = subprocess.run([*command, "--rebuild"], env=environment, capture_output=True, text=True, timeout=300)
    assert rebuilt.returncode == 0 and info.digest in rebuilt.stdout and damaged.read_bytes() == whole
    assert (out / "ATTRIBUTION.md").read_text() == (Path(arguments.out) / "ATTRIBUTION.md").read_text()

    # Where pyarrow is, the same command completes the index, and so does the full builder.
    assert not (out / "index.parquet").exists()
    shutil.copytree(out, tmp_path / "other")
    scenes = {name: value for name, value in BUILD.items() if name not in ("shard_size", "processes")}
    write_emoji(arguments.bank, Scenes(**scenes), tmp_path / "other", shard_size=BUILD["shard_size"], processes=1)
    assert "is up to date" in capsys.readouterr().out
    assert read_index(tmp_path / "other").to_pylist() == read_index(arguments.out).to_pylist()
    built_again_as_verify_says(tmp_path / "other", capsys, tmp_path)
    emoji.build_emoji(dataclasses.replace(arguments, out=str(out)))
    assert "is up to date" in capsys.readouterr().out
    assert read_index(out).to_pylist() == read_index(arguments.out).to_pylist()
    assert not (out / "index.jsonl").exists()


def test_a_build_of_version_2(small_packages, small_drawings, tmp_path, capsys):
    (folder, packages), (drawn_in, drawings) = small_packages, small_drawings
    tarballs = tmp_path / "tarballs"
    shutil.copytree(folder, tarballs)
    shutil.copytree(drawn_in, tarballs, dirs_exist_ok=True)
    recipe = dataclasses.replace(RECIPES[2], pictures=packages, drawings=drawings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, 2, recipe)
        build = BUILD | {"recipe_version": 2, "val_style_samples": 4}
        arguments = emoji.Arguments(out=str(tmp_path / "set"), bank=tmp_path / "bank.tar", tarballs=tarballs, **build)
        info = emoji.build_emoji(arguments)
        printed = capsys.readouterr().out
        write_emoji(tmp_path / "bank.tar", SMALL_2, tmp_path / "again", shard_size=3, processes=1)
    assert {split: info.num_samples(split) for split in info.splits} == {"train": 7, "val": 5, "val_style": 4}
    assert info.recipe["version"] == 2 and info.recipe["val_style_samples"] == 4
    assert "samples of val;" in printed and "samples of val_style;" in printed
    attribution = (tmp_path / "set" / "ATTRIBUTION.md").read_text()
    for line in ("| sprites: emojione-v1 | train, val |", "| sprites: openmoji | val_style |", "CC BY-SA 4.0"):
        assert line in attribution
    assert read_info(tmp_path / "again").digest == info.digest
    assert read_index(arguments.out, "val_style").num_rows == 4


def test_rows_of_another_build_do_not_become_the_index(built, tmp_path):
    arguments, _ = built
    scenes = Scenes(train_samples=2, val_samples=2, size=96, recipe_version=1)
    write_emoji(arguments.bank, scenes, tmp_path, shard_size=3, processes=1)
    emoji.build_emoji(dataclasses.replace(arguments, out=str(tmp_path)))
    assert read_index(tmp_path).num_rows == 12 and not (tmp_path / "index.jsonl").exists()
    with pytest.raises(DataError, match=r"ATTRIBUTION\.md': expected a new or empty folder"):
        write_emoji(arguments.bank, scenes, tmp_path, shard_size=3, processes=1)


def test_a_bank_stands_for_its_photographs(built, tmp_path):
    arguments, info = built
    assert emoji.build_emoji(dataclasses.replace(arguments, tarballs=Path("nowhere"))).digest == info.digest
    folder = tmp_path / "photographs"
    folder.mkdir()
    with pytest.raises(DataError, match=r"photographs holds no photographs; expected .*\.jpg"):
        in_folder(folder)
    photographs(1)[0].image.save(folder / "b.jpg")
    (folder / "copyright").write_text("by A. Nobody,\n CC0")
    assert [(one.name, one.credit) for one in in_folder(folder)] == [("b.jpg", "by A. Nobody, CC0")]
    with pytest.raises(DataError, match=r"bank\.tar was made with other photographs than those in .*photographs"):
        emoji.build_emoji(dataclasses.replace(arguments, backgrounds=folder))
    (folder / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a photograph"):
        in_folder(folder)


def test_a_bank_that_is_deleted_is_made_again_as_the_messages_say(built, small_packages, tmp_path):
    """Because it is damaged, or because it holds other photographs; a new bank or none of one's own helps there, too."""
    arguments, info = built
    own = tmp_path / "my photographs"
    own.mkdir()
    for number, photograph in enumerate(photographs(2)):
        photograph.image.save(own / f"{number}.jpg")
    bank = tmp_path / "my bank.tar"
    bank.write_bytes(arguments.bank.read_bytes()[:100_000])
    mine = dataclasses.replace(arguments, bank=bank, out=str(tmp_path / "set"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, 1, dataclasses.replace(RECIPES[1], pictures=small_packages[1]))
        with pytest.raises(DataError, match=r"is not a complete bank .*; delete it, and") as error:
            emoji.build_emoji(mine)
        said = shlex.split(str(error.value).partition("delete it, and ")[2])
        assert said[:3] == ["datasets/emoji.py", "--bank", str(bank)]
        bank.unlink()
        assert emoji.build_emoji(mine).digest == info.digest

        whole = bank.read_bytes()
        with_own = dataclasses.replace(mine, backgrounds=own)
        with pytest.raises(DataError, match="delete it, or name a new file with --bank, or omit --backgrounds"):
            emoji.build_emoji(with_own)
        assert emoji.build_emoji(dataclasses.replace(with_own, backgrounds=None)).digest == info.digest
        named = emoji.build_emoji(dataclasses.replace(with_own, bank=tmp_path / "new.tar", out=str(tmp_path / "named")))
        bank.unlink()
        deleted = emoji.build_emoji(with_own)
        assert named.digest == deleted.digest != info.digest and bank.read_bytes() != whole
        assert emoji.build_emoji(with_own).digest == deleted.digest


def test_command_line(built, tmp_path):
    arguments, info = built
    script = ROOT / "datasets" / "emoji.py"
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    for field in dataclasses.fields(emoji.Arguments):
        assert "--" + field.name.replace("_", "-") in shown
    words = " ".join(shown.replace("│", " ").split())
    assert (
        "the rarest class is then placed 16 times" in words
        and "Every third of all photographs is kept for val" in words
    )
    command = [sys.executable, script, "--bank", arguments.bank, "--out", tmp_path / "set"]
    for name, value in BUILD.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert info.digest in printed


def test_how_often_val_shows_the_rarest_class():
    assert coverage([0, 7, 5, 9], "val", 10) == "every class is labeled in at least 5 samples of val"
    line = coverage([99, 7, 4, 9], "val_style", 10)
    assert "at least 4 samples of val_style; at least 5 are advised: raise val_style_samples = 10" in line
