"""Remembers which file or sample a process is working on, so that a build whose process ends can name it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

LONGEST = 512
"""The most bytes of a name that are kept: its end, which tells files apart."""

_name = ""
_slot: memoryview | None = None


def working_on(name: str) -> None:
    """Says what this process works on from now on, such as the file that it is about to read; "" means nothing."""
    global _name
    _name = name
    if _slot is not None:
        text = name.encode(errors="replace")[-LONGEST:]
        _slot[: len(text)] = text
        _slot[len(text) :] = bytes(len(_slot) - len(text))


def current() -> str:
    """Returns what `working_on` was last called with in this process."""
    return _name


class Board:
    """Shows the parent what each of its processes works on, in memory that outlives a process that is killed.

    Args:
        context: the context of multiprocessing that starts the processes.
        processes: their number.
    """

    def __init__(self, context: Any, processes: int) -> None:
        self._names: Sequence[Any] = context.RawArray(ctypes.c_char, processes * LONGEST)
        self._taken: Synchronized[int] = context.Value("i", 0)
        self.arguments = (self._names, self._taken)
        """What `join` needs; it can be passed only to processes as they start."""

    def names(self) -> Iterator[str]:
        """Yields what each process that works on something works on."""
        everything = bytes(memoryview(self._names).cast("B"))  # type: ignore[arg-type] # arrays of ctypes have a buffer
        for start in range(0, len(everything), LONGEST):
            name = everything[start : start + LONGEST].rstrip(b"\0")
            if name:
                yield name.decode(errors="replace")


def join(names: Any, taken: Synchronized[int]) -> None:
    """Lets this process write to the board of its parent from now on; called once, at the start of a process."""
    global _slot
    with taken.get_lock():
        number = taken.value
        taken.value += 1
    whole = memoryview(names).cast("B")
    if (number + 1) * LONGEST <= len(whole):
        _slot = whole[number * LONGEST : (number + 1) * LONGEST]
