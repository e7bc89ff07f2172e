"""Defines what models are called in MLflow. It imports no MLflow, so that settings can be checked quickly."""

from __future__ import annotations

SOURCE = "models:/"
"""Start of the source of a registered model: models:/NAME@ALIAS or models:/NAME/VERSION."""
DATA = "kiloseg_model"
"""Name, inside an MLflow model's folder of data, of the folder that `kiloseg export --format folder` writes."""
DEFAULT_ALIAS = "best"
"""Alias of a version whose alias is not given."""


def split_name(register: str) -> tuple[str, str]:
    """Returns the name and the alias in NAME or NAME@ALIAS.

    Raises:
        ValueError: a part is empty or has characters that MLflow does not allow.
    """
    name, mark, alias = register.partition("@")
    alias = alias if mark else DEFAULT_ALIAS
    if not name or not alias or set(name) & set("/:@.%\"'\\") or "@" in alias:
        raise ValueError(
            f"--register {register!r}: expected NAME or NAME@ALIAS, NAME without slashes, dots, colons, % and quotes"
        )
    if alias == "latest" or (alias[:1] == "v" and alias[1:].isdigit()):
        raise ValueError(f"--register {register!r}: MLflow keeps the alias {alias!r} for itself; choose another")
    return name, alias
