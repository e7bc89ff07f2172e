"""Reads the samples of a shard as they are stored, without torch. This is for inspecting a data set, not for training."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO


def raw_samples(file: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields key and parts ("jpg", "mask.png", ...) of each sample, in file order. The file is read once from its start.

    Raises:
        tarfile.TarError, OSError, EOFError: the file is not a tar file, or it ends too early.
        ValueError: a member is not a plain file or has no suffix.
    """
    current = ""
    parts: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            key, dot, part = member.name.partition(".")
            content = tar.extractfile(member)
            if content is None or not key or not dot:
                raise ValueError(f"member {member.name!r} is not named KEY.SUFFIX")
            if key != current and parts:
                yield current, parts
                parts = {}
            elif part in parts:
                raise ValueError(f"member {member.name!r} occurs twice")
            current = key
            parts[part] = content.read()
    if parts:
        yield current, parts
