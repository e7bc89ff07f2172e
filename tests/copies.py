"""A copy of this tree whose functions leave a note of where, when and on what they ran."""

import json
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]

NOTE = """

_{name} = {name}


def {name}(*arguments, **named):
    import json, os, time
    from pathlib import Path

    import ray

    context = ray.get_runtime_context() if ray.is_initialized() else None
    note = {{"file": __file__, "begin": time.time()}}
    if context is not None:
        note |= {{"node": context.get_node_id(), "gpus": ray.get_gpu_ids(), "actor": context.get_actor_id()}}
    path = Path({folder!r}, f"{name}-{{os.getpid()}}-{{time.time_ns()}}.json")
    path.write_text(json.dumps(note))
    try:
        return _{name}(*arguments, **named)
    finally:
        path.write_text(json.dumps(note | {{"end": time.time()}}))
"""

READS = """

_read = Reader.read


def _noted(reader, shard, index):
    import os
    from pathlib import Path

    sample = _read(reader, shard, index)
    with Path({folder!r}, f"read-{{os.getpid()}}.txt").open("a") as file:
        file.write(f"{{sample['__url__']}} {{sample['__key__']}}\\n")
    return sample


Reader.read = _noted
"""


def copy_tree(to: Path) -> Path:
    """This tree as a user has it, with results and an environment in it that must not travel."""
    of_any_folder = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", "*.egg-info")

    def left_out(folder: str, names: list[str]) -> set[str]:
        return of_any_folder(folder, names) | ({"data"} if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, to, ignore=left_out)
    for name in (".git/objects/pack", "runs/ray", "data/lvis"):
        (to / name).mkdir(parents=True)
        (to / name / "large").write_bytes(os.urandom(2**20))
    environment = to.with_name("venv")
    environment.mkdir()
    (environment / "large").write_bytes(os.urandom(2**20))
    (to / ".venv").symlink_to(environment)
    return to


def note_calls(tree: Path, module: str, function: str, folder: Path) -> None:
    """Has a function of the tree's library, in a module such as "training.loop", leave a note of every call."""
    path = tree / "platform" / "kiloseg" / (module.replace(".", "/") + ".py")
    assert f"def {function}(" in path.read_text()
    path.write_text(path.read_text() + NOTE.format(name=function, folder=str(folder)))


def note_reads(tree: Path, folder: Path) -> None:
    """Has every sample that is read leave a line, in a file for each process."""
    path = tree / "platform" / "kiloseg" / "data" / "reading" / "reader.py"
    path.write_text(path.read_text() + READS.format(folder=str(folder)))


def notes(folder: Path, function: str) -> list[dict]:
    """The notes of a function's calls."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{function}-*.json"))]


def reads(folder: Path, split: str) -> dict[str, list[tuple[str, str]]]:
    """Shard and key of the samples of a split that each worker read, by its process; what the driver read is left out."""
    workers = {path.name.split("-")[1] for path in folder.glob("_work-*.json")}
    files = [path for path in folder.glob("read-*.txt") if path.stem.removeprefix("read-") in workers]
    lines = {path.stem: [tuple(line.split()) for line in path.read_text().splitlines()] for path in files}
    chosen = {name: [line for line in each if line[0].startswith(f"{split}-")] for name, each in lines.items()}
    return {name: each for name, each in chosen.items() if each}
