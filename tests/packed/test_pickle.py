"""Packed experts and layers as pickles: every protocol, buffers out of band, another process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packed_examples import FORMATS, assert_same_experts, make_experts, make_layer

import mxfp4moe as mx


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_experts_are_equal(rng: np.random.Generator, name: str, protocol: int) -> None:
    experts = make_experts(rng, name)
    assert_same_experts(pickle.loads(pickle.dumps(experts, protocol)), experts)


def test_out_of_band_buffers_are_not_copied(tmp_path: Path, rng: np.random.Generator) -> None:
    make_experts(rng, "mxfp4").save(tmp_path / "a")
    for experts in (make_experts(rng, "bf16"), mx.PackedExperts.open(tmp_path / "a")):
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(experts, 5, buffer_callback=buffers.append)
        assert len(data) < 1000
        assert [buffer.raw().nbytes for buffer in buffers] == [experts.nbytes]
        again = pickle.loads(data, buffers=buffers)
        assert_same_experts(again, experts)
        assert np.shares_memory(np.asarray(again.data), np.asarray(experts.data))


def test_layer_pickles_its_weights_out_of_band(rng: np.random.Generator) -> None:
    layer = make_layer(rng, "deepseek v3")
    assert layer.shared_experts is not None
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(layer, 5, buffer_callback=buffers.append)
    sizes = [buffer.raw().nbytes for buffer in buffers]
    assert {layer.experts.nbytes, layer.shared_experts.nbytes} <= set(sizes)


def test_unaligned_buffers_are_copied(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "fp8_block")
    data = pickle.dumps(experts, 5, buffer_callback=lambda buffer: False)
    memory = bytearray(experts.nbytes + 64)
    offset = 1 + -np.frombuffer(memory, np.uint8).ctypes.data % 64
    memory[offset : offset + experts.nbytes] = experts.data
    again = pickle.loads(data, buffers=[memoryview(memory)[offset : offset + experts.nbytes]])
    assert_same_experts(again, experts)
    assert not np.shares_memory(np.asarray(again.data), np.frombuffer(memory, np.uint8))


@pytest.mark.parametrize("size", [0, 4096, -1])
def test_buffers_of_another_size_are_refused(rng: np.random.Generator, size: int) -> None:
    experts = make_experts(rng, "mxfp4")
    data = pickle.dumps(experts, 5, buffer_callback=lambda buffer: False)
    buffer = bytes(experts.data)[:size]
    with pytest.raises(mx.PackedFormatError, match=r"pickle: bytes: expected \d+, got \d+"):
        pickle.loads(data, buffers=[buffer])


def test_pickles_of_another_layout_are_refused(rng: np.random.Generator) -> None:
    make, (version, fields, data) = make_experts(rng, "mxfp4").__reduce_ex__(4)
    with pytest.raises(mx.PackedFormatError, match="pickle: expected packed layout 1, got layout 2"):
        make(version + 1, fields, data)
    with pytest.raises(mx.PackedFormatError, match="pickle: num_experts: expected"):
        make(version, fields | {"num_experts": -1}, data)


_UNPICKLE = """
import pickle, sys, mxfp4moe as mx
experts, arguments = pickle.load(sys.stdin.buffer)
result = mx.fused_experts(arguments[0], experts, *arguments[1:])
sys.stdout.buffer.write(result.tobytes())
"""


def test_experts_travel_to_another_process(rng: np.random.Generator) -> None:
    experts = make_experts(rng, "mxfp4")
    hidden = rng.standard_normal((2, experts.hidden_size), np.float32)
    arguments = hidden, np.ones((2, 1), np.float32), np.zeros((2, 1), np.int32)
    message = pickle.dumps((experts, arguments))
    other = subprocess.run(
        [sys.executable, "-c", _UNPICKLE], input=message, capture_output=True, check=True, timeout=120
    )
    assert other.stdout == mx.fused_experts(hidden, experts, *arguments[1:]).tobytes()
