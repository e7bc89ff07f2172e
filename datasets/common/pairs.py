"""Finds pairs of an image and its mask, as archives hold them, checks them, and reads them into samples."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from kiloseg.data.description import DatasetInfo
from kiloseg.data.reading.decoding import decode_pixels
from kiloseg.data.writing.build import ShardTask, build, plan_shards
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError


class Pair(NamedTuple):
    """Holds one sample of an archive; `image` and `mask` are files, relative to the archive's root."""

    key: str
    image: str
    mask: str


class Place(NamedTuple):
    """Says where a split of an archive is, and how large the complete split is."""

    path: str
    """The file or folder, relative to the root, whose presence means that the split exists."""
    samples: int


def find_splits(
    name: str, root: Path, places: Mapping[str, Place], list_pairs: Callable[[Path, str], list[Pair]], remedy: str
) -> dict[str, list[Pair]]:
    """Returns the pairs of every split that exists, in a fixed random order; prints what is left out or has another size.

    Shards are read from end to end, so neighbors in an archive (a city, a kind of place) must not share one.

    Raises:
        DataError: There is no split at all, or a file of a split is missing; the message ends in `remedy`.
    """
    splits = {}
    for split, place in places.items():
        if not (root / place.path).exists():
            print(f"{name}: {root / place.path} does not exist, so there will be no split {split}")
            continue
        pairs = list_pairs(root, split)
        if not pairs:
            raise DataError(
                f"{root / place.path} lists no images: expected {place.samples:,} of {name} {split}. {remedy}"
            )
        check_count(name, split, len(pairs), place.samples)
        check_files(root, [pair.image for pair in pairs], "images", remedy)
        check_files(root, [pair.mask for pair in pairs], "masks", remedy)
        splits[split] = sorted(pairs, key=lambda pair: order(pair.key))
    if not splits:
        expected = " or ".join(str(root / place.path) for place in places.values())
        raise DataError(f"{root} holds no files of {name}: expected {expected}. {remedy}")
    return splits


def order(key: str) -> bytes:
    """Returns the key that samples are sorted by: random, and the same for a key whatever else exists."""
    return hashlib.sha256(key.encode()).digest()


def check_count(name: str, split: str, samples: int, full: int) -> None:
    """Prints a warning if a split's size differs from the published one."""
    if samples != full:
        print(
            f"warning: {name} {split} has {samples:,} samples here, but {full:,} were published; results on a part, or on "
            "another version, cannot be compared"
        )


def check_files(root: Path, files: list[str], what: str, remedy: str) -> None:
    """Raises DataError with the first missing file and the number of missing files; `what` names them, in the plural."""
    there = set()
    # This lists each folder once: one query per file takes minutes on a network file system.
    for folder in {str(Path(file).parent) for file in files}:
        if (root / folder).is_dir():
            there |= {Path(folder, path.name) for path in (root / folder).iterdir()}
    missing = [file for file in files if Path(file) not in there]
    if missing:
        others = f", and {len(missing) - 1:,} more of {len(files):,} {what}" if len(missing) > 1 else ""
        raise DataError(f"{root / missing[0]} is missing{others}. {remedy}")


def fingerprint(root: Path, files: Iterable[str]) -> str:
    """Returns a sha256 over the names, sizes and times of files: a changed file makes a new recipe, without reading any."""
    return digest_of(states(root, files))


def states(root: Path, files: Iterable[str]) -> list[str]:
    """Returns name, size and time of each file, as a line of text."""
    lines = []
    for file in files:
        status = (root / file).stat()
        lines.append(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n")
    return lines


def digest_of(lines: Iterable[str]) -> str:
    """Returns the sha256 of lines in hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def with_files(tasks: Iterable[ShardTask], *found: Mapping[str, Sequence[str]]) -> list[ShardTask]:
    """Adds to each shard the digest of what its samples are made from.

    Args:
        tasks: the shards.
        found: for each split, a text per sample, such as the `states` of its images; several such mappings if a sample has
            several files.
    """
    return [
        dataclasses.replace(
            task, files=digest_of(line for lines in found for line in lines[task.split][task.start : task.stop])
        )
        for task in tasks
    ]


def read_image(path: Path) -> bytes:
    """Returns the bytes of a JPEG or PNG file; one without its end is decoded, as in training, to see whether it is complete.

    Raises:
        DataError: There is no such file, it has another format or 16 bits per channel, or it is truncated.
    """
    with _opened(path, "JPEG", "PNG") as image:
        if image.mode.startswith("I"):
            raise DataError(f"{path} has 16 bits a channel: expected 8; convert it")
    data = path.read_bytes()
    if not _ended(data):
        try:
            decode_pixels(data)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path} cannot be decoded ({error}): expected a whole image; restore it") from error
    return data


def _ended(data: bytes) -> bool:
    """Whether a JPEG has its end after its last scan, or a PNG its last chunk."""
    if not data.startswith(b"\xff\xd8"):
        return b"IEND" in data[-12:]
    return data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def build_pairs(
    output: Output,
    info: DatasetInfo,
    root: Path,
    splits: Mapping[str, list[Pair]],
    read_mask: Callable[[Path], np.ndarray],
    *,
    masks: Path | None = None,
    read_image: Callable[[Path], bytes] = read_image,
) -> DatasetInfo:
    """Builds the data set of these pairs and adds the files to the recipe.

    Args:
        output: the output location.
        info: the data set without splits.
        root: the root of the images.
        splits: the pairs in the order of the samples.
        read_mask: reads uint16 class ids of shape (H, W) from a mask's file.
        masks: the root of the masks, if it is a different one.
        read_image: reads the JPEG or PNG bytes from an image's file.

    Raises:
        DataError: The reasons are those of `build`.
    """
    masks = root if masks is None else masks
    found, files = pair_states(root, masks, splits)
    recipe = {**info.recipe, "files": files}
    tasks = [task for split, pairs in splits.items() for task in plan_shards(split, len(pairs), output.shard_size)]
    make = functools.partial(
        make_samples,
        images=root.resolve(),  # absolute, since workers on a cluster start elsewhere
        masks=masks.resolve(),
        splits=splits,
        read_mask=read_mask,
        read_image=read_image,
    )
    info = dataclasses.replace(info, recipe=recipe)
    return build(output, info, with_files(tasks, *found), make, covered=("files",))


def pair_states(
    root: Path, masks: Path, splits: Mapping[str, list[Pair]]
) -> tuple[list[dict[str, list[str]]], dict[str, list[str]]]:
    """Returns the states of images and of masks for `with_files`, and their digests for a recipe, by split."""
    images = {split: states(root, [pair.image for pair in pairs]) for split, pairs in splits.items()}
    labels = {split: states(masks, [pair.mask for pair in pairs]) for split, pairs in splits.items()}
    return [images, labels], {split: [digest_of(images[split]), digest_of(labels[split])] for split in splits}


def make_samples(
    task: ShardTask,
    *,
    images: Path,
    masks: Path,
    splits: Mapping[str, list[Pair]],
    read_mask: Callable[[Path], np.ndarray],
    read_image: Callable[[Path], bytes],
) -> Iterator[Sample]:
    """Yields the samples of a shard."""
    for pair in splits[task.split][task.start : task.stop]:
        working_on(pair.image)
        yield Sample(
            key=pair.key,
            image=read_image(images / pair.image),
            mask=read_mask(masks / pair.mask),
            meta={"image": pair.image, "mask": pair.mask},
        )


def read_ids(path: Path) -> np.ndarray:
    """Reads the ids in a PNG mask as uint8 or uint16 of shape (H, W): gray values, or palette indices.

    Raises:
        DataError: There is no such file, it is not a PNG, or it has colors instead of ids.
    """
    with _opened(path, "PNG") as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise DataError(
                f"{path} is a {image.mode} image of {len(image.getbands())} channels: expected a mask of one channel, whose "
                "values (8 or 16 bits) or palette indices are class ids; convert its colors to ids first"
            )
        try:
            ids = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow calls damaged PNG data a SyntaxError
            raise DataError(f"{path} cannot be decoded ({error}): expected a whole PNG; restore it") from error
        with path.open("rb") as file:
            bits = gray_bits(file) if image.mode == "L" else 8
    if bits < 8:  # Pillow spreads the values over 0 to 255
        return ids // (255 // (2**bits - 1))
    return ids.astype(np.uint16 if image.mode.startswith("I") else np.uint8)


def gray_bits(file: BinaryIO) -> int:
    """Returns the bit depth of a PNG, from its header."""
    file.seek(24)
    return file.read(1)[0]


def _opened(path: Path, *formats: str) -> Image.Image:
    try:
        return Image.open(path, formats=formats)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected a {' or '.join(formats)} file; restore it") from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large ({error}): build its images with datasets/folder.py --tile 1024, which cuts them into tiles"
        ) from error
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"{path} is not a readable {' or '.join(formats)} file ({error}); restore or convert it"
        ) from error


def safe_key(name: str) -> str:
    """Makes a sample's key from a file name without its suffix: letters, digits, dashes and underscores."""
    return re.sub(r"[^\w-]", "_", name)


def read_list(path: Path) -> list[str]:
    """Returns the names in a list file, one per line; empty lines are skipped.

    Raises:
        DataError: A name occurs twice.
    """
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(set(names)) != len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"{path} lists {twice!r} twice: expected each image once; restore the file")
    return names
