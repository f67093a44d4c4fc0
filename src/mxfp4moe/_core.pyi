from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

_T = TypeVar("_T")

# numbers of the C++ enumerations by name
DTYPES: dict[str, int]
WEIGHT_FORMATS: dict[str, int]
MX_ELEMENTS: dict[str, int]
SCALE_RULES: dict[str, int]
ACTIVATION_FORMATS: dict[str, int]
ACTIVATION_RULES: dict[str, tuple[bool, float | None, float, bool]]
ACTIVATIONS: dict[str, int]
SCORINGS: dict[str, int]
GROUP_SCORES: dict[str, int]
PANEL_ROWS: int
PAGE_POSITIONS: int
MAX_ANGLE: int
MAX_PAIRS: int

# runtime: instruction sets and threads
def compiler() -> str: ...
def kernel_tables() -> list[tuple[str, str, bool, bool]]: ...
def in_default_float_environment(function: Callable[[], _T]) -> _T: ...
def cpu_features() -> dict[str, bool]: ...
def amx_status() -> str: ...
def available_cpus() -> int: ...
def num_nodes() -> int: ...
def simulate_nodes(count: int) -> None: ...
def num_workers() -> int: ...
def release_workers() -> None: ...

# quantize
def quantize_mx(
    values: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    kernels: int,
    num_threads: int,
    *,
    dtype: int,
    element: int,
    scale_rule: int,
) -> None: ...
def dequantize_mx(
    codes: np.ndarray,
    scales: np.ndarray,
    values: np.ndarray,
    kernels: int,
    num_threads: int,
    *,
    dtype: int,
    element: int,
) -> None: ...
def quantize_fp8_block(
    values: np.ndarray,
    dtype: int,
    shape: tuple[int, int, int],
    block_shape: tuple[int, int],
    codes: np.ndarray,
    scales: np.ndarray,
    kernels: int,
    num_threads: int,
) -> None: ...
def dequantize_fp8_block(
    codes: np.ndarray,
    scales: np.ndarray,
    shape: tuple[int, int, int],
    block_shape: tuple[int, int],
    dtype: int,
    values: np.ndarray,
    kernels: int,
    num_threads: int,
) -> None: ...
def quantize_nvfp4(
    values: np.ndarray,
    dtype: int,
    blocks: np.ndarray,
    scales: np.ndarray,
    tensor_scales: np.ndarray,
    has_scales: bool,
    kernels: int,
    num_threads: int,
) -> None: ...
def dequantize_nvfp4(
    blocks: np.ndarray,
    scales: np.ndarray,
    tensor_scales: np.ndarray,
    dtype: int,
    values: np.ndarray,
    kernels: int,
    num_threads: int,
) -> None: ...
def quantize_integers(
    values: np.ndarray,
    dtype: int,
    bits: int,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    num_threads: int,
) -> None: ...
def dequantize_integers(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    dtype: int,
    bits: int,
    values: np.ndarray,
    num_threads: int,
) -> None: ...
def pack_e2m1(codes: np.ndarray, blocks: np.ndarray, num_threads: int) -> None: ...
def unpack_e2m1(blocks: np.ndarray, codes: np.ndarray, num_threads: int) -> None: ...

# roofline
def read_memory(memory: np.ndarray, kernels: int, num_threads: int) -> int: ...
def peak_flops(iterations: int, kernels: int, num_threads: int, activation_format: int = 0) -> float: ...

# packed experts
def version() -> str: ...
def layout_version() -> int: ...

class PackedStorage:
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def nbytes(self) -> int: ...
    def parts(self) -> list[tuple[str, int, int]]: ...
    def copy_to(self, other: PackedStorage, num_threads: int) -> None: ...
    def pack(
        self,
        matrix: int,
        expert: int,
        weights: Sequence[np.ndarray],
        scales: Sequence[np.ndarray],
        dtype: int,
        num_threads: int,
        first_row: int = ...,
    ) -> None: ...
    def unpack(
        self, matrix: int, expert: int, weights: np.ndarray, scales: np.ndarray | None, num_threads: int
    ) -> None: ...
    def pack_sum_scales(
        self, matrix: int, expert: int, scales: np.ndarray, offsets: bool = False
    ) -> None: ...
    def unpack_sum_scales(
        self, matrix: int, expert: int, scales: np.ndarray, offsets: bool = False
    ) -> bool: ...
    def pack_bias(self, matrix: int, expert: int, bias: np.ndarray) -> None: ...
    def unpack_bias(self, matrix: int, expert: int, bias: np.ndarray) -> None: ...

class ExpertStorage(PackedStorage):
    def __init__(
        self,
        bytes: np.ndarray | None = None,
        *,
        w13_format: tuple[int, int, int, int],
        w2_format: tuple[int, int, int, int],
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        gated: bool = True,
        has_w13_bias: bool = False,
        has_w2_bias: bool = False,
        interleaved: bool = False,
        tensor_scales: bool = False,
        has_columns: bool = False,
    ) -> None: ...
    def select(self, places: np.ndarray) -> None: ...
    def selection(self) -> tuple[object, np.ndarray | None]: ...
    def view_bytes(self) -> bytes: ...
    @property
    def num_places(self) -> int: ...
    def pack_columns(self, expert: int, columns: np.ndarray) -> None: ...
    def unpack_columns(self, expert: int, columns: np.ndarray) -> None: ...
    @property
    def has_tensor_scales(self) -> bool: ...

# fused experts
def local_ids(ids: np.ndarray, expert_map: np.ndarray | None, num_ids: int, result: np.ndarray) -> int: ...
def fused_experts(
    experts: ExpertStorage,
    kernels: int,
    hidden_states: np.ndarray,
    hidden_dtype: int,
    topk_weights: np.ndarray,
    ids: np.ndarray,
    out: np.ndarray,
    out_dtype: int,
    num_threads: int,
    *,
    activation: int,
    alpha: float,
    limit: float,
    apply_router_weight_on_input: bool,
    activation_format: int,
    combine: bool = True,
) -> None: ...
def plan_call(
    experts: ExpertStorage, kernels: int, ids: np.ndarray, num_threads: int, num_nodes: int
) -> tuple[int, int, list[tuple[int, int, int, int]], list[tuple[int, int, int, int]]]: ...

# linear
class LinearStorage(PackedStorage):
    def __init__(
        self,
        bytes: np.ndarray | None = None,
        *,
        format: tuple[int, int, int, int],
        num_rows: int,
        k: int,
        num_terms: int = 1,
        has_bias: bool = False,
        tensor_scale: bool = False,
    ) -> None: ...

def count_terms(rows: np.ndarray, dtype: int, num_threads: int) -> int: ...
def linear(
    weight: LinearStorage,
    kernels: int,
    hidden_states: np.ndarray,
    hidden_dtype: int,
    out: np.ndarray,
    out_dtype: int,
    num_threads: int,
    activation_format: int,
) -> None: ...
def activate(
    kernels: int,
    gate: np.ndarray | None,
    up: np.ndarray,
    out: np.ndarray,
    num_threads: int,
    *,
    activation: int,
    alpha: float,
    limit: float,
    activation_format: int,
) -> None: ...
def mean_squares(rows: np.ndarray, dtype: int, means: np.ndarray, num_threads: int) -> None: ...
def sigmoid(x: np.ndarray, result: np.ndarray) -> None: ...

# routing
def route(
    logits: np.ndarray,
    correction_bias: np.ndarray | None,
    expert_scale: np.ndarray | None,
    topk_weights: np.ndarray,
    topk_ids: np.ndarray,
    num_threads: int,
    *,
    scoring: int,
    logit_softcap: float = ...,
    jitter_eps: float = ...,
    ids_given: bool = ...,
    by_logit: bool = ...,
    num_shared: int = ...,
    num_groups: int = ...,
    topk_group: int = ...,
    group_score: int = ...,
    zero_masked: bool = ...,
    renormalize: bool = ...,
    norm_order: float = ...,
    norm_epsilon: float = ...,
    norm_floor: float = ...,
    routed_scaling_factor: float = ...,
) -> int | None: ...
def hash_ids(
    input_ids: np.ndarray, tid2eid: np.ndarray, num_experts: int, topk_ids: np.ndarray
) -> tuple[int, int]: ...

# what a decoder computes beside its matrices
def rms_norm(
    rows: np.ndarray,
    dtype: int,
    weight: np.ndarray | None,
    epsilon: float,
    out: np.ndarray,
    out_dtype: int,
    num_threads: int,
) -> None: ...
def rotary(
    x: np.ndarray,
    positions: np.ndarray,
    frequencies: np.ndarray,
    out: np.ndarray,
    num_threads: int,
    *,
    factor: float,
    interleaved: bool,
) -> None: ...

class KVPage:
    @property
    def nbytes(self) -> int: ...
    def claim(self, begin: int, end: int) -> bool: ...
    def copy_from(self, other: KVPage) -> None: ...

def new_pages(num_kv_heads: int, head_dim: int, dtype: int, count: int) -> list[KVPage]: ...
def page_bytes(num_kv_heads: int, head_dim: int, dtype: int) -> int: ...
def fill_pages(
    pages: list[KVPage], position: int, keys: np.ndarray, values: np.ndarray, num_threads: int
) -> None: ...

class Slot(Generic[_T]):
    def __init__(self, value: _T) -> None: ...
    def get(self) -> _T: ...
    def exchange(self, old: _T, new: _T) -> bool: ...

def attention(
    sequences: list[tuple[np.ndarray, tuple[KVPage, ...], int, np.ndarray]],
    kernels: int,
    num_heads: int,
    sinks: np.ndarray | None,
    num_threads: int,
    *,
    scale: float,
    window: int,
    out_dtype: int,
) -> None: ...

# decoder
class SelfAttention:
    def __init__(
        self,
        projections: list[LinearStorage],
        output: LinearStorage,
        input_norm: np.ndarray,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        norm_epsilon: float,
        q_norm: np.ndarray | None,
        k_norm: np.ndarray | None,
        norms_whole: bool,
        clip: float | None,
        frequencies: np.ndarray,
        rotary_factor: float,
        window: int,
        scale: float,
        sinks: np.ndarray | None,
    ) -> None: ...
    def add_to(
        self,
        residual: np.ndarray,
        positions: np.ndarray,
        sequences: list[tuple[int, int, tuple[KVPage, ...]]],
        kernels: int,
        num_threads: int,
        activation_format: int,
    ) -> None: ...

def route_normalized(
    residual: np.ndarray,
    norm: np.ndarray,
    epsilon: float,
    weight: LinearStorage,
    rows: np.ndarray,
    logits: np.ndarray,
    kernels: int,
    num_threads: int,
) -> None: ...

# files
class FileMapping:
    def __init__(self, descriptor: int, begin: int, size: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def expect_random_reads(self) -> bool: ...
    def request_pages(self, begin: int, end: int) -> bool: ...
    def drop_pages(self, descriptor: int, begin: int, end: int) -> bool: ...

def crc32(data: np.ndarray, crc: int, num_threads: int) -> int: ...
def exchange_names(a: bytes, b: bytes) -> bool: ...

# memory of other libraries
class DLPackMemory:
    def __init__(self, capsule: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def device(self) -> tuple[int, int]: ...
    @property
    def type(self) -> tuple[int, int, int, bool]: ...
    def export(self, itemsize: int) -> None: ...
