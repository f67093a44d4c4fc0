"""Random calls with activations of eight bits: their bits are those of the definition on every machine.

``python -m fuzz.activations 2000`` prints a checksum of each call's numbers and one of its result, by the
active kernels: two machines, or two instruction sets, must print the same.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mxfp4moe as mx
from fuzz.bounded import Array
from fuzz.calls import (
    TABLES,
    Inputs,
    as_given,
    chance,
    check_forms,
    choose,
    random_experts,
    random_inputs,
    random_options,
)
from fuzz.cases import Campaign, Case, Rng, make_rng
from mxfp4moe import config, reference

WEIGHTS = ("mxfp4", "nvfp4", "int4", "int8")


class Call(NamedTuple):
    arrays: dict[str, Any]
    inputs: Inputs
    options: dict[str, Any]

    def run(self, experts: mx.PackedExperts, num_threads: int) -> Array:
        hidden, weights, ids, _ = self.inputs
        return mx.fused_experts(hidden, experts, weights, ids, num_threads=num_threads, **self.options)


def random_call(rng: Rng) -> Call:
    special = chance(rng, 0.4)
    first, second = choose(rng, WEIGHTS), choose(rng, WEIGHTS)
    arrays = random_experts(rng, special, (first, second if chance(rng, 0.3) else first))
    num_experts, hidden_size = len(arrays["w2"]), arrays["w2"].shape[1]
    inputs = random_inputs(rng, num_experts, hidden_size, special)
    how = random_options(rng, arrays.get("gated", True))
    options = {
        "activation": how.activation,
        "alpha": how.alpha,
        "limit": how.limit,
        "apply_router_weight_on_input": how.weight_on_input,
        "expert_map": inputs.expert_map,
        "activation_format": "int8",
    }
    return Call(arrays, inputs, options)


def run_case(rng: Rng) -> str:
    """Compare a table's result with the definition's, and with that of other forms of the call."""
    call, table = random_call(rng), choose(rng, TABLES)
    with config._use_kernels(table):
        experts = mx.pack_experts(**as_given(rng, call.arrays))
        result = call.run(experts, int(rng.integers(1, 4)))
        hidden, weights, ids, _ = call.inputs
        expected = reference.fused_experts(hidden, experts, weights, ids, **call.options)
        wrong = ~(np.isnan(result) & np.isnan(expected)) & (bits(result) != bits(expected))
        if wrong.any():
            first = tuple(map(int, np.argwhere(wrong)[0]))
            raise AssertionError(
                f"{wrong.sum()} of {wrong.size} values of {call.arrays['format']} on {table} with "
                f"{call.options}, first at {first}: got {result[first]}, expected {expected[first]}"
            )
        check_forms(rng, result, experts, call.inputs, call.options)
    format = call.arrays["format"]
    return f"{format if isinstance(format, str) else 'a pair'}, {table}"


def bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


def checksums(number: int) -> tuple[int, int]:
    """CRC-32 of the numbers of a call, and of its result; all NaNs count as one."""
    call = random_call(make_rng("activations", number))
    result = call.run(mx.pack_experts(**call.arrays), num_threads=2)
    given = [*call.arrays.values(), *call.inputs]
    of_given = zlib.crc32(b"".join(each.tobytes() for each in given if isinstance(each, np.ndarray)))
    return of_given, zlib.crc32(np.where(np.isnan(result), np.nan, result).astype(result.dtype).tobytes())


def _prepare(folder: Path) -> Case:
    return run_case


ACTIVATIONS = Campaign("activations", _prepare)

if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        print(number, *(f"{each:08x}" for each in checksums(number)))
