"""A small data set made by hand, to put faults into, and how its refusal is checked."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from kiloseg.config import Data
from kiloseg.data.codec import encode_mask
from kiloseg.data.description import DatasetInfo, Shard, read_info, write_info
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.storage.errors import DataError


def picture(kind="PNG", mode="RGB", size=(32, 32)):
    """Bytes of an image of (height, width), neither plain nor small."""
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def mask_bytes(value=1, size=(32, 32)):
    return encode_mask(np.full(size, value))


def write_tar(path, members):
    """A shard by hand: whatever members are given, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def good_members(keys):
    return [(f"{key}.{suffix}", content) for key in keys for suffix, content in parts(key).items()]


def parts(key):
    return {"png": picture(), "mask.png": mask_bytes(), "json": json.dumps({"key": key}).encode()}


def listed(path, samples):
    """The record of a shard file as it is now."""
    content = path.read_bytes()
    return Shard(name=path.name, samples=samples, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def described(directory, shards, **changes):
    fields = {
        "name": "bad",
        "classes": ["background", "one", "two"],
        "background": 0,
        "license": "none",
        "command": "python make.py --out here",
        "recipe": {},
        "splits": {"train": shards, "val": shards},
    }
    info = DatasetInfo(**fields | changes)
    write_info(directory, info)
    return info


def write_good(directory):
    """Four samples in one shard, without a fault."""
    path = write_tar(directory / "part-000000.tar", good_members("abcd"))
    described(directory, [listed(path, 4)])
    return directory


def refused(action, *fragments):
    """The message of the DataError that `action` ends in, which holds all `fragments`."""
    with pytest.raises(DataError) as caught:
        action()
    for fragment in fragments:
        assert fragment in str(caught.value)
    return str(caught.value)


def read_all(directory, **changes):
    data = Data(path=str(directory), crop=32, **{"loader_workers": 0} | changes)
    return list(validation_batches(data, read_info(directory)))


def train_all(directory, **changes):
    data = Data(path=str(directory), crop=32, **{"loader_workers": 0} | changes)
    return list(TrainBatches(data, read_info(directory), batch_size=2, seed=0).epoch(0))
