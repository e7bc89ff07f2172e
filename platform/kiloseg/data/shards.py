"""The data set format: tar shards of KEY.jpg|png, KEY.mask.png, KEY.json, described by dataset.json.

Masks are one-channel 16-bit PNG; 65,535 means ignore. Nothing in a shard is ever unpickled: only JPEG, PNG and JSON are
decoded, by Pillow and json. Needs NumPy and Pillow only: webdataset reads these files, but importing it imports torch,
which would cost every process of a build seconds and 200 MB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import putchunk

from kiloseg.storage.filesystems import DataError as DataError
from kiloseg.storage.filesystems import open_folder

FORMAT = "kiloseg-shards-1"
IGNORE_ID = 65535
MAX_CLASSES = 65535
DESCRIPTION = "dataset.json"
MAX_KEY_BYTES = 90
"""What a tar header holds, with the suffix."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its mask, ready to be written.

    `image` is uint8 of shape (H, W, 3), or the bytes of a JPEG or PNG file that are stored as they are; `mask` is any
    integer type of shape (H, W) with class ids 0 to 65,534 and 65,535 for ignore.
    """

    key: str
    image: np.ndarray | bytes
    mask: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard file, as dataset.json lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of dataset.json."""

    name: str
    classes: list[str]
    """A name per class; the position is the class id."""
    background: int | None
    """Id of the class that stands for 'nothing in particular', if the data set has one."""
    licence: str
    command: str
    """How to build it again."""
    recipe: dict[str, Any]
    """What it was built from; a builder builds again when this changes."""
    splits: dict[str, list[Shard]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """C, background included."""
        return len(self.classes)

    @property
    def digest(self) -> str:
        """sha256 over class names and shard digests: equal exactly where the samples are."""
        content = [self.classes, {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def shards(self, split: str) -> list[Shard]:
        """Raises DataError for a split that the data set lacks."""
        if split not in self.splits:
            raise DataError(
                f"data set {self.name} has no split {split!r}; it has: {', '.join(self.splits) or 'none'}. Build it with "
                f"both train and val: {self.command}"
            )
        return self.splits[split]

    def num_samples(self, split: str) -> int:
        """Samples of a split; raises as `shards`."""
        return sum(shard.samples for shard in self.shards(split))


def encode_mask(mask: np.ndarray) -> bytes:
    """A 16-bit PNG of an integer mask of shape (H, W).

    Raises:
        ValueError: a mask that is not an (H, W) array of integers from 0 to 65,535.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise ValueError(f"a mask of shape {mask.shape} and type {mask.dtype}: expected integers of shape (H, W)")
    if mask.size and (mask.min() < 0 or mask.max() > IGNORE_ID):
        raise ValueError(
            f"a mask with ids {mask.min()} to {mask.max()}: expected 0 to {IGNORE_ID - 1}, or {IGNORE_ID} for ignore"
        )
    height, width = mask.shape
    # Pillow filters rows before it compresses them, which suits photographs. The rows of a mask repeat as they are: left
    # alone they are read in less than half the time, at about the same size (benchmarks/README.md).
    rows = np.zeros((height, 1 + 2 * width), dtype=np.uint8)
    rows[:, 1:] = mask.astype(">u2", order="C").view(np.uint8)
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(0, io.SEEK_END)
    sixteen_bits, one_channel = 16, 0
    putchunk(buffer, b"IHDR", struct.pack(">IIBBBBB", width, height, sixteen_bits, one_channel, 0, 0, 0))
    putchunk(buffer, b"IDAT", zlib.compress(rows.tobytes(), 7))
    putchunk(buffer, b"IEND")
    return buffer.getvalue()


def decode_mask(data: bytes) -> np.ndarray:
    """A uint16 mask of shape (H, W) from the bytes of a 16-bit, one-channel PNG.

    Raises:
        ValueError: any other kind of image; an 8-bit mask may have lost ids above 255 and is refused.
    """
    with _open(data, "PNG") as image:
        if not image.mode.startswith("I"):
            raise ValueError(
                f"mask is a {image.format} of mode {image.mode}: expected a 16-bit one-channel PNG, "
                "since 8 bits lose class ids above 255; write masks with kiloseg.data.shards.encode_mask"
            )
        return np.asarray(image).astype(np.uint16)


def decode_image(data: bytes) -> np.ndarray:
    """A uint8 image of shape (H, W, 3) from the bytes of a JPEG or PNG; greyscale is repeated to three channels."""
    with _open(data, "JPEG", "PNG") as image:
        if image.mode.startswith("I"):
            raise ValueError(
                "its image has one channel of 16 bits, of which Pillow keeps no detail: expected 8 bits a channel"
            )
        return np.array(image.convert("RGB"))


def _open(data: bytes, *formats: str) -> Image.Image:
    """Raises ValueError for any other format, and for a header that promises more pixels than Pillow takes."""
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        wanted = "a 16-bit one-channel PNG" if formats == ("PNG",) else "a JPEG or PNG"
        raise ValueError(f"its {len(data)} bytes are no file of that kind: expected {wanted}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _encode_image(image: np.ndarray | bytes) -> tuple[str, bytes, tuple[int, int]]:
    """File suffix, bytes and (height, width)."""
    if isinstance(image, bytes):
        with _open(image, "JPEG", "PNG") as opened:
            return ("jpg" if opened.format == "JPEG" else "png"), image, (opened.height, opened.width)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return "jpg", buffer.getvalue(), image.shape[:2]


def count_ids(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids in a mask, without the one for ignore, and how many pixels have each."""
    if mask.dtype == np.uint16:
        counts = np.bincount(mask.ravel())  # a quarter of the time that sorting takes
        ids = np.flatnonzero(counts)
        pixels = counts[ids]
    else:
        ids, pixels = np.unique(mask, return_counts=True)
    labelled = ids != IGNORE_ID
    return ids[labelled], pixels[labelled]


def write_shard(path: Path, samples: Iterable[Sample], *, num_classes: int) -> tuple[Shard, list[dict[str, Any]]]:
    """Writes one shard; it appears under its name only when it is complete.

    Returns:
        The shard's record and a row of the index per sample (see `index`).

    Raises:
        DataError: a sample whose mask has another size than its image or an id outside the classes, or a key that
            repeats or holds a dot or slash.
    """
    partial = path.with_name(path.name + ".partial")
    rows: list[dict[str, Any]] = []
    keys: set[str] = set()
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if sample.key in keys or not sample.key or set(sample.key) & set("./"):
                raise DataError(
                    f"{path.name}: key {sample.key!r} must be unique in its shard, without dots and slashes"
                )
            if len(sample.key.encode()) > MAX_KEY_BYTES:
                raise DataError(
                    f"{path.name}: key {sample.key!r} has {len(sample.key.encode())} bytes, expected at most {MAX_KEY_BYTES}"
                )
            keys.add(sample.key)
            try:
                suffix, image, size = _encode_image(sample.image)
            except (OSError, TypeError, ValueError) as error:
                raise DataError(f"{path.name}: sample {sample.key}: {error}") from error
            if sample.mask.shape != size:
                raise DataError(
                    f"{path.name}: sample {sample.key}: mask is {sample.mask.shape}, its image {size} (height, width)"
                )
            ids, pixels = count_ids(sample.mask)
            outside = ids[(ids < 0) | (ids >= num_classes)]
            if len(outside):
                raise DataError(
                    f"{path.name}: sample {sample.key}: mask has class id {outside[0]}, expected 0 to {num_classes - 1} "
                    f"or {IGNORE_ID} for ignore"
                )
            try:
                mask = encode_mask(sample.mask)
            except ValueError as error:
                raise DataError(f"{path.name}: sample {sample.key}: {error}") from error
            meta = json.dumps(sample.meta, sort_keys=True).encode()
            for part, content in sorted({suffix: image, "mask.png": mask, "json": meta}.items()):
                tar.addfile(_member(f"{sample.key}.{part}", len(content)), io.BytesIO(content))
            rows.append(
                {
                    "key": sample.key,
                    "shard": path.name,
                    "height": size[0],
                    "width": size[1],
                    "class_ids": ids.tolist(),
                    "class_pixels": pixels.tolist(),
                }
            )
    partial.replace(path)
    shard = Shard(name=path.name, samples=len(rows), bytes=path.stat().st_size, sha256=file_sha256(path))
    return shard, rows


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Owner and time are fixed, so that equal samples give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    member.uname = member.gname = "kiloseg"
    return member


def file_sha256(path: Path) -> str:
    """Digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_info(directory: Path | str, info: DatasetInfo) -> None:
    """Writes dataset.json, last of all: a folder that has it is complete."""
    content = {
        "format": FORMAT,
        "name": info.name,
        "num_classes": info.num_classes,
        "ignore_id": IGNORE_ID,
        "background": info.background,
        "licence": info.licence,
        "command": info.command,
        "recipe": info.recipe,
        "splits": {split: [dataclasses.asdict(shard) for shard in shards] for split, shards in info.splits.items()},
        "classes": info.classes,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    open_folder(directory).write(DESCRIPTION, text.encode())


def read_info(directory: Path | str) -> DatasetInfo:
    """Reads dataset.json.

    Raises:
        DataError: no such file, another format, missing fields, or a shard name that leads out of the folder.
    """
    folder = open_folder(directory)
    path = folder.at(DESCRIPTION)
    try:
        text = folder.read(DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} does not exist: expected a data set folder, as python datasets/glyphs.py --out DIR makes one"
        ) from None
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error}); mend its rights") from error
    try:
        content = json.loads(text.decode())
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format is {content['format']!r}, expected {FORMAT!r}; build the data set again")
        splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
        info = DatasetInfo(
            name=content["name"],
            classes=content["classes"],
            background=content["background"],
            licence=content["licence"],
            command=content["command"],
            recipe=content["recipe"],
            splits=splits,
        )
        declared = content["num_classes"], content["ignore_id"]
        _check_kinds(info)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); build the data set again") from error
    if declared != (info.num_classes, IGNORE_ID) or not 2 <= info.num_classes <= MAX_CLASSES:
        raise DataError(
            f"{path}: num_classes {declared[0]} with {info.num_classes} class names and ignore_id {declared[1]}: expected "
            f"as many as names, 2 to {MAX_CLASSES}, and ignore_id {IGNORE_ID}"
        )
    if info.background is not None and not 0 <= info.background < info.num_classes:
        raise DataError(f"{path}: background is {info.background}, expected a class id or null")
    for shards in splits.values():
        for shard in shards:
            if "/" in shard.name or "\\" in shard.name or shard.name.startswith("."):
                raise DataError(f"{path}: shard name {shard.name!r} must be a plain file name beside dataset.json")
    return info


def _check_kinds(info: DatasetInfo) -> None:
    """Raises TypeError."""
    if not isinstance(info.classes, list) or not all(isinstance(name, str) for name in info.classes):
        raise TypeError("classes must be a list of names")
    if info.background is not None and type(info.background) is not int:
        raise TypeError("background must be a class id or null")
    for shard in itertools.chain.from_iterable(info.splits.values()):
        if not isinstance(shard.name, str) or not all(type(n) is int and n >= 0 for n in (shard.samples, shard.bytes)):
            raise TypeError(f"{shard} must have a name and whole numbers")
        if not isinstance(shard.sha256, str) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise TypeError(f"{shard} must have a sha256 of 64 hexadecimal digits")


def check_shards(directory: Path | str, info: DatasetInfo, split: str) -> None:
    """Cheap check before a run: every shard of the split is there with its full size.

    Raises:
        DataError: names the first shard that is missing or has another size.
    """
    folder = open_folder(directory)
    sizes = folder.sizes()
    for shard in info.shards(split):
        path = folder.at(shard.name)
        if shard.name not in sizes:
            raise DataError(f"{path} is missing, though {DESCRIPTION} lists it; restore it or rebuild: {info.command}")
        if sizes[shard.name] != shard.bytes:
            raise DataError(
                f"{path} has {sizes[shard.name]} bytes, expected {shard.bytes}; restore it or rebuild: {info.command}"
            )
