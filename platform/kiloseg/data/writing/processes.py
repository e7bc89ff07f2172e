"""Distributes the shards of a build over processes of this machine."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from kiloseg.data.writing.current import Board, join, working_on
from kiloseg.storage.errors import DataError

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, processes: int
) -> Generator[tuple[Task, Result]]:
    """Runs `work` on each task and yields tasks with their results as they finish. A single process is this one.

    Raises:
        DataError: a process was killed from outside; the message names the tasks that it may have been running.
        TypeError: `work` cannot be pickled.
        Exception: any exception that `work` raises, after running tasks have finished.
    """
    if processes == 1:
        for task in tasks:
            yield task, work(task)
        return
    # Pickled once and sent once to each process, since the data of `work` may be large.
    try:
        pickled = pickle.dumps(work)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise TypeError(
            f"{work} cannot be sent to another process ({error}); expected a function of a module, or a partial of one"
        ) from error
    # Spawned, not forked, since the caller may have threads (Ray, a notebook).
    context = multiprocessing.get_context("spawn")
    processes = min(processes, len(tasks))
    board = Board(context, processes)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_receive, initargs=(pickled, *board.arguments)
    ) as pool:
        try:
            futures = {pool.submit(_run, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            # Tasks start in order, so the process that ended was running one of the first unfinished tasks.
            left = [task for future, task in futures.items() if future.exception() is not None]
            at = ", ".join(str(getattr(task, "name", task)) for task in left[: processes + 1])
            names = ", ".join(board.names())
            raise DataError(
                f"a process was ended from outside, as the system does if memory runs out, at one of {at}"
                + f" while the processes worked on {names}" * bool(names)
                + "; lower --processes if memory ran out, or look at these files"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_pickled: bytes = b""


def _receive(pickled: bytes, names: Any, taken: Any) -> None:
    global _pickled
    _pickled = pickled
    join(names, taken)
    # Ctrl-C reaches every process, but only the main process reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Without this, processes whose parent was killed would wait for tasks forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@functools.cache
def _work() -> Callable[[Any], Any]:
    return pickle.loads(_pickled)


def _run(task: Any) -> Any:
    result = _work()(task)
    working_on("")
    return result
