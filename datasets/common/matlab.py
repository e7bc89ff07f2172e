"""Reads label maps in MATLAB's .mat files, as SBD and COCO-Stuff 10k use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kiloseg.storage.errors import DataError


def read_matlab(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """Reads a label map of shape (H, W) in the type of the file: variable `names[0]`, or a field inside that struct.

    Raises:
        DataError: There is no such file, it is not a .mat file of version 5, or it has other contents.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise DataError(f"{path}: reading .mat files needs SciPy; pip install 'kiloseg[datasets]'") from None
    if not path.is_file():
        raise DataError(f"{path} is missing: restore it")
    try:
        content = loadmat(path, variable_names=names[:1])
    except Exception as error:  # SciPy raises many kinds, including its reader's own, for a truncated file
        raise DataError(f"{path} is not a readable .mat file ({error}): restore it from the archive") from error
    try:
        value = content[names[0]]
        for name in names[1:]:
            value = value[0][name][0]  # a struct is a 1 x 1 array of records
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{path} has no {'.'.join(names)}, but {', '.join(name for name in content if name[0] != '_') or 'nothing'}: "
            "expected a label map of the archive; restore it"
        ) from error
    return np.asarray(value)
