"""Provides photographs that installed packages ship, and cuts random squares from photographs as backgrounds for scenes.

Cutting a square needs only NumPy and Pillow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_FOLDERS = {"sklearn": ("datasets", "images"), "skimage": ("data",)}
_INSTALLED_AS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}


def packaged_photograph(package: str, name: str) -> Path:
    """Returns the file of a photograph that an installed package ships.

    Raises:
        ModuleNotFoundError: The package, or the photograph in it, does not exist.
    """
    # The file is read directly: scikit-learn's own load_sample_image would import SciPy in every process, which takes seconds.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{name} is a photograph from {_INSTALLED_AS[package]}, which is not installed: "
            f"pip install {_INSTALLED_AS[package]}",
            name=package,
        )
    path = Path(spec.origin).parent.joinpath(*_FOLDERS[package], name)
    if not path.is_file():
        raise ModuleNotFoundError(
            f"{path} does not exist: expected the photograph that {_INSTALLED_AS[package]} ships; install the version "
            "that constraints.txt names",
            name=package,
        )
    return path


def random_square(rng: np.random.Generator, photographs: Sequence[Image.Image], size: int) -> np.ndarray:
    """Cuts a random square from one of the photographs, mirrored or not, brighter or darker: float32 of shape (size, size, 3)."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = rng.uniform(0.3, 1) * min(photograph.size)
    left, top = rng.random(2) * (np.array(photograph.size) - side)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels * np.float32(rng.uniform(0.6, 1.3))
