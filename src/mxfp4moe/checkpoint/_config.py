"""Fields of a config.json, each checked as it is read.

A field that is null is missing: `Config` leaves it out, in objects within objects as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mxfp4moe._arguments import join_choices, value_error
from mxfp4moe._json import read_object, shorten
from mxfp4moe.checkpoint._unread import HARMLESS_MEMBERS, says_nothing

_REQUIRED: Any = object()
_FLOAT32_MIN, _FLOAT32_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Config:
    """The fields of a config.json, or of an object in it; each method returns one field, checked.

    Those that are asked for by name are kept account of. A name with dots is of a field in objects in it; of
    several names for one field, the first one found counts, and the others must not contradict it.
    """

    def __init__(self, path: Path, fields: dict[str, Any], prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self._nulls = fields.keys() - self.fields.keys()
        self.list_lengths: tuple[int, ...] = ()
        """How long a list with an item for each layer may be; () if that is not known."""
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read the file at `path`."""
        return cls(path, read_object(path))

    def get(self, name: str) -> Any:
        """A field as it is; None if it is missing."""
        head, _, tail = name.partition(".")
        if tail:
            return self.section(head).get(tail)
        self._read.add(name)
        return self.fields.get(name)

    def is_null(self, name: str) -> bool:
        """Whether a field is there and null."""
        head, _, tail = name.partition(".")
        return self.section(head).is_null(tail) if tail else name in self._nulls

    def unread(self) -> dict[str, Any]:
        """The fields that were not asked for."""
        return {name: value for name, value in self.fields.items() if name not in self._read}

    def integer(
        self,
        *names: str,
        minimum: int = 1,
        maximum: int = 2**31 - 1,
        multiple_of: int = 1,
        default: int | None = _REQUIRED,
    ) -> int:
        """An integer field in [minimum, maximum]; with several names, the first one found counts."""
        expected = f"an integer in [{minimum}, {maximum}]"
        expected += f" that is a multiple of {multiple_of}" if multiple_of > 1 else ""
        name, value = self._find(names, expected, default)
        if type(value) is not int or not minimum <= value <= maximum or value % multiple_of:
            raise self.error(name, expected, shorten(value))
        self._check_same(names, value)
        return value

    def number(self, *names: str, default: Any = _REQUIRED, minimum: float | None = None) -> float:
        """A real field that float32 can hold: above 0, or at least `minimum`."""
        expected = f"a finite number {'above 0' if minimum is None else f'of at least {minimum:g}'}"
        name, value = self._find(names, expected, default)
        least = _FLOAT32_MIN if minimum is None else minimum
        if type(value) not in (int, float) or not least <= value <= _FLOAT32_MAX:
            raise self.error(name, expected, shorten(value))
        self._check_same(names, value)
        return float(value)

    def boolean(self, *names: str, default: bool = _REQUIRED) -> bool:
        """A field that is true or false."""
        name, value = self._find(names, "true or false", default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", shorten(value))
        self._check_same(names, value)
        return value

    def string(self, name: str) -> str:
        """A string field."""
        _, value = self._find((name,), "a string", _REQUIRED)
        if not isinstance(value, str):
            raise self.error(name, "a string", shorten(value))
        return value

    def choice(self, name: str | Sequence[str], choices: Sequence[object], default: Any = _REQUIRED) -> Any:
        """A field, by one or several names, that must have one of the values `choices`."""
        expected = join_choices(map(repr, choices))
        names = (name,) if isinstance(name, str) else name
        name, value = self._find(names, expected, default)
        # 1 and true are equal to Python.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise self.error(name, expected, shorten(value))
        self._check_same(names, value)
        return value

    def list_of(self, name: str, kind: type, length: int | None = None) -> list[Any] | None:
        """A list whose items are `kind`, `length` of them; None if the field is missing."""
        value = self.get(name)
        if value is None:
            return None
        size = "" if length is None else f"{length} "
        if (
            not isinstance(value, list)
            or not all(type(item) is kind for item in value)
            or (length is not None and len(value) != length)
        ):
            raise self.error(name, f"a list of {size}{kind.__name__}", shorten(value))
        return value

    def section(self, name: str) -> Config:
        """A field that holds an object; without fields if it is missing."""
        value = self.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "an object", shorten(value))
        if name not in self._sections:
            self._sections[name] = Config(self.path, value or {}, f"{self.prefix}{name}.")
        return self._sections[name]

    def member(self, name: str) -> Any:
        """A field as it is, whose name may have dots of its own, as that of a module."""
        self._read.add(name)
        return self.fields.get(name)

    def detached(self, name: str) -> Config:
        """A `member` that is an object, whose fields `check_all_read` of this one passes over."""
        value = self.member(name)
        if not isinstance(value, dict):
            raise self.error(shorten(name)[1:-1], "an object", shorten(value))
        return Config(self.path, value, f"{self.prefix}{name}.")

    def attach(self, name: str, section: Config) -> None:
        """Add a field that is in a file of its own."""
        self.fields[name], self._sections[name] = section.fields, section

    def check_all_read(self) -> None:
        """Raise for a field that was not asked for, here and in the sections, unless it is harmless."""
        for name, value in self.fields.items():
            if name in self._sections:
                self._sections[name].check_all_read()
            elif name not in self._read and name not in HARMLESS_MEMBERS and not says_nothing(value):
                expected = "none: what is not known may change the result"
                raise self.error(shorten(name)[1:-1], expected, shorten(value))

    def error(self, name: str, expected: str, got: str) -> ValueError:
        """The ValueError of field `name`."""
        return value_error(f"{self.path}: {self.prefix}{name}", expected, got)

    def _find(self, names: Sequence[str], expected: str, default: Any) -> tuple[str, Any]:
        for name in names:
            if (value := self.get(name)) is not None:
                return name, value
        if default is not _REQUIRED:
            return names[0], default
        raise self.error(" or ".join(names), expected, "no such field")

    def _check_same(self, names: Sequence[str], value: Any) -> None:
        """Raise if another name of a field has another value."""
        found = [name for name in names if self.get(name) is not None]
        for name in found[1:]:
            other = self.get(name)
            if (isinstance(other, bool), other) != (isinstance(value, bool), value):
                raise self.error(name, f"{shorten(value)}, as {found[0]} says", shorten(other))
