"""The one folder for what can be made or fetched again: compiled kernels and copies of remote shards."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The folder that KILOSEG_CACHE names, else `kiloseg` in the user's cache folder.

    The user's cache folder is the operating system's (~/.cache on Linux, ~/Library/Caches on macOS), or the one that
    XDG_CACHE_HOME names on any of them.
    """
    named = os.environ.get("KILOSEG_CACHE")
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(shared) / "kiloseg" if shared else platformdirs.user_cache_path("kiloseg", appauthor=False)
