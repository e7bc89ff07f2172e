"""Writes the shards of a data set in many processes, then its index and description. It resumes an interrupted build."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from tqdm import tqdm

from kiloseg.data.description import FORMAT, DatasetInfo, Shard, check_shards, read_info, write_info
from kiloseg.data.index import read_index, write_tables
from kiloseg.data.writing.current import current
from kiloseg.data.writing.faults import writing
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.processes import in_processes
from kiloseg.data.writing.report import Notes, Tally, lines
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.data.writing.unfinished import claim, is_intact, read_record, write_record
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import WORK, Folder, open_folder


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Describes one shard to write: samples `start` to `stop` - 1 of a split."""

    split: str
    number: int
    start: int
    stop: int
    files: str = ""
    """A digest of the files that the samples are made from, if `build` is told which keys of the recipe it covers."""

    @property
    def name(self) -> str:
        """The file name of the shard."""
        return f"{self.split}-{self.number:06d}.tar"


def plan_shards(split: str, num_samples: int, shard_size: int, weights: Sequence[int] | None = None) -> list[ShardTask]:
    """Divides a split of `num_samples` into shards of at most `shard_size` samples.

    Args:
        split: the name of the split.
        num_samples: what `ShardTask.start` and `stop` count.
        shard_size: the maximum number of samples in a shard.
        weights: how many samples `make_samples` yields for each of them, if not one. One that yields more than
            `shard_size` gets a shard of its own.
    """
    if weights is not None:
        starts = [0]
        total = 0
        for number, weight in enumerate(weights):
            if total and total + weight > shard_size:
                starts.append(number)
                total = 0
            total += weight
        stops = [*starts[1:], num_samples]
        return [
            ShardTask(split=split, number=number, start=start, stop=stop)
            for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]
    starts = list(range(0, num_samples, shard_size))
    return [
        ShardTask(split=split, number=number, start=start, stop=min(start + shard_size, num_samples))
        for number, start in enumerate(starts)
    ]


def up_to_date(directory: Path | str, recipe: dict[str, Any]) -> bool:
    """Returns whether the folder has a complete data set that was built by exactly this recipe (a JSON-able dict)."""
    try:
        info = read_info(directory)
        for split in info.splits:
            check_shards(directory, info, split)
        if info.recipe != recipe:
            return False
        samples = sum(info.num_samples(split) for split in info.splits)
        return read_index(directory, columns=["split"]).num_rows == samples
    except DataError:
        return False


def finished(output: Output, recipe: dict[str, Any]) -> DatasetInfo | None:
    """Returns the data set in `output.out` and prints a line if it is complete and has this recipe; None otherwise.

    `build` calls this itself. A builder with a long preparation may call it first.
    """
    if output.rebuild or not up_to_date(output.out, _whole(output, recipe)):
        return None
    folder = open_folder(output.out)
    folder.remove(WORK)  # it exists if a build was stopped between its last two steps
    info = read_info(output.out)
    print(f"{folder.name} is up to date: {_summary(info)}")
    return info


def build(
    output: Output,
    info: DatasetInfo,
    tasks: list[ShardTask],
    make_samples: Callable[[ShardTask], Iterable[Sample]],
    *,
    left_out: Mapping[str, int] | None = None,
    covered: Collection[str] = (),
) -> DatasetInfo:
    """Builds a data set in `output.out` unless it already exists, and prints a line about it.

    Shards that an interrupted build of the same recipe finished are kept. The driver holds one record per shard and no
    samples, so its memory does not grow with the number of samples.

    Args:
        output: where to write and with which resources.
        info: the data set without its splits. `recipe` has everything that affects the bytes; the shard size is added.
        tasks: the shards, in the order of the index.
        make_samples: yields the samples of a shard. It runs in other processes, so it must be a function of a module or a
            partial of one, and its script must have `if __name__ == "__main__"`. On a cluster its paths must be absolute.
        left_out: the number of files that are not used, by kind, for the report.
        covered: keys of the recipe that say which files are read. `ShardTask.files` says that of each shard, so a build
            that goes on after a file was corrected writes only the shards of that file again.

    Returns:
        `info` with its splits and report filled in.

    Raises:
        ConnectionError: the filesystem of a URL, or the cluster, does not answer.
        DataError: `out` has other content or cannot be written, the report has a warning and `strict` is set, or
            `write_shard` raised it.
        TypeError: JSON cannot represent the recipe, or `make_samples` cannot be sent to other processes.
        ValueError: there are no tasks.
    """
    if not tasks:
        raise ValueError(f"data set {info.name} has no shards to build; expected at least one sample in some split")
    if (found := finished(output, info.recipe)) is not None:
        return found
    begin = time.perf_counter()
    info = dataclasses.replace(info, recipe=_whole(output, info.recipe))
    folder = open_folder(output.out)
    digest = _digest(info, covered)
    with writing(folder):
        claim(folder, info.name, [task.name for task in tasks], rebuild=output.rebuild)
    work = functools.partial(
        _finish,
        location=folder.location,
        make_samples=make_samples,
        num_classes=info.num_classes,
        digest=digest,
    )
    done = _finish_all(work, tasks, output, info.name, folder, digest)
    splits: dict[str, list[Shard]] = {}
    tally = Tally(info.classes, info.background)
    for task in tasks:
        splits.setdefault(task.split, []).append(done[task][0])
        tally.add(task.split, *_rows(folder, task, digest))
    report = tally.report(left_out or {})
    if output.strict and report["warnings"]:
        raise DataError("; ".join(report["warnings"]) + " (without --strict, these are warnings)")
    info = dataclasses.replace(info, splits=splits, report=report)
    with writing(folder):
        write_tables(folder, (_rows(folder, task, digest)[0] for task in tasks))
        write_info(output.out, info)
        folder.remove(WORK)
    kept = sum(was_kept for _, was_kept in done.values())
    written = sum(shard.samples for shard, was_kept in done.values() if not was_kept)
    seconds = time.perf_counter() - begin
    kept_from = f", {kept} of {len(tasks)} shards kept from an earlier run" if kept else ""
    print(f"{folder.name}: {_summary(info)}, {seconds:.1f} s, {written / seconds:.0f} samples/s{kept_from}")
    print(*lines(report), sep="\n")
    return info


def _finish_all(
    work: functools.partial[tuple[Shard, bool]],
    tasks: list[ShardTask],
    output: Output,
    name: str,
    folder: Folder,
    digest: str,
) -> dict[ShardTask, tuple[Shard, bool]]:
    """Returns each shard, and whether it existed before; an error gets a note that says what is kept."""
    done: dict[ShardTask, tuple[Shard, bool]] = {}
    total = sum(task.stop - task.start for task in tasks)
    with tqdm(total=total, unit=" samples", desc=name) as bar, closing(_spread(work, tasks, output)) as results:
        try:
            for task, result in results:
                if not done:  # detects at once a cluster that writes to a place this machine does not see
                    _rows(folder, task, digest)
                done[task] = result
                bar.update(task.stop - task.start)
        except BaseException as error:
            again = "the same command continues from there"
            if isinstance(error, Exception):
                again += " once that is corrected, and writes the shards of changed files again"
            error.add_note(f"{len(done)} of {len(tasks)} shards are finished and kept in {folder.name}; {again}")
            raise
    return done


def _finish(
    task: ShardTask,
    *,
    location: str,
    make_samples: Callable[[ShardTask], Iterable[Sample]],
    num_classes: int,
    digest: str,
) -> tuple[Shard, bool]:
    """Makes sure that a shard and its record exist. Returns the shard, and whether it existed before."""
    folder = open_folder(location)
    digest = _task_digest(digest, task)
    record = read_record(folder, task.name, digest)
    if record is not None and is_intact(folder, record[0]):
        return record[0], True
    notes = Notes()
    with writing(folder):
        with folder.scratch() as scratch:
            noted = notes.following(make_samples(task))
            try:
                shard, rows = write_shard(scratch / task.name, noted, num_classes=num_classes)
            except DataError:
                raise  # it names the file or sample itself
            except Exception as error:
                error.add_note(f"{task.name}: this happened at {current()}")
                raise
            folder.put(scratch / task.name, task.name)
        write_record(folder, shard, [{"split": task.split, **row} for row in rows], notes, digest)
    return shard, False


def _spread(
    work: functools.partial[tuple[Shard, bool]], tasks: list[ShardTask], output: Output
) -> Generator[tuple[ShardTask, tuple[Shard, bool]]]:
    """Yields each task with its result as soon as it finishes."""
    if output.address is None:
        return in_processes(work, tasks, processes=output.processes)
    try:
        from kiloseg.data.writing.cluster import on_cluster
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"address = {output.address!r} needs Ray, which is not installed: pip install 'kiloseg[search]'"
        ) from error
    make_samples = work.keywords["make_samples"]
    while isinstance(make_samples, functools.partial):
        make_samples = make_samples.func
    return on_cluster(work, tasks, address=output.address, code=make_samples.__module__)


def _rows(folder: Folder, task: ShardTask, digest: str) -> tuple[pyarrow.Table, Notes]:
    """Returns the index rows of a finished shard and the notes taken while it was written."""
    record = read_record(folder, task.name, _task_digest(digest, task))
    if record is None:
        raise DataError(
            f"{folder.at(task.name)}: the written file is missing: expected a folder that all machines "
            "of the cluster see, or a URL, and no other build in the same folder"
        )
    return record[1:]


def _digest(info: DatasetInfo, covered: Collection[str]) -> str:
    """Returns the digest of everything that all shards are made from."""
    recipe = {name: value for name, value in info.recipe.items() if name not in covered}
    content = json.dumps([FORMAT, info.name, info.classes, recipe], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _task_digest(digest: str, task: ShardTask) -> str:
    return f"{digest} {task.start} {task.stop} {task.files}"


def _whole(output: Output, recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns the recipe with the settings that `build` adds, as it will be read back: tuples become lists."""
    try:
        return json.loads(json.dumps({**recipe, "shard_size": output.shard_size}))
    except TypeError as error:
        raise TypeError(f"a recipe must consist of JSON types ({error}): {recipe}") from error


def _summary(info: DatasetInfo) -> str:
    shards = [shard for split in info.splits for shard in info.shards(split)]
    samples = ", ".join(f"{info.num_samples(split)} {split}" for split in info.splits)
    megabytes = sum(shard.bytes for shard in shards) / 1e6
    return (
        f"{info.num_classes} classes, samples {samples}, {len(shards)} shards, {megabytes:.1f} MB, digest {info.digest}"
    )
