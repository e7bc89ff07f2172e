"""A bank of sprites and photographs is read as it was written, and scenes of it depend on their numbers alone."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small_emoji import CLASSES, SMALL, SMALL_2, draw, photographs, same

from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.writing.shard import file_sha256, write_shard
from kiloseg.storage.errors import DataError
from synthetic.emoji_backgrounds import varied_square
from synthetic.emoji_bank import Bank, make_bank, read_bank, write_bank
from synthetic.emoji_classes import Emoji
from synthetic.emoji_packages import obtain
from synthetic.emoji_photographs import PACKAGED, Photograph, photographs_of
from synthetic.emoji_scenes import NAMEABLE, Scenes, describe
from synthetic.emoji_sprites import SIDE

# Bank


def test_a_bank_is_read_as_it_was_written(small_packages, small_bank, tmp_path):
    folder, packages = small_packages
    made = make_bank(obtain(folder, packages), photographs(), packages)
    read, digest = read_bank(small_bank[0])
    assert read.classes == made.classes and read.credits == made.credits
    for vendor, sprites in made.sprites.items():
        assert np.array_equal(read.sprites[vendor], sprites) and len(sprites) == len(CLASSES)
    assert [one.name for one in read.photographs] == ["photo0.jpg", "photo1.jpg", "photo2.jpg"]
    write_bank(tmp_path / "again.tar", made)
    assert file_sha256(tmp_path / "again.tar") == digest
    cat = [one.name for one in read.classes].index("cat2")
    assert np.ptp(read.sprites["google"][cat][..., :3].astype(int), axis=-1).max() == 0  # grayscale with opacity
    assert not read.sprites["twitter"][cat][60, 60].any()  # from a palette


def test_a_damaged_bank_is_refused(small_bank, tmp_path):
    whole = small_bank[0].read_bytes()
    path = tmp_path / "bank.tar"
    for content in (
        whole[:3000],
        b"nonsense",
        whole.replace(b'"twins"', b'"twice"'),
        whole.replace(b"google.png", b"goggle.png"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bank\.tar is not a complete bank .*; delete it"):
            read_bank(path)
    path.write_bytes(whole.replace(b"emoji-bank-1", b"emoji-bank-0"))
    with pytest.raises(DataError, match=r"of format 'kiloseg-emoji-bank-0', expected 'kiloseg-emoji-bank-1'"):
        read_bank(path)
    with pytest.raises(DataError, match=r"none\.tar does not exist"):
        read_bank(tmp_path / "none.tar")


def test_a_bank_of_version_1_is_refused_for_version_2(small_bank):
    bank, digest = read_bank(small_bank[0])
    with pytest.raises(
        DataError, match=r"no sprites by noto-v1, emojione, emojione-v1, openmoji: .*--recipe-version 1"
    ):
        describe(SMALL_2, bank, digest=digest, shard_size=5, command="")
    assert describe(SMALL, bank, digest=digest, shard_size=5, command="").recipe.keys() == {
        *("builder", "version", "train_samples", "val_samples", "size", "seed", "frequency", "shard_size", "bank"),
        *("pillow", "numpy"),
    }


# Scenes


def test_a_scene_depends_on_its_number_alone(small_bank):
    whole = draw(small_bank)
    assert same(whole, [*draw(small_bank, stop=3), *draw(small_bank, start=3)])
    assert not same(whole, draw(small_bank, scenes=dataclasses.replace(SMALL, seed=1)))
    val = draw(small_bank, "val", 5)
    assert {entry["vendor"] for one in val for entry in one.meta["objects"]} == {"fluent"}
    assert {entry["vendor"] for one in whole for entry in one.meta["objects"]} == {"google", "twitter"}


def test_splits_of_version_2_show_what_they_are_for(small_bank_2):
    shown = {split: draw(small_bank_2, split, 40, scenes=SMALL_2) for split in ("train", "val", "val_style")}
    vendors = {
        split: {entry["vendor"] for one in those for entry in one.meta["objects"]} for split, those in shown.items()
    }
    assert vendors["train"] == vendors["val"] == {"google", "twitter", "noto-v1", "emojione", "emojione-v1"}
    assert vendors["val_style"] == {"fluent", "openmoji"}
    for those in shown.values():  # nobody is shown with an emoji that he does not draw
        assert all(
            entry["vendor"] in ("google", "twitter", "fluent", "openmoji")
            for one in those
            for entry in one.meta["objects"]
            if entry["emoji"] in ("dog", "relaxed")
        )
    keys = [one.key for those in shown.values() for one in those]
    assert len(set(keys)) == len(keys) and not same(shown["val"], shown["val_style"])
    assert same(shown["val"][3:5], draw(small_bank_2, "val", 5, start=3, scenes=SMALL_2))


def test_backgrounds_of_validation_are_made_of_its_own_photographs():
    """Of a black photograph and with no textures every background is black, or white where colors are inverted."""
    black = [Image.new("RGB", (400, 300))]
    rng = np.random.default_rng(0)
    squares = [varied_square(rng, black, 96, textures=False) for _ in range(60)]
    assert all(square.shape == (96, 96, 3) and square.dtype == np.float32 for square in squares)
    assert {float(square.min()) for square in squares} <= {0.0, 255.0} | {
        float(square.min())
        for square in squares
        if np.ptp(square) > 0  # blends of the two
    }
    assert sum(np.ptp(square) > 0 for square in squares) < 15
    textured = [varied_square(rng, black, 96, textures=True) for _ in range(200)]
    assert 0.15 < np.mean([np.ptp(square) > 30 for square in textured]) < 0.4


def test_masks_are_tight_and_later_objects_hide_earlier_ones(tmp_path):
    """White sprites on black: what is more than half white is labeled, and no more."""
    shape = np.zeros((SIDE, SIDE, 4), np.uint8)
    image = Image.new("L", (256, 256))
    ImageDraw.Draw(image).polygon([(20, 30), (240, 90), (120, 230)], fill=255)
    shape[:] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))[..., None]
    bank = Bank(
        classes=[
            Emoji(code=str(k), name=str(k), category="", subcategory=str(k % 3), mirrors=True) for k in range(600)
        ],
        sprites={vendor: np.repeat(shape[None], 600, 0) for vendor in ("google", "twitter", "fluent")},
        credits=dict.fromkeys(("google", "twitter", "fluent"), "none"),
        photographs=photographs(3, color=0),
    )
    write_bank(tmp_path / "bank.tar", bank)
    scenes = Scenes(val_samples=40, recipe_version=1)
    samples = draw((tmp_path / "bank.tar", file_sha256(tmp_path / "bank.tar")), "val", 40, scenes=scenes)
    wrong, moved, ids, ignored = 0, 0, set(), 0
    for sample in samples:
        objects = sample.meta["objects"]
        ids |= set(np.unique(sample.mask).tolist())
        ignored += int((sample.mask == IGNORE_ID).any())
        # Every object has a brightness of its own, 0.64 to 1 of white after noise.
        bright = sample.image.max(-1) > 110
        wrong += (bright != (sample.mask > 0)).sum()
        moved += (bright != (np.roll(sample.mask, 1, 0) > 0)).sum()
        assert {entry["class"] for entry in objects if entry["named"]} == set(np.unique(sample.mask).tolist()) - {
            0,
            IGNORE_ID,
        }
        # Nothing is drawn over the last object, so its box is the tight box of what is labeled.
        left, top, right, bottom = objects[-1]["box"]
        cells = sample.mask[top:bottom, left:right] == objects[-1]["class"]
        assert objects[-1]["visible"] == 1 and cells.any(0).all() and cells.any(1).all() and 0.2 < cells.mean() < 0.8
        for entry in objects:
            assert entry["named"] or entry["visible"] < NAMEABLE
    total = 40 * 256 * 256
    assert wrong / total < 0.004 and moved > 2 * wrong
    assert ignored and max(ids - {IGNORE_ID}) > 500
    write_shard(tmp_path / "val-000000.tar", samples, num_classes=601)


def test_photographs_of_val_are_its_own():
    all_nine = [Photograph(name=name, credit="", sha256="", image=Image.new("RGB", (9, 9))) for _, name, _ in PACKAGED]
    val = [one.name for one in photographs_of("val", all_nine)]
    assert val == ["coffee.png", "flower.jpg", "brick.png"]
    assert {one.name for one in photographs_of("train", all_nine)} == {one.name for one in all_nine} - set(val)
    assert photographs_of("train", all_nine[:2]) == photographs_of("val", all_nine[:2]) == all_nine[:2]
