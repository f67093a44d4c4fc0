"""What a model is called with: token ids of one or several sequences, and a cache for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import as_integer_array, describe, to_int64, type_error, value_error
from mxfp4moe._dlpack import SupportsDLPack
from mxfp4moe.model.cache import ModelCache
from mxfp4moe.model.description import DecoderDescription

Ids = NDArray[np.int64]
GivenIds: TypeAlias = Sequence[int] | NDArray[np.integer[Any]] | SupportsDLPack
GivenBatch: TypeAlias = Sequence[Sequence[int] | NDArray[np.integer[Any]]]
Logits: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """The ids of each sequence, and the shape in which they came."""

    sequences: list[Ids]
    shape: tuple[int, ...] | None
    """The shape of the array that the sequences came in, or None if they came in a list."""

    def returned(self, results: list[Logits]) -> Logits | list[Logits]:
        """An array for each sequence in the form that the ids came in."""
        if self.shape is None:
            return results
        return results[0] if len(self.shape) == 1 else np.stack(results)


def read_inputs(input_ids: Any, decoder: DecoderDescription) -> Inputs:
    """Check token ids: a sequence, an array of sequences of equal length, or a list of sequences."""
    if isinstance(input_ids, list | tuple) and any(np.ndim(each) for each in input_ids):
        if not all(np.ndim(each) == 1 for each in input_ids):
            shapes = [np.shape(each) for each in input_ids]
            raise value_error("input_ids", "a list of sequences of ids, each with one axis", str(shapes))
        named = [(f"input_ids[{i}]", each) for i, each in enumerate(input_ids)]
        return Inputs([_check_ids(name, each, decoder) for name, each in named], None)
    array = np.asarray(input_ids) if not hasattr(input_ids, "__dlpack__") else input_ids
    if np.ndim(array) == 2:
        rows = as_integer_array("input_ids", array)
        if not len(rows):
            raise value_error("input_ids", "at least one sequence", f"shape {rows.shape}")
        sequences = [_check_ids(f"input_ids[{i}]", row, decoder) for i, row in enumerate(rows)]
        return Inputs(sequences, rows.shape)
    ids = _check_ids("input_ids", array, decoder)
    return Inputs([ids], ids.shape)


def _check_ids(name: str, value: Any, decoder: DecoderDescription) -> Ids:
    if np.ndim(value) == 1 and not len(value):
        raise value_error(name, "at least one token id", "none")
    array = as_integer_array(name, value)
    if array.ndim != 1:
        raise value_error(name, "token ids with one axis, or a list of sequences", f"shape {array.shape}")
    wrong = (array < 0) | (array >= decoder.vocab_size)
    if wrong.any():
        place = int(np.argmax(wrong))
        expected = f"ids in [0, {decoder.vocab_size - 1}]"
        raise value_error(name, expected, f"{array[place]} at position {place}")
    return to_int64(array)


def read_caches(cache: Any, inputs: Inputs, decoder: DecoderDescription) -> list[ModelCache] | None:
    """The cache of each sequence, or None without any; each must belong to such a model and have room."""
    count = len(inputs.sequences)
    starts = [0] * count
    caches = None
    if cache is not None:
        is_one = inputs.shape is not None and len(inputs.shape) == 1
        if not is_one and not isinstance(cache, list | tuple):
            raise type_error("cache", "a list with a cache for each sequence", describe(cache))
        caches = [cache] if is_one else list(cache)
        if len(caches) != count:
            raise value_error("cache", f"{count} caches, one for each sequence", str(len(caches)))
        for i, each in enumerate(caches):
            _check_cache("cache" if is_one else f"cache[{i}]", each, decoder)
        if len({id(each) for each in caches}) != count:
            raise value_error("cache", "a cache of its own for each sequence", "the same one twice")
        if len(dtypes := {each.layers[0].dtype for each in caches}) > 1:
            raise value_error("cache", "caches of one dtype", " and ".join(sorted(dtypes)))
        starts = [len(each) for each in caches]
    for i, (ids, start) in enumerate(zip(inputs.sequences, starts, strict=True)):
        if start + len(ids) > decoder.max_positions:
            name = "input_ids" if inputs.shape is not None and len(inputs.shape) == 1 else f"input_ids[{i}]"
            expected = f"at most {decoder.max_positions} tokens, the context of the model"
            cached = f" after {start} in the cache" if start else ""
            raise value_error(name, expected, f"{len(ids)}{cached}")
    return caches


def _check_cache(name: str, cache: Any, decoder: DecoderDescription) -> None:
    if not isinstance(cache, ModelCache):
        raise type_error(name, "what new_cache() of this model returns", describe(cache))
    layers = cache.layers
    found = {(len(layers), layer.num_kv_heads, layer.head_dim) for layer in layers}
    if found != {(decoder.num_layers, decoder.num_kv_heads, decoder.head_dim)}:
        expected = f"a cache of {decoder.num_layers} layers with {decoder.num_kv_heads} heads"
        got = " and ".join(f"{count} with {heads} of {size}" for count, heads, size in sorted(found))
        raise value_error(name, f"{expected} of {decoder.head_dim}", got)


def cut_steps(lengths: Sequence[int], limit: int) -> list[list[tuple[int, int, int]]]:
    """Cut sequences into steps of at most `most` tokens: of each the parts (sequence, begin, end)."""
    steps: list[list[tuple[int, int, int]]] = [[]]
    room = limit
    for number, length in enumerate(lengths):
        begin = 0
        while begin < length:
            end = min(length, begin + room)
            steps[-1].append((number, begin, end))
            room -= end - begin
            begin = end
            if not room:
                steps.append([])
                room = limit
    return [step for step in steps if step]
