"""Reads the json files of an annotation tool, one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiloseg.storage.errors import DataError


def read_json(path: Path) -> Any:
    """Returns the content of a json file, with or without a byte order mark; raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: restore it") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): restore or remove it") from error
