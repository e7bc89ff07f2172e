"""Finds the one folder for files that can be made or fetched again: compiled kernels and copies of remote shards."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Returns the folder that KILOSEG_CACHE names, or otherwise `kiloseg` in the user's cache folder.

    The user's cache folder is the one that XDG_CACHE_HOME names on any system, or otherwise the default of the operating
    system (~/.cache on Linux, ~/Library/Caches on macOS).
    """
    named = os.environ.get("KILOSEG_CACHE")
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(shared) / "kiloseg" if shared else platformdirs.user_cache_path("kiloseg", appauthor=False)
