"""Which layers of a model have experts, as data: each class is one way in which config.json says so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mxfp4moe._arguments import format_ranges, join_choices
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._fields import Count, Field, Value, check_length, read_value

Predicate: TypeAlias = Callable[[int], bool]


class LayerRule(ABC):
    """One way to say it: `names` are the fields, `find` tells by them whether a layer has experts."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of all fields of this rule."""

    @abstractmethod
    def find(self, config: Config) -> Predicate:
        """What tells whether a layer has experts."""

    def is_in(self, config: Config) -> bool:
        """Whether the configuration says it in this way."""
        return any(config.get(name) is not None for name in self.names)

    def is_default(self, config: Config) -> bool:
        """Whether the fields say what they would if they were missing, as transformers writes them."""
        return False


@dataclass(frozen=True)
class LayerTypes(LayerRule):
    """A list with the kind of each layer by name, or a string with a letter for each."""

    field: str = "mlp_layer_types"
    sparse: tuple[str, ...] = ("sparse",)
    dense: tuple[str, ...] = ("dense",)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.field.split("|"))

    def find(self, config: Config) -> Predicate:
        name = next((name for name in self.names if config.get(name) is not None), self.names[0])
        value = config.get(name)
        if value is None:
            raise config.error(name, "the kind of each layer", "no such field")
        types = list(value) if isinstance(value, str) else layer_list(config, name, str)
        check_length(config, name, types, str)
        known = (*self.sparse, *self.dense)
        if wrong := [kind for kind in types if kind not in known]:
            raise config.error(name, f"{join_choices(map(repr, known))} for each layer", shorten(wrong[0]))
        return lambda layer: layer >= len(types) or types[layer] in self.sparse


@dataclass(frozen=True)
class LayerFlags(LayerRule):
    """A list with a number for each layer, 0 if it is dense; or one number, of each so many layers one."""

    field: str = "moe_layer_freq"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.field,)

    def find(self, config: Config) -> Predicate:
        if not isinstance(config.get(self.field), list):
            step = config.integer(self.field)
            return lambda layer: layer % step == 0
        flags = layer_list(config, self.field, int)
        return lambda layer: layer >= len(flags) or bool(flags[layer])


@dataclass(frozen=True)
class LayerNumbers(LayerRule):
    """The numbers of the layers that have experts: a list, or text with commas."""

    field: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.field,)

    def find(self, config: Config) -> Predicate:
        value = config.get(self.field)
        if isinstance(value, str):
            texts = [text.strip() for text in value.split(",")]
            if not all(text.isdecimal() and len(text) < 10 for text in texts):
                raise config.error(self.field, "layer numbers with commas between them", shorten(value))
            value = [int(text) for text in texts]
        else:
            value = config.list_of(self.field, int)
        numbers, lengths = set(value or ()), config.list_lengths
        if numbers and lengths and not 0 <= min(numbers) <= max(numbers) < max(lengths):
            raise config.error(self.field, f"numbers in [0, {max(lengths) - 1}]", shorten(sorted(numbers)))
        return lambda layer: layer in numbers or bool(lengths and layer >= max(lengths))


@dataclass(frozen=True)
class LayersFrom(LayerRule):
    """Layers from `first` to `last`, of each `step` one, but not those in the list `dense`.

    These are the layers with ``layer % step == offset % step``.
    """

    first: Value = 0
    last: Count | None = None
    """-1, or no such field, stands for the last layer."""
    step: Value = 1
    offset: Value = 0
    dense: str | None = None
    dense_default: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        values = (self.first, self.last, self.step, self.offset)
        names = [name for value in values if isinstance(value, Field) for name in value.alternatives]
        return (*names, self.dense) if self.dense else tuple(names)

    def is_default(self, config: Config) -> bool:
        fields = [
            value for value in (self.first, self.last, self.step, self.offset) if isinstance(value, Field)
        ]
        listed = (config.get(self.dense) or []) if self.dense else []
        return not listed and all(each.read(config) == each.default for each in fields)

    def find(self, config: Config) -> Predicate:
        first, step, offset = (read_value(field, config) for field in (self.first, self.step, self.offset))
        last = -1 if self.last is None else self.last.read(config)
        listed = config.list_of(self.dense, int) if self.dense else None
        dense = set(self.dense_default if listed is None else listed)

        def has_experts(layer: int) -> bool:
            in_range = first <= layer and (last < 0 or layer <= last)
            return in_range and (layer - offset) % step == 0 and layer not in dense

        return has_experts


def find_moe_layers(rules: Sequence[LayerRule], config: Config, num_layers: int | None) -> Predicate:
    """Apply the first rule whose fields are there, or the last one; raise if another contradicts it.

    A default does not: transformers writes those of fields that a list has made superfluous.
    """
    present = [rule for rule in rules if rule.is_in(config)] or [rules[-1]]
    present = present[:1] + [rule for rule in present[1:] if not rule.is_default(config)]
    found = [rule.find(config) for rule in present]
    for rule, has_experts in zip(present[1:], found[1:], strict=True):
        sets = [
            [layer for layer in range(num_layers or 0) if each(layer)] for each in (found[0], has_experts)
        ]
        if sets[0] != sets[1]:
            first, second = (format_ranges(numbers) or "no" for numbers in sets)
            name = next(name for name in rule.names if config.get(name) is not None)
            other = next(name for name in present[0].names if config.get(name) is not None)
            expected = f"layers {first} with experts, as {other} says"
            raise config.error(name, expected, f"layers {second} (num_hidden_layers = {num_layers})")
    return found[0]


def layer_list(config: Config, name: str, kind: type) -> list[Any]:
    """A list with an item for each layer."""
    items = config.list_of(name, kind) or []
    check_length(config, name, items, kind)
    return items
