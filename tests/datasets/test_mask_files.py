"""Masks and images as files give their ids and colors whatever their mode, or are refused by their names."""

import numpy as np
import pytest
from exports import build, masked, masks_of
from PIL import Image
from trees import read_split, uint8, write_jpeg, write_png, write_text

from kiloseg.data.reading.decoding import decode_pixels
from kiloseg.storage.errors import DataError


def test_8_bit_masks_under_a_table_of_more_ids(tmp_path, capsys):
    names = {str(number): f"c{number}" for number in range(300)}
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 44])).save, names)
    build(tmp_path, tmp_path / "set")
    assert "warning: 1 masks have 8 bits, though classes have ids above 255" in capsys.readouterr().out
    masked(tmp_path / "set", Image.fromarray(np.array([[0, 1, 2, 299]], np.uint16)).save, names)
    build(tmp_path, tmp_path / "set")
    assert "8 bits" not in capsys.readouterr().out
    with pytest.raises(DataError, match="have 8 bits, though classes have ids above 255"):
        masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 44])).save, names)
        build(tmp_path, tmp_path / "set", strict=True)


def test_masks_by_transparency_are_refused(tmp_path):
    """Their gray values are all 0, which would be class 0 everywhere."""
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, 1:3, 3] = 255
    masked(tmp_path / "set", Image.fromarray(pixels).save, ["sky", "tree"])
    with pytest.raises(DataError, match=r"a.png has transparent pixels: ids are expected in its gray values"):
        build(tmp_path, tmp_path / "set")
    pixels[..., 3] = 255
    pixels[0, 1:3, :3] = 1
    masked(tmp_path / "set", Image.fromarray(pixels).save, ["sky", "tree"])
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"images_a": [[0, 1, 1, 0]]}


def test_a_palette_of_grays_does_not_tell_the_ids(tmp_path):
    """Programs that make files smaller write the gray values 0, 7, 9 as indices 0, 1, 2."""
    palette = Image.fromarray(uint8([0, 1, 2, 1])).convert("P")
    palette.putpalette([0, 0, 0, 7, 7, 7, 9, 9, 9])
    masked(tmp_path / "set", palette.save, [f"c{number}" for number in range(10)])
    with pytest.raises(DataError, match=r"palette of grays, in which index 1 is gray 7: either may be the id"):
        build(tmp_path, tmp_path / "set")
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2])
    masked(tmp_path / "set", palette.save, [f"c{number}" for number in range(10)])
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"images_a": [[0, 1, 2, 1]]}


def test_a_palette_of_grays_whose_ids_the_table_tells(tmp_path):
    """GIF has no other form: Carvana's masks of 0 and 255 are indices 0 and 1, whichever of the two the table names."""
    write_jpeg(tmp_path / "set/train/a.jpg", 1, 4)
    (tmp_path / "set/train_masks").mkdir()
    Image.fromarray(uint8([0, 255, 255, 0])).save(tmp_path / "set/train_masks/a_mask.gif")
    for car in (1, 255):
        write_text(tmp_path / "set/classes.csv", f"id,name\n0,background\n{car},car\n")
        build(tmp_path, tmp_path / "set")
        assert masks_of(tmp_path) == {"train_a": [[0, 1, 1, 0]]}


def test_masks_of_floats_and_jpeg_under_the_name_of_a_png(tmp_path):
    write_jpeg(tmp_path / "set/images/a.jpg", 1, 4)
    write_text(tmp_path / "set/classes.txt", "a\nb\nc\n")
    (tmp_path / "set/masks").mkdir()
    Image.fromarray(np.array([[0, 1, 2, 1]], np.float32)).save(tmp_path / "set/masks/a.tif")
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"images_a": [[0, 1, 2, 1]]}
    Image.fromarray(np.array([[0, 1, 2, 0.5]], np.float32)).save(tmp_path / "set/masks/a.tif")
    with pytest.raises(DataError, match="mask has fractions: expected whole ids"):
        build(tmp_path, tmp_path / "set")
    (tmp_path / "set/masks/a.tif").unlink()
    Image.fromarray(uint8([0, 1, 2, 1])).save(tmp_path / "set/masks/a.png", "JPEG")
    with pytest.raises(DataError, match=r"a.png is not a mask, whatever its suffix: expected a file of PNG"):
        build(tmp_path, tmp_path / "set")


@pytest.mark.parametrize("kind", ["cmyk", "gray", "palette", "progressive", "alpha"])
def test_images_of_any_mode_are_stored_and_decoded_as_viewers_show_them(tmp_path, kind):
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(colors)
    path = tmp_path / f"set/images/a.{'png' if kind in ('palette', 'alpha') else 'jpg'}"
    path.parent.mkdir(parents=True)
    options = {"progressive": True} if kind == "progressive" else {}
    if kind == "palette":
        options["transparency"] = 3
    modes = {"cmyk": "CMYK", "gray": "L", "palette": "P", "alpha": "RGBA"}
    image.convert(modes.get(kind, "RGB")).save(path, **options)
    write_png(tmp_path / "set/masks/a.png", np.zeros((8, 8), np.uint8) + np.eye(8, dtype=np.uint8))
    write_text(tmp_path / "set/classes.txt", "a\nb\n")
    build(tmp_path, tmp_path / "set")
    data = read_split(tmp_path / "out", "train")["images_a"][0]
    assert data == path.read_bytes()
    with Image.open(path) as seen:
        assert np.abs(decode_pixels(data).astype(int) - np.asarray(seen.convert("RGB"))).max() <= 2


def test_an_image_of_16_bits_is_refused_by_its_name(tmp_path):
    write_png(tmp_path / "set/images/a.png", np.zeros((1, 2), np.uint16))
    write_png(tmp_path / "set/masks/a.png", uint8([0, 1]))
    write_text(tmp_path / "set/classes.txt", "a\nb\n")
    with pytest.raises(DataError, match=r"images/a.png has one channel of 16 or more bits: expected 8 bits a channel"):
        build(tmp_path, tmp_path / "set")
