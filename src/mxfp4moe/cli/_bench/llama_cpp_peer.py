"""The peer llama.cpp: the graph of its mixture-of-experts block on ggml's CPU backend.

llama-cpp-python brings libggml, whose public C interface is called here: its Python functions run whole
models alone. As in llama.cpp, weights go into the buffer that rearranges them for the CPU, if there is one,
and matrix products round activations to 8 bits.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache, partial, reduce
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mxfp4moe.cli._bench.ggml_blocks import mxfp4_blocks, q4_0_blocks, q8_0_blocks
from mxfp4moe.cli._bench.problem import Batch, Shape
from mxfp4moe.reference import ExpertArrays

_F32, _I32 = 0, 26  # enum ggml_type
_BLOCKS = {"mxfp4": (39, mxfp4_blocks), "int4": (2, q4_0_blocks), "int8": (8, q8_0_blocks)}
_CPU = 0  # enum ggml_backend_dev_type
_MAX_NODES = 2048  # of a graph that is made without a size
_MAX_TOP_K = 500  # of which each takes a view and a sum


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_TYPES: dict[str, Any] = {
    "p": c_void_p,
    "i": c_int,
    "l": c_int64,
    "z": c_size_t,
    "f": c_float,
    "b": c_bool,
    "s": c_char_p,
}
_TYPES |= {"-": None, "I": _InitParams}
_quiet = CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)
# These are result and arguments of the functions ggml_<name>.
_FUNCTIONS = {
    "pI": "init",
    "z": "tensor_overhead graph_overhead",
    "-p": "free set_input set_output gallocr_free backend_free backend_buffer_free",
    "-pp": "build_forward_expand log_set",
    "ppilll": "new_tensor_3d",
    "ppp": "cont backend_alloc_ctx_tensors_from_buft",
    "pppp": "add mul swiglu_split",
    "ppppp": "mul_mat_id add_id",
    "pppff": "clamp",
    "ppppff": "swiglu_oai",
    "pppllzz": "view_2d",
    "pp": "new_graph gallocr_new backend_get_device backend_get_default_buffer_type backend_dev_backend_reg",
    "bpp": "gallocr_alloc_graph backend_dev_supports_op",
    "pis": "backend_init_by_type",
    "pps": "backend_reg_get_proc_address",
    "sp": "backend_buft_name",
    "-ppzz": "backend_tensor_set backend_tensor_get",
    "ipp": "backend_graph_compute",
}


class LlamaCppPeer:
    """ggml's CPU backend, with float32 inputs and results."""

    name = "llama.cpp"
    isa: str | None = None
    formats: tuple[str, ...] = tuple(_BLOCKS)
    copies = 1.5  # with a matrix on its way

    def __init__(self, shape: Shape, arrays: ExpertArrays, num_threads: int) -> None:
        if shape.activation not in ("silu", "swigluoai"):
            raise ValueError(f"llama.cpp: expected the activation silu or swigluoai, got {shape.activation}")
        if shape.top_k > _MAX_TOP_K:
            raise ValueError(f"llama.cpp: expected top_k of at most {_MAX_TOP_K}, got {shape.top_k}")
        self.shape, self.ggml = shape, _load()
        self.backend = self.ggml.backend_init_by_type(_CPU, None)
        weakref.finalize(self, self.ggml.backend_free, self.backend)
        self.plain = self.ggml.backend_get_default_buffer_type(self.backend)
        self._function("set_n_threads", None, c_void_p, c_int)(self.backend, num_threads)
        self.weights = {"down": self._blocks(arrays.w2, arrays.w2_scales)}
        for half, name in enumerate(("gate", "up")):
            self.weights[name] = self._blocks(
                arrays.w13[:, half::2], np.asarray(arrays.w13_scales)[:, half::2]
            )
            if arrays.w13_bias is not None:
                self.weights[f"{name}_bias"] = self._place(arrays.w13_bias[:, half::2], _F32, self.plain)
        if arrays.w2_bias is not None:
            self.weights["down_bias"] = self._place(arrays.w2_bias, _F32, self.plain)
        self._graph: _Graph | None = None

    @staticmethod
    def missing() -> str:
        """Which package is not installed."""
        if _library() is None:
            return "the package llama-cpp-python is not installed (pip install llama-cpp-python)"
        return ""

    def prepare(self, batch: Batch) -> Callable[[], np.ndarray]:
        """The graph for that many tokens, made anew where their number changes."""
        hidden, weights, ids = batch
        if self._graph is None or self._graph.num_tokens != len(hidden):
            self._graph = _Graph(self, len(hidden))
        inputs = hidden.astype(np.float32), ids.astype(np.int32), weights
        return partial(self._compute, self._graph, inputs)

    def _compute(self, graph: _Graph, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        # This is a method of the object that holds the weights, so that the call keeps them.
        return graph.compute(inputs)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function that the backend exports by its name alone."""
        registry = self.ggml.backend_dev_backend_reg(self.ggml.backend_get_device(self.backend))
        address = self.ggml.backend_reg_get_proc_address(registry, f"ggml_backend_{name}".encode())
        return CFUNCTYPE(result, *arguments)(address)

    def _blocks(self, codes: np.ndarray, scales: Any) -> int:
        """A tensor of weights in ggml's blocks."""
        kind_of_blocks, blocks = _BLOCKS[self.shape.format]
        packed = blocks(codes, scales)
        extra = self._function("dev_get_extra_bufts", POINTER(c_void_p), c_void_p)
        kinds = takewhile(bool, extra(self.ggml.backend_get_device(self.backend)))  # a null ends them
        repacked = [kind for kind in kinds if self.ggml.backend_buft_name(kind) == b"CPU_REPACK"]
        tensors = (self._place(packed, kind_of_blocks, kind) for kind in (*repacked, self.plain))
        return next(filter(None, tensors))

    def _place(self, array: np.ndarray, kind: int, buffer_type: int) -> int:
        """A tensor in a buffer of its own; 0 if matrix products cannot use it there."""
        ggml, context = self.ggml, _context(self.ggml)
        sizes = [*array.shape[::-1], 1]
        if kind != _F32:
            sizes = [32 * array.shape[2], array.shape[1], len(array)]
        tensor = ggml.new_tensor_3d(context, kind, *sizes)
        buffer = ggml.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise ValueError(f"llama.cpp: expected memory for {array.nbytes} bytes of weights, got none")
        weakref.finalize(self, ggml.free, context)
        weakref.finalize(self, ggml.backend_buffer_free, buffer)
        if buffer_type != self.plain:
            one = ggml.new_tensor_3d(context, _F32, sizes[0], 1, 1)
            ids = ggml.new_tensor_3d(context, _I32, 1, 1, 1)
            product = ggml.mul_mat_id(context, tensor, one, ids)
            if not ggml.backend_dev_supports_op(ggml.backend_get_device(self.backend), product):
                return 0
        array = np.ascontiguousarray(array)
        ggml.backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
        return int(tensor)


class _Graph:
    """The block for one number of tokens."""

    def __init__(self, peer: LlamaCppPeer, num_tokens: int) -> None:
        self.num_tokens, self._shape = num_tokens, peer.shape
        self._ggml, self._backend, self._weights = peer.ggml, peer.backend, peer.weights
        ggml, hidden, top_k = peer.ggml, peer.shape.hidden_size, peer.shape.top_k
        self._context = context = _context(ggml)
        weakref.finalize(self, ggml.free, context)
        x = ggml.new_tensor_3d(context, _F32, hidden, 1, num_tokens)
        self._ids = ggml.new_tensor_3d(context, _I32, top_k, num_tokens, 1)
        weights = ggml.new_tensor_3d(context, _F32, 1, top_k, num_tokens)
        self._inputs = x, self._ids, weights
        for tensor in self._inputs:
            ggml.set_input(tensor)
        inner = self._activate(self._linear("gate", x), self._linear("up", x))
        slots = ggml.mul(context, self._linear("down", inner), weights)
        row = 4 * hidden
        views = [ggml.view_2d(context, slots, hidden, num_tokens, top_k * row, i * row) for i in range(top_k)]
        self._result = ggml.cont(context, reduce(lambda a, b: ggml.add(context, a, b), views))
        ggml.set_output(self._result)
        self._graph = ggml.new_graph(context)
        ggml.build_forward_expand(self._graph, self._result)
        allocator = ggml.gallocr_new(peer.plain)
        weakref.finalize(self, ggml.gallocr_free, allocator)
        if not ggml.gallocr_alloc_graph(allocator, self._graph):
            raise ValueError(f"llama.cpp: expected memory for {num_tokens} tokens, got none")

    def compute(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """The result for hidden states, ids and router weights."""
        for tensor, array in zip(self._inputs, inputs, strict=True):
            self._ggml.backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
        if self._ggml.backend_graph_compute(self._backend, self._graph) != 0:
            raise ValueError("llama.cpp: expected a result, got an error")
        result = np.empty((self.num_tokens, self._shape.hidden_size), np.float32)
        self._ggml.backend_tensor_get(self._result, result.ctypes.data, 0, result.nbytes)
        return result

    def _linear(self, name: str, x: Any) -> Any:
        product = self._ggml.mul_mat_id(self._context, self._weights[name], x, self._ids)
        bias = self._weights.get(f"{name}_bias")
        return product if bias is None else self._ggml.add_id(self._context, product, bias, self._ids)

    def _activate(self, gate: Any, up: Any) -> Any:
        context, limit = self._context, self._shape.limit
        if self._shape.activation == "swigluoai":
            return self._ggml.swiglu_oai(context, gate, up, 1.702, np.inf if limit is None else limit)
        if limit is not None:
            gate = self._ggml.clamp(context, gate, -np.inf, limit)
            up = self._ggml.clamp(context, up, -limit, limit)
        return self._ggml.swiglu_split(context, gate, up)


def _library() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((path for folder in folders for path in Path(folder).glob("lib/libggml.so")), None)


@cache
def _load() -> SimpleNamespace:
    """The functions of libggml, by their names without ggml_."""
    functions = SimpleNamespace()
    try:
        library = ctypes.CDLL(str(_library()))
        for signature, names in _FUNCTIONS.items():
            result, *arguments = (_TYPES[letter] for letter in signature)
            for name in names.split():
                function = getattr(library, f"ggml_{name}")
                function.restype, function.argtypes = result, arguments
                setattr(functions, name, function)
    except (OSError, AttributeError) as error:
        raise ValueError(f"llama.cpp: expected a libggml that has MXFP4, got: {error}") from None
    functions.log_set(_quiet, None)
    return functions


def _context(ggml: SimpleNamespace) -> int:
    """Room for the descriptions of tensors, not for their data."""
    room = _MAX_NODES * ggml.tensor_overhead() + ggml.graph_overhead()
    return int(ggml.init(_InitParams(room, None, True)))
