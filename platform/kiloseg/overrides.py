"""Reads, changes and compares configurations by dotted names."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from kiloseg.config import HEADS, Config, HeadSettings

T = TypeVar("T")

MAY_DIFFER = frozenset(
    {
        "data.path",
        "data.cache_gib",
        "data.loader_workers",
        "data.max_bad_samples",
        "data.val_batch_size",
        "data.val_splits",
        "trainer.output",
        "trainer.progress",
        "trainer.keep_checkpoints",
        # A run that ran out of memory may resume with a setting that needs less.
        "trainer.checkpoint_activations",
        "trainer.compile",
    }
)
"""Settings that do not change what a run computes."""

REMOVED: dict[str, Any] = {
    "loss.filter_gradients": False,
    "loss.negatives.log_q": False,
    "loss.sample_every": 1,
    "model.learned_temperature": False,
}
"""Removed settings that older checkpoints and studies still name, each with the only value that can be read: its former
default, which is how every run behaves now."""

FORMER_NAMES = {"model.normalise_early": "model.normalize_early"}
"""Maps the names that settings had in earlier versions, as checkpoints and studies still write them, to their current names."""

SHOWN = 5
"""Number of differences that a message names; the rest are only counted."""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every field of a config by its dotted name, in order: {"data.path": ..., "loss.negatives.count": ...}."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def override(config: T, values: Mapping[str, Any]) -> T:
    """Returns a copy of `config` with the fields in `values`, named by dotted names, replaced; all checks run again.

    All values are applied together, so that fields that limit each other can change at once. Former names are recognized.

    Raises:
        ValueError: a name is not a field (the message lists the fields), a value has the wrong type, or the config
            itself rejects a value.
    """
    known = flatten(config)
    values = {name if name in known else FORMER_NAMES.get(name, name): value for name, value in values.items()}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"no setting is called {name!r}; the settings are: {', '.join(known)}")
        _check_type(config, name, value)
    return _replace(config, values)


def _replace(config: Any, values: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            groups.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    for head, group in groups.items():
        changes[head] = _replace(getattr(config, head), group)
    return dataclasses.replace(config, **changes)


def _check_type(config: Any, name: str, value: Any) -> None:
    owner = config
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    expected = typing.get_type_hints(type(owner))[last]
    if not _fits(value, expected):
        if typing.get_origin(expected) is Literal:
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(typing.get_args(expected))}")
        raise ValueError(f"{name} = {value!r} is a {type(value).__name__}: expected {_shown(expected)}")


def _shown(expected: Any) -> str:
    """Returns a type as people write it, with the words of a Literal as they are: "int | None", "int | 'auto'"."""
    if typing.get_origin(expected) is Literal:
        return " | ".join(map(repr, typing.get_args(expected)))
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return " | ".join(_shown(one) for one in typing.get_args(expected))
    if expected is types.NoneType:
        return "None"
    return expected.__name__ if isinstance(expected, type) else str(expected)


def _fits(value: Any, expected: Any) -> bool:
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is Literal:
        return value in arguments
    if typing.get_origin(expected) is tuple:  # of any length, such as tuple[str, ...]
        return isinstance(value, tuple) and all(_fits(one, arguments[0]) for one in value)
    if arguments:  # a union such as int | None
        return any(_fits(value, argument) for argument in arguments)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def with_sizes(config: Config, num_classes: int) -> Config:
    """Returns the config of a run with a number of classes, in which numbers stand where sizes were "auto"."""
    sizes: dict[str, int] = {}
    if config.model.embed_dim == "auto":
        sizes["model.embed_dim"] = config.model.dimensions(num_classes)
    if config.loss.negatives.count == "auto" and config.model.head != "dense":  # which compares with all classes
        sizes["loss.negatives.count"] = config.loss.negatives.number(num_classes)
    return override(config, sizes)


def head_overrides(head: str) -> dict[str, Any]:
    """Returns the values for `override` that select a head by its name on command lines.

    The name is a key of `kiloseg.config.HEADS`, such as dense or official, or NAME:KIND for negatives of that kind, such
    as embedding:nearest.
    """
    name, _, kind = head.partition(":")
    settings = HEADS.get(name, HeadSettings())
    return {"model.head": name, **settings.required, **settings.usual} | ({"loss.negatives.kind": kind} if kind else {})


def head_negatives(base: Config, head: str, num_classes: int) -> int:
    """Returns the number of negatives of a run with another head, named as for `head_overrides`; it may exceed the classes."""
    kind = head_overrides(head).get("loss.negatives.kind", base.loss.negatives.kind)
    return override(base.loss.negatives, {"kind": kind}).number(num_classes)


def head_name(config: Config) -> str:
    """Returns the name that command lines use for the head of a run, as `head_overrides` takes it."""
    head = config.model.head
    return f"{head}:{config.loss.negatives.kind}" if head == "embedding" else head


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same settings under the names of this version (`FORMER_NAMES`); `loss.formula` is now a head."""
    named = {FORMER_NAMES.get(name, name): value for name, value in values.items()}
    formula = named.pop("loss.formula", "kiloseg")
    if formula != "kiloseg" and named.get("model.head") != "dense":
        named["model.head"] = formula
    return named


def from_flat(values: Mapping[str, Any]) -> Config:
    """Returns the config whose `flatten` is `values`; missing names keep their defaults.

    Removed settings (`REMOVED`) are accepted at their former defaults, and former names are recognized.

    Raises:
        ValueError: as for `override`, or if a removed setting has a value other than its former default.
    """
    values = renamed(values)
    for name, default in REMOVED.items():
        if values.get(name, default) != default:
            raise ValueError(
                f"{name} = {values[name]!r}: this setting was removed, and only its former default {default!r} can be read; "
                "use the version of kiloseg that wrote this configuration"
            )
    return override(Config(), {name: value for name, value in values.items() if name not in REMOVED})


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Describes how the settings of two runs or studies, both by dotted names, differ; empty if they do not.

    Settings that may differ are left out. `then` may come from an older version: a setting that did not exist yet counts as having
    its default, and a setting that was removed since then counts if its value there is not its former default.
    """
    defaults = flatten(Config())
    then = {name: defaults[name] for name in now if name in defaults} | renamed(then)
    now = {**now, **{name: default for name, default in REMOVED.items() if name in then}}
    changed = [
        f"{name} was {then.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name not in MAY_DIFFER and value != then.get(name)
    ]
    more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return "; ".join(changed[:SHOWN] + more)
