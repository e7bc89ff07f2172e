"""Writes a shard, a tar file of samples, each with KEY.jpg or KEY.png, KEY.mask.png and KEY.json.

This needs only NumPy and Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kiloseg.data.codec import IGNORE_ID, count_ids, encode_image, encode_mask
from kiloseg.data.description import Shard
from kiloseg.storage.atomic import whole_file
from kiloseg.storage.errors import DataError

MAX_KEY_BYTES = 90
"""Maximum number of bytes in a key, so that it fits into a tar header together with a suffix."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Holds one image with its mask, ready to be written.

    `image` is uint8 of shape (H, W, 3), or the bytes of a JPEG or PNG file that are stored as they are; `mask` is any
    integer type of shape (H, W) with class ids 0 to 65,534 and 65,535 for ignore.
    """

    key: str
    image: np.ndarray | bytes
    mask: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Counts that the report of the build adds up, such as objects hidden by others. They are not stored with the sample."""


def write_shard(path: Path, samples: Iterable[Sample], *, num_classes: int) -> tuple[Shard, list[dict[str, Any]]]:
    """Writes one shard, which appears under its name only when it is complete.

    Returns:
        The shard's record, and one row of the index per sample (see `index`).

    Raises:
        DataError: the mask of a sample differs in size from its image or has an id outside the classes, or a key
            occurs twice or contains a dot or slash.
    """
    rows: list[dict[str, Any]] = []
    keys: set[str] = set()
    with whole_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
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
                suffix, image, size = encode_image(sample.image)
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
    shard = Shard(name=path.name, samples=len(rows), bytes=path.stat().st_size, sha256=file_sha256(path))
    return shard, rows


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Returns a tar header in which owner and time are fixed, so that equal samples give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    member.uname = member.gname = "kiloseg"
    return member


def file_sha256(path: Path) -> str:
    """Returns the sha256 digest of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
