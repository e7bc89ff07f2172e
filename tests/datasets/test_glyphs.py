"""The glyphs builder: real builds of tiny sets, and the choice of characters."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import built_again_as_verify_says, paste
from PIL import Image, ImageDraw, ImageFont

import glyphs
from kiloseg.data.codec import IGNORE_ID, decode_image, decode_mask
from kiloseg.data.description import check_shards, read_info
from kiloseg.data.index import class_samples, read_index
from kiloseg.data.writing.build import ShardTask
from kiloseg.data.writing.shard import write_shard
from kiloseg.storage.errors import DataError
from synthetic.glyph_characters import ALL_CUTS, font_path

SCRIPT = Path(__file__).parents[2] / "datasets" / "glyphs.py"


@pytest.fixture(scope="module")
def characters():
    """All characters there are."""
    return glyphs.distinct_characters(1_000_000)


def read_shard(path):
    """Key to (image, mask, meta), read without the package's own reader of shards."""
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    return {
        key: (
            decode_image(files[f"{key}.jpg"]),
            decode_mask(files[f"{key}.mask.png"]),
            json.loads(files[f"{key}.json"]),
        )
        for key in sorted({name.split(".")[0] for name in files})
    }


def read_samples(folder, split):
    """As `read_shard`, over all shards of a split."""
    samples = {}
    for shard in read_info(folder).shards(split):
        samples |= read_shard(Path(folder) / shard.name)
    return samples


def scenes(recipe, characters, split="train", stop=None):
    stop = stop or (recipe.train_samples if split == "train" else recipe.val_samples)
    task = ShardTask(split=split, number=0, start=0, stop=stop)
    return list(glyphs.make_samples(task, recipe=recipe, characters=characters))


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


TINY = {"num_classes": 12, "train_samples": 7, "val_samples": 12, "size": 64, "processes": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    recipe = glyphs.Recipe(out=str(tmp_path_factory.mktemp("tiny")), shard_size=5, **TINY)
    return recipe, glyphs.build_glyphs(recipe)


def test_digest_does_not_depend_on_processes_and_equal_recipes_build_once(tiny, tmp_path, capsys):
    recipe, info = tiny
    again = glyphs.build_glyphs(dataclasses.replace(recipe, out=str(tmp_path / "new" / "folder"), processes=2))
    assert again.digest == info.digest
    assert [shard.name for shard in info.shards("train")] == ["train-000000.tar", "train-000001.tar"]
    assert info.num_samples("train") == 7 and info.num_samples("val") == 12
    before = times(recipe.out)
    capsys.readouterr()
    assert glyphs.build_glyphs(dataclasses.replace(recipe, processes=2)).digest == info.digest
    assert times(recipe.out) == before
    assert capsys.readouterr().out.count("\n") == 1


def test_damaged_data_set_is_built_again_as_verify_says(tiny, tmp_path, capsys):
    """Also if it was moved since."""
    recipe, info = tiny
    shutil.copytree(recipe.out, tmp_path / "it's moved")
    built_again_as_verify_says(tmp_path / "it's moved", capsys, tmp_path)
    with pytest.raises(DataError, match="restore it or rebuild: ") as error:
        (tmp_path / "it's moved" / "val-000000.tar").unlink()
        check_shards(tmp_path / "it's moved", info, "val")
    done = paste(str(error.value).partition("rebuild: ")[2], tmp_path)
    assert done.returncode == 0, done.stderr
    check_shards(tmp_path / "it's moved", info, "val")


def test_another_recipe_builds_again_and_shard_size_moves_no_pixel(tiny, tmp_path):
    recipe, info = tiny
    shutil.copytree(recipe.out, tmp_path, dirs_exist_ok=True)
    before = times(tmp_path)
    other = glyphs.build_glyphs(dataclasses.replace(recipe, out=str(tmp_path), shard_size=3))
    assert all(changed > before.get(name, 0) for name, changed in times(tmp_path).items())
    assert other.digest != info.digest and len(other.shards("train")) == 3
    for split in ("train", "val"):
        samples, other_samples = read_samples(recipe.out, split), read_samples(tmp_path, split)
        assert samples.keys() == other_samples.keys()
        for key, (image, mask, meta) in samples.items():
            assert np.array_equal(image, other_samples[key][0])
            assert np.array_equal(mask, other_samples[key][1])
            assert meta == other_samples[key][2]


@pytest.mark.parametrize("change", [{"frequency": "zipf"}, {"mask": "glyph"}, {"size": 65}, {"seed": 1}])
def test_every_setting_of_the_pictures_changes_the_recipe_and_the_samples(change):
    recipe = glyphs.Recipe(out="unused", **TINY)
    other = dataclasses.replace(recipe, **change)
    assert other.content() != recipe.content()
    first, second = scenes(recipe, list("ABCDEFGHIJK")), scenes(other, list("ABCDEFGHIJK"))
    assert any(not np.array_equal(a.mask, b.mask) for a, b in zip(first, second, strict=True))


def test_classes_and_samples(tiny):
    recipe, info = tiny
    assert info.background == 0
    assert info.classes[:3] == ["background", "A LATIN CAPITAL LETTER A", "B LATIN CAPITAL LETTER B"]
    assert "DejaVu" in info.license and "CC BY 2.0" in info.license and "danielbuechele" in info.license
    for split in ("train", "val"):
        counts = class_samples(read_index(recipe.out, split), recipe.num_classes)
        assert len(counts) == recipe.num_classes and counts[0] > 0
        for image, mask, meta in read_samples(recipe.out, split).values():
            assert image.shape == (64, 64, 3) and mask.shape == (64, 64)
            classes = {entry["class"] for entry in meta["objects"] if entry["visible"] >= 1 / 3}
            assert set(np.unique(mask).tolist()) - {0, IGNORE_ID} == classes
            assert all(info.classes[entry["class"]].startswith(entry["character"]) for entry in meta["objects"])
    assert class_samples(read_index(recipe.out, "val"), recipe.num_classes).min() > 0


def test_val_uses_a_cut_of_its_own(tiny):
    recipe, _ = tiny
    cuts = {
        split: {entry["cut"] for *_, meta in read_samples(recipe.out, split).values() for entry in meta["objects"]}
        for split in ("train", "val")
    }
    assert cuts["val"] == {"DejaVuSerif"}
    assert len(cuts["train"]) > 3 and not cuts["train"] & cuts["val"]


def test_val_places_every_class_equally_often():
    recipe = glyphs.Recipe(out="unused", num_classes=12, val_samples=40, size=64, frequency="zipf")
    samples = scenes(recipe, list("ABCDEFGHIJK"), "val")
    counts = Counter(entry["class"] for sample in samples for entry in sample.meta["objects"])
    assert set(counts) == set(range(1, 12))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_zipf_halves_from_class_1_to_2():
    recipe = glyphs.Recipe(out="unused", num_classes=12, train_samples=250, size=64, frequency="zipf")
    samples = scenes(recipe, list("ABCDEFGHIJK"))
    counts = Counter(entry["class"] for sample in samples for entry in sample.meta["objects"])
    expected = np.array([1 / k for k in range(1, 12)]) / sum(1 / k for k in range(1, 12)) * counts.total()
    assert np.abs([counts[k] for k in range(1, 12)] - expected).max() < 5 * np.sqrt(expected[0])
    assert counts[1] > 1.5 * counts[2] > 2 * counts[6]


@pytest.mark.parametrize("kind", ["plate", "glyph"])
def test_mask_follows_boxes_and_occlusion(kind):
    recipe = glyphs.Recipe(out="unused", num_classes=12, train_samples=60, mask=kind)
    ignored = 0
    for sample in scenes(recipe, list("ABCDEFGHIJK")):
        boxes = np.zeros(sample.mask.shape, bool)
        objects = sample.meta["objects"]
        assert 4 <= len(objects) <= 9
        for entry in objects:
            left, top, right, bottom = entry["box"]
            assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
            assert 18 <= max(right - left, bottom - top) <= 42
            boxes[top:bottom, left:right] = True
        assert not sample.mask[~boxes].any()
        # Nothing is drawn over the last object, so its own box is the tight box of what it covers.
        last = objects[-1]
        left, top, right, bottom = last["box"]
        cells = sample.mask[top:bottom, left:right] == last["class"]
        assert last["visible"] == 1
        if kind == "plate":
            assert cells[(bottom - top) // 2, (right - left) // 2]
            assert cells.any(0).all() and cells.any(1).all() and cells.mean() > 0.6
        else:
            assert 0 < cells.mean() < 0.6
        hidden = [entry for entry in objects if entry["visible"] < 1 / 3]
        if not hidden:
            assert IGNORE_ID not in sample.mask
        ignored += IGNORE_ID in sample.mask
    assert ignored > 0


def test_characters_stand_out_from_their_plates():
    recipe = glyphs.Recipe(out="unused", num_classes=12, train_samples=40)
    gray = np.array([0.299, 0.587, 0.114])
    by_kind = {kind: scenes(dataclasses.replace(recipe, mask=kind), list("ABCDEFGHIJK")) for kind in ("plate", "glyph")}
    contrasts = []
    for plate, glyph in zip(by_kind["plate"], by_kind["glyph"], strict=True):
        assert np.array_equal(plate.image, glyph.image)
        last = plate.meta["objects"][-1]
        left, top, right, bottom = last["box"]
        window = np.s_[top:bottom, left:right]
        strokes = glyph.mask[window] == last["class"]
        rest = (plate.mask[window] == last["class"]) & ~strokes
        values = plate.image[window] @ gray
        contrasts.append(abs(np.median(values[strokes]) - np.median(values[rest])))
    assert min(contrasts) > 35 and np.median(contrasts) > 80


def test_ids_above_255_survive(tmp_path, characters):
    recipe = glyphs.Recipe(out=str(tmp_path), num_classes=600, val_samples=90, size=64)
    task = ShardTask(split="val", number=0, start=0, stop=90)
    samples = list(glyphs.make_samples(task, recipe=recipe, characters=characters[:599]))
    write_shard(tmp_path / task.name, samples, num_classes=600)
    seen = set()
    for (_, mask, meta), sample in zip(read_shard(tmp_path / task.name).values(), samples, strict=True):
        assert np.array_equal(mask, sample.mask)
        named = {entry["class"] for entry in meta["objects"] if entry["visible"] >= 1 / 3}
        assert set(np.unique(mask).tolist()) - {0, IGNORE_ID} == named
        seen |= named
    assert max(seen) > 590 and len([k for k in seen if k > 255]) > 250


def test_more_than_2000_characters_in_a_stable_order(characters):
    assert len(characters) >= 2000
    assert len(set(characters)) == len(characters)
    assert characters[:26] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert characters[26:31] == list("abdef")  # c is C in another size
    assert glyphs.distinct_characters(63) == characters[:63]
    later = [ord(character) for character in characters if not (character.isascii() and character.isalnum())]
    assert later == sorted(later)


@pytest.mark.parametrize(
    "twins",
    [
        "A\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}",
        "P\N{GREEK CAPITAL LETTER RHO}\N{CYRILLIC CAPITAL LETTER ER}",
        "-_\N{EM DASH}\N{EN DASH}\N{MINUS SIGN}.\N{MIDDLE DOT}\N{BLACK SQUARE}|Il",
        "Oo0\N{DEGREE SIGN}\N{RING OPERATOR}",
        "Xx",
        "V\N{LOGICAL OR}",
        ",\N{RIGHT SINGLE QUOTATION MARK}",
        "\N{GREEK CAPITAL LETTER SIGMA}\N{N-ARY SUMMATION}",
        "R\N{LATIN LETTER SMALL CAPITAL R}",
        "2\N{SUPERSCRIPT TWO}\N{SUBSCRIPT TWO}",
    ],
)
def test_of_twins_at_most_one_is_chosen(characters, twins):
    assert len(set(twins) & set(characters)) <= 1


def test_different_characters_are_chosen_together(characters):
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789abdefghkmnqrty?!#%&@+=") - set(characters) == {"="}
    assert set("\N{GREEK CAPITAL LETTER OMEGA}\N{CYRILLIC CAPITAL LETTER ZHE}\N{LEFTWARDS ARROW}éè") <= set(characters)


@pytest.mark.parametrize("cut", ALL_CUTS)
def test_no_two_chosen_drawings_are_equal(characters, cut):
    """Against a measure of its own: intersection over union of other drawings, 40 x 40 from 200 pixels an em."""
    font = ImageFont.truetype(font_path(cut), 200, layout_engine=ImageFont.Layout.BASIC)
    cells = np.zeros((len(characters), 40 * 40), np.float32)
    for number, character in enumerate(characters):
        drawing = Image.new("L", (700, 500))
        ImageDraw.Draw(drawing).text((250, 100), character, font=font, fill=255)
        box = drawing.getbbox()
        assert box, f"{character} draws nothing in {cut}"
        cells[number] = np.asarray(drawing.resize((40, 40), box=box)).ravel() >= 128
    both = cells @ cells.T
    areas = cells.sum(1)
    iou = both / (areas[:, None] + areas - both)
    np.fill_diagonal(iou, 0)
    first, second = np.unravel_index(iou.argmax(), iou.shape)
    assert iou.max() < 0.985, f"{characters[first]} and {characters[second]}"


def test_too_many_classes_are_refused_with_the_maximum(characters, tmp_path, monkeypatch):
    # The choice is known already; making it again would take seconds.
    monkeypatch.setattr(glyphs, "distinct_characters", lambda limit: characters[:limit])
    maximum = len(characters) + 1
    with pytest.raises(ValueError, match=rf"num_classes = {maximum + 1}: .* at most {maximum},"):
        glyphs.build_glyphs(glyphs.Recipe(out=str(tmp_path), num_classes=maximum + 1))
    assert not list(tmp_path.iterdir())


def test_what_is_not_its_own_is_left_alone(tiny, tmp_path):
    recipe, _ = tiny
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("precious")
    other = tmp_path / "other"
    other.mkdir()
    text = (Path(recipe.out) / "dataset.json").read_text().replace('"name": "glyphs"', '"name": "emoji"')
    (other / "dataset.json").write_text(text)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "dataset.json").write_text('{"rows": 5}')
    for folder, message in ((photos, "holiday.jpg"), (other, "'emoji'"), (strange, "a data set that cannot be read")):
        before = {path.name: path.read_text() for path in folder.iterdir()}
        with pytest.raises(DataError, match=message):
            glyphs.build_glyphs(dataclasses.replace(recipe, out=str(folder)))
        assert {path.name: path.read_text() for path in folder.iterdir()} == before
    with pytest.raises(DataError, match="is a file"):
        glyphs.build_glyphs(dataclasses.replace(recipe, out=str(photos / "holiday.jpg")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_classes": 1},
        {"train_samples": 0},
        {"val_samples": 0},
        {"size": 63},
        {"seed": -1},
        {"shard_size": 0},
        {"processes": 0},
        {"frequency": "often"},
        {"mask": "box"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} = {value!r}: expected "):
        glyphs.Recipe(out="unused", **wrong)


def test_command_line(tmp_path):
    """What --help says, and a build through the command line that ends in its summary."""
    command = [sys.executable, SCRIPT]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    for field in dataclasses.fields(glyphs.Recipe):
        assert "--" + field.name.replace("_", "-") in shown
    assert "A-Z, a-z and 0-9 come" in " ".join(shown.replace("│", " ").split())
    options = ["--num-classes", "5", "--train-samples", "3", "--val-samples", "2", "--mask", "glyph"]
    command += ["--out", tmp_path / "set", "--processes", "1", *options]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    info = read_info(tmp_path / "set")
    for part in ("3 train", "2 val", " MB", " s, ", "samples/s", info.digest):
        assert part in printed
    assert info.command.endswith(" ".join(options))
