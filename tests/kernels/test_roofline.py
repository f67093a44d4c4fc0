"""What the roofline is measured with: every byte is read, and every FLOP is counted."""

from __future__ import annotations

import numpy as np
import pytest

from mxfp4moe import _core, config

PIECE = 256 << 10
"""Threads take memory in pieces of so many bytes; each has a checksum of its own, which are added up."""


def checksum_of_piece(data: np.ndarray) -> int:
    """The largest of 16 lanes of XORs over whole 256 bytes, and the sum of the bytes that are left."""
    whole = len(data) // 256 * 256
    lanes = np.bitwise_xor.reduce(data[:whole].view(np.uint32).reshape(-1, 16), axis=0, initial=0)
    return int(lanes.max()) + int(data[whole:].sum(dtype=np.uint64))


@pytest.mark.emulation
@pytest.mark.smoke
@pytest.mark.parametrize("size", [0, 1, 255, 256, 1000, PIECE - 1, 2 * PIECE + 777])
def test_every_byte_is_read_once(isa: str, rng: np.random.Generator, size: int) -> None:
    data = rng.integers(0, 256, size, np.uint8)
    expected = sum(checksum_of_piece(data[begin : begin + PIECE]) for begin in range(0, size, PIECE))
    for num_threads in (1, 2, 5):
        assert _core.read_memory(data, config.active_kernels(), num_threads) == expected


@pytest.mark.emulation
@pytest.mark.smoke
def test_flops_are_those_of_all_iterations_and_threads(isa: str) -> None:
    for activations in _core.ACTIVATION_FORMATS.values():
        flops = _core.peak_flops(1, config.active_kernels(), 1, activations)
        assert flops > 0
        for iterations, num_threads in ((7, 1), (3, 2), (2, 5)):
            counted = _core.peak_flops(iterations, config.active_kernels(), num_threads, activations)
            assert counted == flops * iterations * num_threads
