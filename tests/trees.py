"""Tiny archives on disk for the tests of the builders, and what is read back from the shards."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from kiloseg.data.description import read_info

IGNORE = 65535


def write_jpeg(path, height=4, width=6, gray=False):
    """Noise; returns the bytes of the file."""
    shape = (height, width) if gray else (height, width, 3)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG")
    return path.read_bytes()


def write_png(path, pixels, palette=False, **options):
    """uint8 or uint16 of shape (H, W), or uint8 of shape (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    if palette:
        image = image.convert("L")
        image.putpalette([number * 37 % 256 for number in range(768)])  # colors that are no ids
        assert image.mode == "P"
    image.save(path, "PNG", **options)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_json(path, content):
    write_text(path, json.dumps(content))


def uint8(*rows):
    return np.array(rows, dtype=np.uint8)


def read_split(folder, split):
    """Key to (bytes of the image, mask as a list of rows, meta), in the order of the shards."""
    samples = {}
    for shard in read_info(folder).shards(split):
        with tarfile.open(folder / shard.name) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for key in dict.fromkeys(name.split(".")[0] for name in files):
            image = files.get(f"{key}.jpg") or files[f"{key}.png"]
            mask = np.asarray(Image.open(io.BytesIO(files[f"{key}.mask.png"])))
            assert mask.dtype == np.uint16
            samples[key] = (image, mask.tolist(), json.loads(files[f"{key}.json"]))
    return samples
