"""pack_experts: every form of input, unpack() byte for byte, and the packed object."""

import copy
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    ARRAYS,
    BIASES,
    LAYOUTS,
    Shape,
    assert_same_bits,
    bfloat16,
    float8_e8m0fnu,
    pack,
    random_problem,
)

import mxfp4moe as mx
from mxfp4moe.reference import ExpertArrays

SHAPE = Shape(4, 96, 160, 3, 2)


def random_arrays(
    rng: np.random.Generator, shape: Shape = SHAPE, layout: str = "concatenated", bias: str = "both"
) -> ExpertArrays:
    """Every byte value, in blocks and scales alike."""
    _, k, i, e, _ = shape
    arrays = random_problem(rng, shape, layout=layout, bias=bias).arrays
    return arrays._replace(
        w13_scales=rng.integers(0, 256, (e, 2 * i, k // 32), dtype=np.uint8),
        w2_scales=rng.integers(0, 256, (e, k, i // 32), dtype=np.uint8),
    )


def assert_unpacks_to(experts: mx.PackedExperts, arrays: ExpertArrays) -> None:
    parts = experts.unpack()
    for name in mx.UnpackedExperts._fields:
        got, expected = getattr(parts, name), getattr(arrays, name)
        if expected is None:
            assert got is None
        else:
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            assert got.tobytes() == expected.tobytes(), name


@pytest.mark.emulation
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", BIASES)
def test_unpack_gives_the_bytes_that_came(rng, layout, bias):
    arrays = random_arrays(rng, layout=layout, bias=bias)
    experts = pack(arrays)
    assert_unpacks_to(experts, arrays)
    assert experts.gate_up_layout == layout


@given(seed=st.integers(0, 2**32), sizes=st.tuples(*[st.integers(1, 4)] * 3), layout=st.sampled_from(LAYOUTS))
def test_unpack_every_shape(seed, sizes, layout):
    shape = Shape(1, 32 * sizes[0], 32 * sizes[1], sizes[2], 1)
    arrays = random_arrays(np.random.default_rng(seed), shape, layout)
    assert_unpacks_to(pack(arrays), arrays)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_axes_and_signed_bytes(rng, layout):
    arrays = random_arrays(rng, layout=layout)
    expected = pack(arrays)
    blocks = arrays._replace(w13=arrays.w13.reshape(3, 320, 3, 16), w2=arrays.w2.reshape(3, 96, 5, 16))
    signed = arrays._replace(w13=arrays.w13.view(np.int8), w2=arrays.w2.view(np.int8))
    for given_arrays in (blocks, signed, arrays._replace(w13=blocks.w13, w2=signed.w2)):
        experts = pack(given_arrays)
        assert experts == expected
        assert_unpacks_to(experts, arrays)


def test_e8m0_scales_come_back_as_such(rng):
    arrays = random_arrays(rng)
    typed = arrays._replace(
        w13_scales=arrays.w13_scales.view(float8_e8m0fnu), w2_scales=arrays.w2_scales.view(float8_e8m0fnu)
    )
    assert_unpacks_to(pack(typed), typed)


@pytest.mark.parametrize("kind", [list, tuple])
def test_sequences_of_experts(rng, kind):
    arrays = random_arrays(rng)
    sequences = arrays._replace(**{name: kind(getattr(arrays, name)) for name in ARRAYS})
    experts = pack(sequences)
    assert experts == pack(arrays)
    assert_unpacks_to(experts, arrays)


@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_pair_of_arrays(rng, num_experts):
    arrays = random_arrays(rng, SHAPE._replace(num_experts=num_experts))
    pair = arrays._replace(
        w13=(arrays.w13[:, :160], arrays.w13[:, 160:]),
        w13_scales=(arrays.w13_scales[:, :160], arrays.w13_scales[:, 160:]),
    )
    experts = pack(pair)
    assert experts == pack(arrays)
    assert_unpacks_to(experts, arrays)
    blocks = tuple(half.reshape(num_experts, 160, 3, 16) for half in pair.w13)
    assert pack(pair._replace(w13=blocks)) == experts


@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_pair_of_sequences(rng, num_experts):
    arrays = random_arrays(rng, SHAPE._replace(num_experts=num_experts))
    pair = arrays._replace(
        w13=(list(arrays.w13[:, :160]), list(arrays.w13[:, 160:])),
        w13_scales=[list(arrays.w13_scales[:, :160]), list(arrays.w13_scales[:, 160:])],
    )
    experts = pack(pair)
    assert experts == pack(arrays)
    assert_unpacks_to(experts, arrays)


@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_sequence_is_not_taken_for_a_pair(rng, num_experts):
    arrays = random_arrays(rng, SHAPE._replace(num_experts=num_experts))
    sequences = arrays._replace(w13=list(arrays.w13), w13_scales=list(arrays.w13_scales))
    assert pack(sequences) == pack(arrays)
    blocks = arrays._replace(
        w13=list(arrays.w13.reshape(num_experts, 320, 3, 16)), w13_scales=list(arrays.w13_scales)
    )
    assert pack(blocks) == pack(arrays)


def test_strided_and_read_only_inputs(rng):
    arrays = random_arrays(rng)
    strided = {}
    for name in ARRAYS:
        array = getattr(arrays, name)
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), dtype=array.dtype)[::-1, ..., ::2]
        wide[...] = array
        wide.flags.writeable = False
        strided[name] = wide
    experts = pack(arrays._replace(**strided))
    assert experts == pack(arrays)
    assert_unpacks_to(experts, arrays)


def test_fortran_order(rng):
    arrays = random_arrays(rng)
    fortran = arrays._replace(**{n: np.asfortranarray(getattr(arrays, n)) for n in ARRAYS})
    assert pack(fortran) == pack(arrays)


def test_bfloat16_biases(isa, rng):
    problem = random_problem(rng, SHAPE, bias="both", dtype=np.float32)
    arrays = problem.arrays
    short = arrays._replace(
        w13_bias=arrays.w13_bias.astype(bfloat16), w2_bias=arrays.w2_bias.astype(bfloat16)
    )
    assert_unpacks_to(pack(short), short)
    long = short._replace(
        w13_bias=short.w13_bias.astype(np.float32), w2_bias=short.w2_bias.astype(np.float32)
    )
    assert_same_bits(problem.run(pack(short)), problem.run(pack(long)))


def test_biases_keep_every_bit(rng):
    arrays = random_arrays(rng)
    # NaN payloads, infinities, both zeros and subnormal numbers.
    bits = np.array(
        [0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x807FFFFF], dtype=np.uint32
    )
    for name in ("w13_bias", "w2_bias"):
        getattr(arrays, name).view(np.uint32)[:, :8] = bits
    assert_unpacks_to(pack(arrays), arrays)


def test_unpacked_arrays_are_new(rng):
    arrays = random_arrays(rng)
    experts = pack(arrays)
    parts = experts.unpack()
    for part in parts[:6]:
        part.view(np.uint8)[...] = 0
    assert_unpacks_to(experts, arrays)


@pytest.mark.emulation
def test_packed_weights_compute_the_same(isa, rng):
    problem = random_problem(rng, SHAPE, layout="interleaved", bias="both")
    experts = problem.pack()
    parts = experts.unpack()
    again = pack(ExpertArrays(*parts[:6], experts.gate_up_layout))
    assert again == experts
    assert_same_bits(problem.run(again), problem.run(experts))


def test_interleaved_and_concatenated_rows_are_the_same_experts(isa, rng):
    problem = random_problem(rng, SHAPE, layout="interleaved", bias="both")
    arrays = problem.arrays
    rows = {
        name: np.concatenate([getattr(arrays, name)[:, 0::2], getattr(arrays, name)[:, 1::2]], axis=1)
        for name in ("w13", "w13_scales", "w13_bias")
    }
    concatenated = problem._replace(arrays=arrays._replace(**rows, gate_up_layout="concatenated"))
    assert_same_bits(concatenated.run(), problem.run())


def test_attributes_and_repr(rng):
    experts = pack(random_arrays(rng, layout="interleaved"))
    assert (experts.num_experts, experts.hidden_size, experts.intermediate_size) == (3, 96, 160)
    assert (experts.format, experts.gate_up_layout) == ("mxfp4", "interleaved")
    text = repr(experts)
    for part in ("PackedExperts", "mxfp4", "3", "96", "160", "interleaved", str(experts.nbytes)):
        assert part in text


def test_nbytes_is_4_25_bits_a_weight_and_the_biases(rng):
    shape = Shape(1, 128, 256, 4, 1)
    weights = 4 * 3 * 128 * 256
    plain = pack(random_arrays(rng, shape, bias="none")).nbytes
    assert weights * 4.25 / 8 <= plain <= weights * 4.25 / 8 + 4096 * 4
    both = pack(random_arrays(rng, shape, bias="both")).nbytes
    assert both - plain >= 4 * 4 * (2 * 256 + 128)


@pytest.mark.emulation
def test_equality_is_by_bytes(rng):
    arrays = random_arrays(rng)
    experts = pack(arrays)
    assert experts == pack(arrays)
    assert hash(experts) == hash(pack(arrays))
    assert experts == copy.copy(experts)
    assert experts == copy.deepcopy(experts)
    for name in ARRAYS:
        changed = getattr(arrays, name).copy()
        changed.view(np.uint8).reshape(-1)[-1] ^= 1
        assert experts != pack(arrays._replace(**{name: changed})), name
    assert experts != pack(arrays._replace(gate_up_layout="interleaved"))
    assert experts != pack(arrays._replace(w2_bias=None))
    assert experts != "experts"
    assert experts is not None


def test_is_immutable(rng):
    experts = pack(random_arrays(rng))
    for name in ("num_experts", "format", "data", "anything"):
        with pytest.raises(AttributeError):
            setattr(experts, name, 1)
    with pytest.raises(AttributeError):
        del experts.format
    with pytest.raises((ValueError, TypeError)):
        memoryview(experts.data)[0] = 0


def test_is_not_made_directly():
    with pytest.raises(TypeError, match="pack_experts"):
        mx.PackedExperts()


def test_float4_dtype_is_refused_by_name(rng):
    # These have one code per byte, so they are not packed.
    arrays = random_arrays(rng)
    codes = arrays.w13.astype(np.float32).astype(ml_dtypes.float4_e2m1fn)
    with pytest.raises(TypeError, match=r"w13: expected .*uint8.*, got .*float4_e2m1fn"):
        pack(arrays._replace(w13=codes))


PEAK_SCRIPT = """
import numpy as np
import mxfp4moe as mx

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

experts, hidden, intermediate = 24, 1024, 2048
make = {make}
arguments = [
    make((2 * intermediate, hidden // 2)),
    make((2 * intermediate, hidden // 32)),
    make((hidden, intermediate // 2)),
    make((hidden, intermediate // 32)),
]
before = status("VmRSS")
packed = mx.pack_experts(*arguments, format="mxfp4")
print(status("VmHWM") - before - packed.nbytes)
"""


@pytest.mark.parametrize(
    "make",
    [
        "lambda shape: np.ones((experts, *shape), dtype=np.uint8)",
        "lambda shape: [np.ones(shape, dtype=np.uint8) for _ in range(experts)]",
        "lambda shape: np.ones((experts, shape[0], 2 * shape[1]), dtype=np.int8)[..., ::2].view(np.uint8)",
    ],
    ids=["array", "sequence", "strided"],
)
def test_packing_needs_32_mib_beside_inputs_and_result(make):
    command = [sys.executable, "-c", PEAK_SCRIPT.format(make=make)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(result.stdout) <= 32 << 20


@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
def test_biases_keep_every_bit_of_nan(rng, dtype):
    arrays = random_problem(rng, Shape(1, 32, 32, 2, 1), bias="both").arrays
    bits = np.array([0x7F81, 0xFF81, 0x7FC1, 0x7F80, 0x8000, 0x0001], dtype=np.uint16)
    if dtype == np.float32:
        bits = bits.astype(np.uint32) << 16 | 1
    biases = [np.resize(bits, bias.shape).view(dtype) for bias in (arrays.w13_bias, arrays.w2_bias)]
    parts = pack(arrays._replace(w13_bias=biases[0], w2_bias=biases[1])).unpack()
    assert [parts.w13_bias.tobytes(), parts.w2_bias.tobytes()] == [bias.tobytes() for bias in biases]
