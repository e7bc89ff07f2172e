"""A sample that cannot be stored is refused by its name, and leaves no shard behind."""

import dataclasses

import numpy as np
import pytest
from bad_data import picture, refused

from kiloseg.data.codec import IGNORE_ID, encode_mask
from kiloseg.data.writing.shard import Sample, write_shard

OKAY = Sample(key="okay", image=np.zeros((4, 6, 3), dtype=np.uint8), mask=np.zeros((4, 6), dtype=np.int64))


def sample(**changes):
    return dataclasses.replace(OKAY, **{"key": "bad", **changes})


REFUSED = {
    "repeated key": (sample(key="okay"), "s.tar: key 'okay' must be unique in its shard"),
    "dot in key": (sample(key="v1.2"), "s.tar: key 'v1.2' must be unique in its shard, without dots and slashes"),
    "slash in key": (sample(key="a/b"), "s.tar: key 'a/b' must be unique in its shard, without dots and slashes"),
    "key upwards": (sample(key="../b"), "s.tar: key '../b' must be"),
    "no key": (sample(key=""), "s.tar: key '' must be"),
    "long key": (sample(key="\N{GREEK SMALL LETTER PI}" * 46), "' has 92 bytes, expected at most 90"),
    "smaller mask": (
        sample(mask=np.zeros((4, 5), dtype=int)),
        "s.tar: sample bad: mask is (4, 5), its image (4, 6) (height, width)",
    ),
    "turned mask": (
        sample(mask=np.zeros((6, 4), dtype=int)),
        "s.tar: sample bad: mask is (6, 4), its image (4, 6) (height, width)",
    ),
    "mask with a channel": (
        sample(mask=np.zeros((4, 6, 1), dtype=int)),
        "s.tar: sample bad: mask is (4, 6, 1), its image (4, 6)",
    ),
    "mask of other size than stored image": (
        sample(image=picture("JPEG", size=(8, 9)), mask=np.zeros((9, 8), dtype=int)),
        "s.tar: sample bad: mask is (9, 8), its image (8, 9) (height, width)",
    ),
    "id of no class": (
        sample(mask=np.full((4, 6), 3)),
        "s.tar: sample bad: mask has class id 3, expected 0 to 2 or 65535 for ignore",
    ),
    "id above 16 bits": (sample(mask=np.full((4, 6), 65536)), "s.tar: sample bad: mask has class id 65536, expected 0"),
    "one pixel of no class": (
        sample(mask=np.array([[0] * 6] * 3 + [[0, 1, 2, 65534, 65535, 0]])),
        "s.tar: sample bad: mask has class id 65534, expected 0 to 2 or 65535 for ignore",
    ),
}

REFUSED_UNNAMED = {
    "id below 0": (
        sample(mask=np.full((4, 6), -1)),
        "s.tar: sample bad: mask has class id -1, expected 0 to 2 or 65535 for ignore",
    ),
    "mask of floats": (sample(mask=np.zeros((4, 6))), "s.tar: sample bad: "),
    "image of floats": (sample(image=np.zeros((4, 6, 3))), "s.tar: sample bad: "),
    "image that is none": (sample(image=b"junk"), "s.tar: sample bad: "),
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(pytest.param(*case, id=name) for name, case in REFUSED.items()),
        *(pytest.param(*case, id=name) for name, case in REFUSED_UNNAMED.items()),
    ],
)
def test_sample_that_cannot_be_stored_is_refused(tmp_path, wrong, message):
    path = tmp_path / "s.tar"
    refused(lambda: write_shard(path, [OKAY, wrong], num_classes=3), message)
    assert not path.exists()
    write_shard(path, [OKAY], num_classes=3)
    before = path.read_bytes()
    refused(lambda: write_shard(path, [OKAY, wrong], num_classes=3), message)
    assert path.read_bytes() == before, "the shard of before is left alone"


def test_failure_of_a_generator_leaves_no_shard(tmp_path):
    def samples():
        yield OKAY
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        write_shard(tmp_path / "s.tar", samples(), num_classes=3)
    assert not (tmp_path / "s.tar").exists()


@pytest.mark.parametrize(
    "mask", [np.full((4, 6), -1), np.full((4, 6), 65536), np.zeros((4, 6)), np.zeros(4, dtype=int)]
)
def test_mask_that_16_bits_cannot_hold(mask):
    with pytest.raises(ValueError, match=r"expected 0 to 65534, or 65535 for ignore|expected integers of shape"):
        encode_mask(mask)


def test_ignored_pixels_are_no_class(tmp_path):
    ignored = sample(mask=np.full((4, 6), IGNORE_ID))
    _, (row,) = write_shard(tmp_path / "s.tar", [ignored], num_classes=3)
    assert row["class_ids"] == []
