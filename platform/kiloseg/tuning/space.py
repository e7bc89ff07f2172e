"""Search spaces: settings by dotted names, each with its range; some apply only if another setting has certain values."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kiloseg.config import HEADS, Config
from kiloseg.overrides import flatten, override

Scale = Literal["choice", "uniform", "log"]

HEAD = "model.head"
KIND = "loss.negatives.kind"
COUNT = "loss.negatives.count"
LEAST_NEGATIVES = {"random": 1, "nearest": 1, "mixed": 2}
"""Smallest count for each kind of negatives that has one; mixed needs 2 because it is half random and half nearest."""
OF_EMBEDDING = ((HEAD, ("embedding",)),)
"""Condition for settings that only the embedding head has."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """The values of one setting that a search chooses from. `choice`, `uniform` and `log` create dimensions."""

    name: str
    """Dotted name of the setting."""
    scale: Scale
    choices: tuple[Any, ...] = ()
    """The values for scale "choice", at least one and each once."""
    low: float = 0.0
    """Smallest value for the other scales; above 0 for "log"."""
    high: float = 0.0
    """Largest value for the other scales."""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Conditions: the dimension applies only if each of these settings has one of its values here."""

    def __post_init__(self) -> None:
        if self.scale == "choice":
            if not self.choices or len(set(self.choices)) < len(self.choices):
                raise ValueError(f"search of {self.name}: expected at least one value, each once, not {self.choices}")
        elif self.low > self.high or (self.scale == "log" and self.low <= 0):
            least = " above 0" if self.scale == "log" else ""
            raise ValueError(
                f"search of {self.name}: expected a range from low to high{least}, not {self.low} to {self.high}"
            )

    def __str__(self) -> str:
        values = ", ".join(map(str, self.choices)) if self.scale == "choice" else f"{self.low} to {self.high}"
        conditions = [f"{name} in {', '.join(map(str, values))}" for name, values in self.when]
        return f"{self.scale} {values}" + (f" where {' and '.join(conditions)}" if conditions else "")

    @property
    def integer(self) -> bool:
        """Whether the range consists of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def edges(self) -> tuple[Any, ...]:
        """The values to check: if they are valid, so are all others."""
        return self.choices if self.scale == "choice" else (self.low, self.high)

    def suggest(self, trial: Any) -> Any:
        """Returns the value that Optuna chooses for a trial."""
        if self.scale == "choice":
            return trial.suggest_categorical(self.name, list(self.choices))
        suggest = trial.suggest_int if self.integer else trial.suggest_float
        return suggest(self.name, self.low, self.high, log=self.scale == "log")


def choice(name: str, values: Sequence[Any], **when: Any) -> Dimension:
    """Returns a dimension with a few values. `when`: as `Dimension.when`."""
    return Dimension(name=name, scale="choice", choices=tuple(values), **when)


def uniform(name: str, low: float, high: float, **when: Any) -> Dimension:
    """Returns a dimension from `low` to `high`, of whole numbers if both are whole. `when`: as `Dimension.when`."""
    return Dimension(name=name, scale="uniform", low=low, high=high, **when)


def log(name: str, low: float, high: float, **when: Any) -> Dimension:
    """Returns a logarithmic dimension from `low` to `high`, both above 0, of whole numbers if both are whole."""
    return Dimension(name=name, scale="log", low=low, high=high, **when)


@dataclass(frozen=True)
class Space:
    """All dimensions of a search. A space is picklable, since Ray saves it with the study."""

    base: Config
    """The run that trials vary. It supplies the settings that no dimension chooses, also for conditions."""
    dimensions: tuple[Dimension, ...]

    def __call__(self, trial: Any) -> dict[str, Any]:
        """Chooses the settings of an Optuna trial, and adds those that the chosen head requires."""
        chosen: dict[str, Any] = {}
        for dimension in self.dimensions:
            if self.applies(dimension, chosen):
                chosen[dimension.name] = dimension.suggest(trial)
        return self.required(chosen) | chosen

    def applies(self, dimension: Dimension, chosen: Mapping[str, Any]) -> bool:
        """Returns whether a dimension applies to a trial whose earlier dimensions have the values `chosen`."""
        known = flatten(self.base) | self.required(chosen) | dict(chosen)
        return all(known[name] in values for name, values in dimension.when)

    def required(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the required and usual settings of the chosen head if it is not the head of the base run."""
        head = chosen.get(HEAD, self.base.model.head)
        return {} if head == self.base.model.head else {**HEADS[head].required, **HEADS[head].usual}

    def describe(self) -> dict[str, str]:
        """Returns a description of every dimension, for the study's plan."""
        described: dict[str, str] = {}
        for dimension in self.dimensions:
            name = f"search of {dimension.name}"
            described[name] = " or ".join(filter(None, [described.get(name), str(dimension)]))
        return described

    def check(self, num_classes: int) -> None:
        """Rejects values that no trial could have.

        Raises:
            ValueError: a name is no setting (the message lists all settings), a value has the wrong type or is out of the
                setting's range, or there are more negatives than `num_classes` - 1.
        """
        names = {dimension.name for dimension in self.dimensions}
        unknown = sorted(names - flatten(self.base).keys())
        if unknown:
            raise ValueError(
                f"no setting is called {', '.join(unknown)}; the settings are: {', '.join(flatten(self.base))}"
            )
        for dimension in self.dimensions:
            if "auto" in dimension.edges:
                raise ValueError(f"search of {dimension.name}: expected numbers to choose from, not auto")
            conditions = {name: values[0] for name, values in dimension.when}
            for value in dimension.edges:
                chosen = conditions | {dimension.name: value}
                # A kind of negatives is checked with a count from its own dimension, not with that of the base run.
                counts = [
                    each.edges[0] for each in self.dimensions if each.name == COUNT and self.applies(each, chosen)
                ]
                chosen = dict.fromkeys([COUNT], counts[0]) | chosen if counts else chosen
                config = override(self.base, self.required(chosen) | chosen)
                if dimension.name == COUNT:
                    config.loss.negatives.check_classes(num_classes)

    def with_dimensions(self, *added: Dimension) -> Space:
        """Returns the space with `added` replacing dimensions of the same names; the head is first, as others depend on it."""
        names = {dimension.name for dimension in added}
        dimensions = [*(each for each in self.dimensions if each.name not in names), *added]
        return Space(self.base, tuple(sorted(dimensions, key=lambda each: each.name != HEAD)))


def negatives(kinds: Sequence[str], num_classes: int) -> tuple[Dimension, ...]:
    """Returns dimensions for the kind and count of the embedding head's negatives, for a number of classes.

    The count is chosen only for the kinds that have one, on a logarithmic scale up to all other classes; kinds that need more
    classes are left out.

    Args:
        kinds: values of loss.negatives.kind to choose from.
        num_classes: number of classes of a run, 2 or more.

    Raises:
        ValueError: no kind is left.
    """
    possible = [kind for kind in kinds if LEAST_NEGATIVES.get(kind, 1) < num_classes]
    if not possible:
        raise ValueError(
            f"loss.negatives.kind = {', '.join(kinds)}: expected one that works with {num_classes} classes"
        )
    counted = [
        log(COUNT, LEAST_NEGATIVES[kind], num_classes - 1, when=(*OF_EMBEDDING, (KIND, (kind,))))
        for kind in possible
        if kind in LEAST_NEGATIVES
    ]
    return (choice(KIND, possible, when=OF_EMBEDDING), *counted)


def parse_dimension(text: str, base: Config) -> Dimension:
    """Parses a dimension from a command line.

    Args:
        text: NAME=log:LOW:HIGH, NAME=uniform:LOW:HIGH, or NAME=VALUE,VALUE,...
        base: the run that trials vary, whose fields define the types of values.

    Raises:
        ValueError: the text has another form, the name is no setting, or a value is not of the setting's type.
    """
    name, equals, values = text.partition("=")
    form = "expected NAME=log:LOW:HIGH, NAME=uniform:LOW:HIGH or NAME=VALUE,VALUE,... with the dotted name of a setting"
    if not equals or not values:
        raise ValueError(f"--search {text}: {form}")
    settings = flatten(base)
    if name not in settings:
        raise ValueError(f"--search {text}: no setting is called {name!r}; the settings are: {', '.join(settings)}")
    scale, *edges = values.split(":")
    if scale in ("log", "uniform"):
        if len(edges) != 2:
            raise ValueError(f"--search {text}: {form}")
        low, high = (_value(name, edge, base, text) for edge in edges)
        if not all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in (low, high)):
            raise ValueError(f"--search {text}: {name} is not a number; give its values, as in {name}=VALUE,VALUE")
        return Dimension(name=name, scale=typing.cast(Scale, scale), low=low, high=high)
    return choice(name, [_value(name, value, base, text) for value in values.split(",")])


def _value(name: str, text: str, base: Config, flag: str) -> Any:
    """Parses a value of a setting: of several interpretations of the text, the first that the setting accepts."""
    readings: list[Any] = [text]
    for kind in (float, int):
        try:
            readings.insert(0, kind(text))
        except ValueError:
            continue
    readings = [{"true": True, "false": False, "none": None}.get(text.lower(), readings[0]), *readings]
    errors = []
    for reading in readings:
        try:
            override(base, {name: reading, **({} if name != HEAD else HEADS[text].required if text in HEADS else {})})
        except ValueError as error:
            errors.append(str(error))
        else:
            expected = flatten(base)[name]
            return float(reading) if isinstance(expected, float) and not isinstance(reading, bool) else reading
    raise ValueError(f"--search {flag}: {errors[-1] if isinstance(readings[0], str) else errors[0]}")
