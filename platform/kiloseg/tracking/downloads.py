"""Keeps what was downloaded from MLflow in the cache folder, so that a model has one place however often it is named."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from kiloseg.storage.cache_folder import cache_folder


def downloaded(key: str, download: Callable[[str], str]) -> Path:
    """Returns what `download` fetches into an empty folder; it is called only if nothing was fetched for this key before.

    Args:
        key: says what is fetched, which never changes: a version of a model, or a checkpoint of a run.
        download: fetches it into the folder of this path, and returns the path of what it fetched, inside.

    Raises:
        OSError: the cache folder cannot be written, or as `download`.
    """
    folder = cache_folder() / "models" / hashlib.sha256(key.encode()).hexdigest()[:16]
    name = folder / "fetched"
    if not name.is_file():
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="fetching-", dir=folder.parent))
        try:
            content = partial / "content"
            content.mkdir()
            found = Path(download(str(content))).resolve().relative_to(content.resolve())
            (partial / "fetched").write_text(str(found), encoding="utf-8")
            with contextlib.suppress(OSError):  # another process fetched it in the meantime
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / "content" / name.read_text(encoding="utf-8")
