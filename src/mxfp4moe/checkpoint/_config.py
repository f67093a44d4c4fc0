"""Fields of a config.json, each checked as it is read.

A field that is null is missing: `Config` leaves it out, in objects within objects as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mxfp4moe._arguments import join_choices, value_error
from mxfp4moe._json import read_object, shorten
from mxfp4moe.checkpoint._unread import HARMLESS_MEMBERS, says_nothing

_REQUIRED: Any = object()


class Config:
    """The fields of a config.json, or of an object in it; each method returns one field, checked.

    Those that are asked for by name are kept account of.
    """

    def __init__(self, path: Path, fields: dict[str, Any], prefix: str = "") -> None:
        self.path, self._prefix = path, prefix
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read the file at `path`."""
        return cls(path, read_object(path))

    def get(self, name: str) -> Any:
        """A field as it is; None if it is missing."""
        self._read.add(name)
        return self.fields.get(name)

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
        return value

    def positive_number(self, name: str, default: float = _REQUIRED) -> float:
        """A real, finite field above 0."""
        expected = "a finite number above 0"
        _, value = self._find((name,), expected, default)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.error(name, expected, shorten(value))
        return float(value)

    def boolean(self, name: str, default: bool = _REQUIRED) -> bool:
        """A field that is true or false."""
        _, value = self._find((name,), "true or false", default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", shorten(value))
        return value

    def string(self, name: str) -> str:
        """A string field."""
        _, value = self._find((name,), "a string", _REQUIRED)
        if not isinstance(value, str):
            raise self.error(name, "a string", shorten(value))
        return value

    def choice(self, name: str, choices: Sequence[object], default: Any = _REQUIRED) -> Any:
        """A field that must have one of the values `choices`."""
        expected = join_choices(map(repr, choices))
        _, value = self._find((name,), expected, default)
        # 1 and true are equal to Python.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise self.error(name, expected, shorten(value))
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
            self._sections[name] = Config(self.path, value or {}, f"{self._prefix}{name}.")
        return self._sections[name]

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
        return value_error(f"{self.path}: {self._prefix}{name}", expected, got)

    def _find(self, names: Sequence[str], expected: str, default: Any) -> tuple[str, Any]:
        self._read.update(names)
        for name in names:
            if name in self.fields:
                return name, self.fields[name]
        if default is not _REQUIRED:
            return names[0], default
        raise self.error(" or ".join(names), expected, "no such field")
