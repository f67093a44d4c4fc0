"""What a checkpoint says and nobody reads: known to be harmless, or an error, as it may change the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from mxfp4moe._arguments import value_error

_ACTIVATIONS = "activations are not quantized here: weights of 4 or 8 bits meet bfloat16"
_CACHE = "of the cache of attention"
_BY_DTYPE = "the dtype of a matrix tells whether it was left in floats"
_BY_SHAPE = "the shapes of the tensors, or other tensors that are then refused, show it"
_HISTORY = "how the weights were made, not what they are"
_SIZES = "the configuration has the sizes"
_ELSEWHERE = "how other software computes"

HARMLESS_TENSORS = {
    "input_scale": _ACTIVATIONS,
    "input_global_scale": _ACTIVATIONS,
    "input_zero_point": _ACTIVATIONS,
    "output_scale": _ACTIVATIONS,
    "output_zero_point": _ACTIVATIONS,
    "k_scale": _CACHE,
    "v_scale": _CACHE,
    "weight_shape": _SIZES,
    "shape": _SIZES,
    "ffn_norm.weight": "norms the input of the block (GGUF), before it comes here",
}
"""Ends of names of tensors that nothing here needs, and why."""

HARMLESS_MEMBERS = {
    "input_activations": _ACTIVATIONS,
    "output_activations": _ACTIVATIONS,
    "activation_scheme": _ACTIVATIONS,
    "input_tensors": _ACTIVATIONS,
    "output_tensors": _ACTIVATIONS,
    "kv_cache_scheme": _CACHE,
    "kv_cache_quant_config": _CACHE,
    "kv_cache_post_rope": _CACHE,
    "kv_cache_quant_algo": _CACHE,
    "softmax_quant_spec": "of attention",
    "modules_to_not_convert": _BY_DTYPE,
    "ignored_layers": _BY_DTYPE,
    "exclude": _BY_DTYPE,
    "exclude_modules": _BY_DTYPE,
    "strategy": _BY_SHAPE,
    "symmetric": _BY_SHAPE,
    "qscheme": _BY_SHAPE,
    "ch_axis": _BY_SHAPE,
    "block_structure": _BY_SHAPE,
    "actorder": _BY_SHAPE,
    "scale_dtype": _BY_SHAPE,
    "zp_dtype": _BY_SHAPE,
    "zero_point_type": _BY_SHAPE,
    "scale_type": _BY_SHAPE,
    "scale_fmt": _BY_SHAPE,
    "is_scale_quant": _BY_SHAPE,
    "mx_element_dtype": _BY_SHAPE,
    "export": _BY_SHAPE,
    "dynamic": _HISTORY,
    "is_dynamic": _HISTORY,
    "observer": _HISTORY,
    "observer_cls": _HISTORY,
    "observer_kwargs": _HISTORY,
    "percentile": _HISTORY,
    "round_method": _HISTORY,
    "scale_calculation_mode": _HISTORY,
    "quant_mode": _HISTORY,
    "quantization_status": _HISTORY,
    "global_compression_ratio": _HISTORY,
    "version": _HISTORY,
    "target_device": _HISTORY,
    "damp_percent": _HISTORY,
    "damp_auto_increment": _HISTORY,
    "true_sequential": _HISTORY,
    "static_groups": _HISTORY,
    "act_group_aware": _HISTORY,
    "cache_block_outputs": _HISTORY,
    "module_name_preceding_first_block": _HISTORY,
    "modules_in_block_to_quantize": _BY_DTYPE,
    "block_name_to_quantize": _BY_DTYPE,
    "to_quant_block_names": _BY_DTYPE,
    "lm_head": "of another module",
    "meta": _HISTORY,
    "dataset": _HISTORY,
    "tokenizer": _HISTORY,
    "model_seqlen": _HISTORY,
    "pad_token_id": _HISTORY,
    "model_name_or_path": _HISTORY,
    "model_file_base_name": _HISTORY,
    "iters": _HISTORY,
    "nsamples": _HISTORY,
    "seqlen": _HISTORY,
    "batch_size": _HISTORY,
    "lr": _HISTORY,
    "minmax_lr": _HISTORY,
    "amp": _HISTORY,
    "gradient_accumulate_steps": _HISTORY,
    "enable_minmax_tuning": _HISTORY,
    "enable_quanted_input": _HISTORY,
    "enable_norm_bias_tuning": _HISTORY,
    "low_gpu_mem_usage": _HISTORY,
    "model_free": _HISTORY,
    "autoround_version": _HISTORY,
    "provider": _HISTORY,
    "supported_types": _HISTORY,
    "quant_block_list": _HISTORY,
    "hyb_act": _HISTORY,
    "static_kv_dtype": _CACHE,
    "static_kv_granularity": _CACHE,
    "static_attention_dtype": _ACTIVATIONS,
    "static_attention_granularity": _ACTIVATIONS,
    "act_bits": _ACTIVATIONS,
    "act_group_size": _ACTIVATIONS,
    "act_sym": _ACTIVATIONS,
    "act_dynamic": _ACTIVATIONS,
    "act_data_type": _ACTIVATIONS,
    "run_compressed": _ELSEWHERE,
    "dequantize": _ELSEWHERE,
    "backend": _ELSEWHERE,
    "do_fuse": _ELSEWHERE,
    "modules_to_fuse": _ELSEWHERE,
    "fuse_max_seq_len": _ELSEWHERE,
    "exllama_config": _ELSEWHERE,
    "use_exllama": _ELSEWHERE,
    "disable_exllama": _ELSEWHERE,
    "max_input_length": _ELSEWHERE,
    "use_cuda_fp16": _ELSEWHERE,
    "is_marlin_format": _ELSEWHERE,
}
"""Members of a quantization configuration, at any depth, that nothing here needs, and why."""


class Recording(ABC):
    """Tensors by name that keep account of those that were asked for.

    A class of this kind iterates over the names, and adds to `read` that of each tensor that it returns.
    """

    path: Path
    read: set[str]

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all tensors."""

    def recording(self) -> Self:
        """The same tensors with an account that is empty."""
        assert self._sorted_names is not None  # found once for all views
        view = copy(self)
        view.read = set()
        return view

    def check_all_read(self, prefixes: Sequence[str]) -> None:
        """Raise for a tensor with one of these prefixes that was not asked for, unless it is harmless."""
        for prefix in prefixes:
            for name in self.names_with(prefix):
                if name not in self.read and not _is_harmless(name):
                    expected = f"no tensor {prefix}* but those that are used"
                    raise value_error(
                        str(self.path), expected, f"{name[:200]!r}, which may change the result"
                    )

    def names_with(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, sorted."""
        names = self._sorted_names
        for i in range(bisect_left(names, prefix), len(names)):
            if not names[i].startswith(prefix):
                return
            yield names[i]

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self)


def _is_harmless(name: str) -> bool:
    parts = name.split(".")
    if parts[-1] in HARMLESS_TENSORS or ".".join(parts[-2:]) in HARMLESS_TENSORS:
        return True
    # In tensors of all experts: down_proj_input_scale, down_proj_shape.
    ends = (f"_{end}" for end, why in HARMLESS_TENSORS.items() if why in (_ACTIVATIONS, _SIZES))
    return parts[-1].endswith(tuple(ends))


def says_nothing(value: Any) -> bool:
    """Whether a member is null, or an object or a list that holds nothing else."""
    if isinstance(value, dict):
        value = list(value.values())
    return value is None or (isinstance(value, list) and all(map(says_nothing, value)))
