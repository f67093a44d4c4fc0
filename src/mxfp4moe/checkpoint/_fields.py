"""Fields of config.json as data: what each is called, what it may be, and what it is if it is missing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mxfp4moe._arguments import describe, type_error, value_error
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config

REQUIRED: Any = object()
"""The default of a field that must be there."""


@dataclass(frozen=True)
class Field(ABC):
    """A field by its names, ``"n_group|num_expert_group"``: one may be there, or several that are equal.

    A name with a dot, ``"ffn_config.moe_top_k"``, is of a field in an object.
    """

    names: str
    default: Any = REQUIRED
    null: Any = REQUIRED
    """What null stands for, if not for the default."""
    per_layer: bool = False
    """Whether it may also be a list with an item for each layer."""

    def __post_init__(self) -> None:
        if not isinstance(self.names, str):
            raise type_error("names", "the names of a field, as text", describe(self.names))
        if not all(self.names.split("|")):
            raise value_error("names", "no empty name", repr(self.names))

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The names apart."""
        return tuple(self.names.split("|"))

    def name_in(self, config: Config) -> str:
        """The name that is there, or the first one."""
        return next(
            (name for name in self.alternatives if config.get(name) is not None), self.alternatives[0]
        )

    def is_in(self, config: Config) -> bool:
        """Whether one of the names is there, and not null."""
        return any(config.get(name) is not None for name in self.alternatives)

    def read(self, config: Config) -> Any:
        """The value, checked; a list must have the same one for all layers."""
        name, values = self._list(config)
        if values is not None:
            if any(value != values[0] for value in values):
                raise config.error(name, "the same for all layers", shorten(values))
            return self._check(Config(config.path, {name: values[0]}, config.prefix))
        if not self.is_in(config):
            if self.null is not REQUIRED and any(map(config.is_null, self.alternatives)):
                return self.null
            if self.default is not REQUIRED:
                return self.default
        return self._check(config)

    def read_layers(self, config: Config) -> Callable[[int], Any]:
        """The value of a layer, by its number; what a list does not reach is as the last layer in it."""
        name, values = self._list(config)
        if values is None:
            value = self.read(config)
            return lambda layer: value
        items = [
            self.default
            if item is None and self.default is not REQUIRED
            else self._check(Config(config.path, {name: item}, config.prefix))
            for item in values
        ]
        return lambda layer: items[min(layer, len(items) - 1)]

    def _list(self, config: Config) -> tuple[str, list[Any] | None]:
        name = self.name_in(config)
        value = config.get(name)
        if not self.per_layer or not isinstance(value, list):
            return name, None
        check_length(config, name, value)
        return name, value or None

    @abstractmethod
    def _check(self, config: Config) -> Any:
        """The value of the field, which is there."""


@dataclass(frozen=True)
class Count(Field):
    """An integer field of at least `minimum`."""

    minimum: int = 1
    maximum: int = 2**31 - 1

    multiple_of: int = 1

    def _check(self, config: Config) -> int:
        bounds = {"minimum": self.minimum, "maximum": self.maximum, "multiple_of": self.multiple_of}
        return config.integer(*self.alternatives, **bounds)


@dataclass(frozen=True)
class Number(Field):
    """A field that is a number above 0; or at least `minimum`; or 0, which stands for `zero`."""

    minimum: float | None = None
    zero: Any = REQUIRED

    def _check(self, config: Config) -> Any:
        minimum = self.minimum if self.zero is REQUIRED else 0
        value = config.number(*self.alternatives, minimum=minimum)
        return self.zero if value == 0 and self.zero is not REQUIRED else value


@dataclass(frozen=True)
class Flag(Field):
    """A field that is true or false."""

    def _check(self, config: Config) -> bool:
        return config.boolean(*self.alternatives)


@dataclass(frozen=True)
class Choice(Field):
    """A field whose value decides between things; `otherwise` is for values that are not listed."""

    of: Mapping[Any, Any] = ()  # type: ignore[assignment]
    otherwise: Any = REQUIRED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.otherwise is REQUIRED and self.default is not REQUIRED and self.default not in self.of:
            raise value_error("default", f"one of {list(self.of)}", describe(self.default))

    def read(self, config: Config) -> Any:
        """What the value of the field stands for."""
        value = super().read(config)
        found = (self.of[key] for key in self.of if type(key) is type(value) and key == value)
        return next(found, self.otherwise)

    def _check(self, config: Config) -> Any:
        if self.otherwise is REQUIRED:
            return config.choice(self.alternatives, tuple(self.of))
        return next(value for name in self.alternatives if (value := config.get(name)) is not None)


def check_length(config: Config, name: str, items: Sequence[Any], kind: type | None = None) -> None:
    """Raise if a field has not one item for each layer."""
    lengths = config.list_lengths
    if lengths and len(items) not in lengths:
        expected = f"a list of {lengths[0]}{f' {kind.__name__}' if kind else ''}"
        raise config.error(name, expected, f"{shorten(items)} with {lengths[0]} layers (num_hidden_layers)")


Value: TypeAlias = Any
"""A constant, or a `Field`."""


def read_value(value: Value, config: Config) -> Any:
    """A constant as it is, a field as it is in the configuration; of a choice, what is chosen, in turn."""
    while isinstance(value, Field):
        value = value.read(config)
    return value
