"""Writes the shards of a data set in several processes, then its index and description."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kiloseg.data.index import write_index
from kiloseg.data.shards import (
    DESCRIPTION,
    DataError,
    DatasetInfo,
    Sample,
    Shard,
    check_shards,
    read_info,
    write_info,
    write_shard,
)


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to write: samples `start` to `stop` - 1 of a split."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.split}-{self.number:06d}.tar"


def plan_shards(split: str, num_samples: int, shard_size: int) -> list[ShardTask]:
    """Cuts a split of `num_samples` into shards of at most `shard_size` samples."""
    starts = range(0, num_samples, shard_size)
    return [
        ShardTask(split=split, number=number, start=start, stop=min(start + shard_size, num_samples))
        for number, start in enumerate(starts)
    ]


def up_to_date(directory: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder holds a complete data set that was built by exactly this recipe (a JSON-able dict)."""
    try:
        info = read_info(directory)
        for split in info.splits:
            check_shards(directory, info, split)
    except DataError:
        return False
    return info.recipe == recipe


def build(
    directory: Path,
    info: DatasetInfo,
    tasks: list[ShardTask],
    make_samples: Callable[[ShardTask], Iterable[Sample]],
    *,
    processes: int,
) -> DatasetInfo:
    """Writes every shard of `tasks` into `directory`, and dataset.json last.

    `make_samples` runs in other processes, so it must be picklable (a module's function, or a partial of one).

    Returns:
        `info` with its splits filled in.

    Raises:
        DataError: as `write_shard`.
        ValueError: `processes` below 1.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes}: expected at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / DESCRIPTION).unlink(missing_ok=True)
    for old in directory.glob("*.tar"):  # a recipe with fewer samples would leave shards that nothing lists
        old.unlink()
    finished: dict[ShardTask, tuple[Shard, list[dict[str, Any]]]] = {}
    total = sum(task.stop - task.start for task in tasks)
    # Spawned, not forked: a builder may be called from a process that holds threads (Ray, a notebook).
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        tqdm(total=total, unit=" samples", desc=info.name) as bar,
    ):
        futures = {pool.submit(_write, directory, task, make_samples, info.num_classes): task for task in tasks}
        try:
            for future in as_completed(futures):
                task = futures[future]
                finished[task] = future.result()
                bar.update(task.stop - task.start)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    splits: dict[str, list[Shard]] = {}
    rows = []
    for task in tasks:
        shard, shard_rows = finished[task]
        splits.setdefault(task.split, []).append(shard)
        rows += [{"split": task.split, **row} for row in shard_rows]
    write_index(directory, rows)
    info = dataclasses.replace(info, splits=splits)
    write_info(directory, info)
    return info


def _write(
    directory: Path, task: ShardTask, make_samples: Callable[[ShardTask], Iterable[Sample]], num_classes: int
) -> tuple[Shard, list[dict[str, Any]]]:
    return write_shard(directory / task.name, make_samples(task), num_classes=num_classes)
