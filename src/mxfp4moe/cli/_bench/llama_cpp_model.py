"""The peer llama.cpp with a whole model: token ids in, logits of the last one out."""

from __future__ import annotations

import importlib
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BATCH = 2048  # tokens that llama.cpp takes at a time, its own default


class LlamaCppModel:
    """A sequence that grows, in a context of `num_positions` tokens."""

    name = "llama.cpp"

    def __init__(self, path: Path, num_positions: int, num_threads: int) -> None:
        # By name, because a check of types knows nothing of it where it is not installed.
        self._api = llama_cpp = importlib.import_module("llama_cpp.llama_cpp")
        llama_cpp.llama_log_set(_quiet(llama_cpp), None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise ValueError("llama.cpp: expected a model that it reads, got none")
        weakref.finalize(self, llama_cpp.llama_model_free, self._model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = num_positions
        options.n_batch = min(_BATCH, num_positions)
        options.n_threads = options.n_threads_batch = num_threads
        options.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise ValueError("llama.cpp: expected memory for a context, got none")
        weakref.finalize(self, llama_cpp.llama_free, self._context)
        self._vocab_size = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))

    @staticmethod
    def missing() -> str:
        """Which packages are not installed."""
        names = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
        absent = [package for module, package in names.items() if importlib.util.find_spec(module) is None]
        if absent:
            return f"needs {' and '.join(absent)} (pip install {' '.join(absent)})"
        return ""

    def clear(self) -> None:
        """Begin anew."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def extend(self, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add tokens; the float32 logits of the last one."""
        for begin in range(0, len(input_ids), _BATCH):
            part = input_ids[begin : begin + _BATCH]
            tokens = (self._api.llama_token * len(part))(*part.tolist())
            status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(part)))
            if status != 0:
                raise ValueError(f"llama.cpp: expected a result, got status {status}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).copy()


def _quiet(api: Any) -> Any:
    global _callback
    _callback = api.llama_log_callback(lambda level, text, data: None)
    return _callback


_callback: Any = None  # llama.cpp keeps its address
