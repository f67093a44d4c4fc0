"""Changes to what JSON can hold, from which every format's structure is made here."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

Rng = np.random.Generator
Place = tuple[Any, Any]  # a dict or list, and a key or index of it

# Text that `encode` puts in place of these strings: what Python values cannot say.
RAW = {
    "@nan@": "NaN",
    "@infinite@": "1e999",
    "@digits@": "9" * 5000,
    "@deep@": "[" * 20_000 + "]" * 20_000,
    "@deep object@": '{"a":' * 20_000 + "0" + "}" * 20_000,
    "@surrogate@": '"\\ud800"',
    "@long@": '"' + "x" * 100_000 + '"',
    "@twice@": '{"a": 1, "a": 2}',
}
SCALARS = (
    *(
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        16,
        31,
        32,
        64,
        255,
        -1,
        -(2**63),
        2**31 - 1,
        2**31,
        2**32,
        2**62,
        2**63,
        2**64,
    ),
    *(
        10**30,
        0.5,
        1.0,
        1.5,
        -0.0,
        1e308,
        "",
        "0",
        "1",
        "none",
        "../x",
        "é\u0000",
        "a" * 300,
        [],
        {},
        [0],
        [[]],
        {"": 0},
    ),
    *RAW,
)
DTYPES = (
    "U8",
    "I8",
    "F16",
    "BF16",
    "F32",
    "F64",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "BOOL",
    "I32",
    "U32",
    "I64",
    "C64",
)


def encode(value: Any) -> bytes:
    """JSON text with the raw pieces."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()


def places(value: Any) -> Iterator[Place]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(rng: Rng, root: Any) -> Any:
    """A copy with one change in half the cases, with up to four in the others."""
    root = copy.deepcopy(root)
    for _ in range(1 if rng.random() < 0.5 else int(rng.integers(2, 5))):
        found = list(places(root))
        if not found:
            return root
        _change(rng, found, _choose_place(rng, found))
    return root


def reordered(rng: Rng, value: Any) -> Any:
    """The same with the keys of every object in another order."""
    if isinstance(value, list):
        return [reordered(rng, item) for item in value]
    if not isinstance(value, dict):
        return value
    keys = list(value)
    return {keys[i]: reordered(rng, value[keys[i]]) for i in rng.permutation(len(keys))}


def _choose_place(rng: Rng, found: list[Place]) -> Place:
    """Small objects, such as one of sizes, as often as the entries of large ones."""
    if rng.random() < 0.5:
        return found[rng.integers(len(found))]
    owners = list({id(owner): owner for owner, _ in found}.values())
    owner = owners[rng.integers(len(owners))]
    keys = [key for other, key in found if other is owner]
    return owner, keys[rng.integers(len(keys))]


def _change(rng: Rng, found: list[Place], place: Place) -> None:
    owner, key = place
    other, other_key = found[rng.integers(len(found))]
    match rng.integers(10):
        case 0:
            del owner[key]
        case 1:
            owner[key] = copy.deepcopy(other[other_key])
        case 2:
            owner[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(owner[key])
        case 3:
            owner[key] = copy.deepcopy(SCALARS[rng.integers(len(SCALARS))])
        case 4 if isinstance(owner, dict):
            _rename(rng, owner, key, other_key)
        case 4:
            owner.insert(key, copy.deepcopy(other[other_key]))
        case 5 if isinstance(owner[key], list):
            owner[key] = _other_list(rng, owner[key])
        case 6:
            owner[key] = [owner[key]] if rng.random() < 0.5 else {str(key): owner[key]}
        case _:
            owner[key] = _near(rng, owner[key], other[other_key])


def _rename(rng: Rng, owner: dict[Any, Any], key: Any, other_key: Any) -> None:
    name = other_key if isinstance(other_key, str) and rng.random() < 0.5 else _near(rng, key, "x")
    owner[str(name)] = owner[key] if rng.random() < 0.5 else owner.pop(key)


def _other_list(rng: Rng, values: list[Any]) -> list[Any]:
    match rng.integers(5):
        case 0:
            return [values[i] for i in rng.permutation(len(values))]
        case 1:
            return values + values
        case 2:
            return values[:-1]
        case 3:
            return [1, *values]
    return values * int(rng.integers(70)) if len(values) < 5 else values[::-1]


def _near(rng: Rng, value: Any, other: Any) -> Any:
    """A value of the same type that a check may take for right."""
    if isinstance(value, bool) or value is None:
        return (True, False, None, 0, 1)[rng.integers(5)]
    if isinstance(value, int):
        options = (
            value + 1,
            value - 1,
            2 * value,
            value // 2,
            -value,
            value + 2**32,
            value + 32,
            float(value),
            str(value),
        )
        return options[rng.integers(len(options))]
    if isinstance(value, float):
        return (value * 2, -value, 0.0, int(value) if abs(value) < 1e300 else 1, value + 1e-3)[
            rng.integers(5)
        ]
    if isinstance(value, str):
        return _near_text(rng, value, other)
    return copy.deepcopy(other)


def _near_text(rng: Rng, text: str, other: Any) -> str:
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    match rng.integers(6):
        case 0 if digits:
            i = digits[rng.integers(len(digits))]
            return text[:i] + str(rng.integers(10)) + text[i + 1 :]
        case 1 if text:
            i = int(rng.integers(len(text)))
            return text[:i] + text[i + 1 :]
        case 2:
            return text.swapcase() if rng.random() < 0.5 else text + " "
        case 3 if isinstance(other, str):
            return other
        case 4 if "." in text:
            parts = text.split(".")
            del parts[rng.integers(len(parts))]
            return ".".join(parts)
    return DTYPES[rng.integers(len(DTYPES))]
