"""The metadata of an architecture: each value checked, and none that concerns experts left unread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mxfp4moe._arguments import value_error
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint.gguf.file import GgufFile

_OF_EXPERTS = ("expert", "moe_", "router_", "swiglu_clamp_", "activation.")
"""Keys that begin like this may change what a MoE layer computes."""

_HARMLESS = {
    "moe_every_n_layers": "the tensors show which layers have experts",
}


class Metadata:
    """The keys ``<architecture>.*`` of a file, by the rest of their names.

    Where llama.cpp takes one value or an array with one for each layer, `layer` says which.
    """

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._path, self._architecture = file.path, architecture
        prefix, values = f"{architecture}.", {**file.metadata, **file.omitted}
        self._values = {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}
        self._used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(
        self,
        key: str,
        *,
        default: int | None = None,
        minimum: int = 1,
        maximum: int = 2**31 - 1,
        layer: int | None = None,
    ) -> int:
        """An integer in the range; `default` if there is no such key, or an error if that is None."""
        expected = f"an integer in [{minimum}, {maximum}]"
        value = self._value(key, int, expected, default, layer)
        if not minimum <= value <= maximum:
            raise self.error(key, expected, str(value))
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """A bool."""
        return bool(self._value(key, bool, "a bool", default, None))

    def factor(self, key: str, *, default: float | None = None, layer: int | None = None) -> float | None:
        """A finite number above 0; None where there is none, or 0, which stands for none in llama.cpp."""
        expected = "a finite number of at least 0"
        value = self._value(key, float, expected, default or 0.0, layer)
        if not 0 <= value < math.inf:
            raise self.error(key, expected, str(value))
        return float(value) or None

    def number(self, key: str) -> float:
        """A finite number above 0 that must be there."""
        value = self._value(key, float, "a float", None, None)
        if not 0 < value < math.inf:
            raise self.error(key, "a finite number above 0", str(value))
        return float(value)

    def error(self, key: str, expected: str, got: str) -> ValueError:
        """The error about a value."""
        return value_error(f"{self._path}: {self._architecture}.{key}", expected, got)

    def check_all_used(self) -> None:
        """Raise for a key that concerns experts and that nobody asked for."""
        for key in self._values:
            if key.startswith(_OF_EXPERTS) and key not in self._used and key not in _HARMLESS:
                raise self.error(key, "no such key, which may change the result", _shown(self._values[key]))

    def _value(self, key: str, kind: type, expected: str, default: Any, layer: int | None) -> Any:
        self._used.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise self.error(key, expected, "no such key")
        if layer is not None and isinstance(value, np.ndarray):
            # The layers of multi-token prediction have values too.
            number = self.integer("block_count", default=len(value))
            if len(value) != number:
                raise self.error(
                    key, f"one value, or one for each of {number} layers", f"{len(value)} values"
                )
            if layer >= number:
                raise self.error(key, f"a value for layer {layer}, which the file has", f"{number} values")
            value = value[layer].item()
        if type(value) is not kind:
            raise self.error(key, expected, _shown(value))
        return value


def _shown(value: Any) -> str:
    return f"an array of {len(value)} values" if isinstance(value, np.ndarray) else shorten(value)
