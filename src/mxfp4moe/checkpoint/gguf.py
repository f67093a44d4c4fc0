"""GGUF files: experts in MXFP4, bfloat16, float16 or float32.

To add an architecture: a line of `_ARCHITECTURES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, join_choices, value_error
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._checkpoint import Checkpoint
from mxfp4moe.checkpoint._near import none_among
from mxfp4moe.checkpoint._unread import Recording
from mxfp4moe.checkpoint.gguf_file import GgufFile
from mxfp4moe.checkpoint.schemes import plain
from mxfp4moe.experts.activation import Activation
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.layer_description import LayerDescription

_FLOATS = ("F32", "F16", "BF16")
_WEIGHTS = (*_FLOATS, "MXFP4")
_SOFTMAX, _SIGMOID, _SOFTMAX_OF_CHOSEN = 1, 2, 3  # expert_gating_func
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class _Architecture:
    """What the metadata of an architecture leaves out."""

    renormalize: bool = True
    """Unless expert_weights_norm says otherwise."""
    has_biases: bool = False
    activation: Activation = "silu"
    limit: float | None = None


_ARCHITECTURES = {
    "gpt-oss": _Architecture(has_biases=True, activation="swigluoai", limit=7.0),
    "qwen3moe": _Architecture(),
    "llama": _Architecture(),  # Mixtral
    "deepseek2": _Architecture(renormalize=False),  # DeepSeek-V2, V3, R1, Kimi-K2
}


class _Tensors(Recording):
    """The tensors of a GGUF file, or of all files of a split one."""

    def __init__(self, path: Path, files: list[GgufFile]) -> None:
        self.path = path
        self._file_of_tensor = {name: file for file in files for name in file.infos}
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of_tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of_tensor)

    def type(self, name: str) -> str:
        """The type of tensor `name`, as GGUF calls it."""
        return self._file_with(name).infos[name].type

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """The shape of tensor `name`, which must have so many axes."""
        file = self._file_with(name)
        info = file.infos[name]
        if len(info.shape) != num_axes:
            raise value_error(f"{file.path}: tensor {name}", f"{num_axes} axes", str(info))
        return info.shape

    def tensor(self, name: str, types: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[Any]:
        """Tensor `name`; its type must be one of `types`, its shape `shape`."""
        file = self._file_with(name)
        info = file.infos[name]
        if info.type not in types or info.shape != shape:
            expected = f"{' or '.join(types)} {list(shape)}"
            raise value_error(f"{file.path}: tensor {name}", expected, str(info))
        self.read.add(name)
        return file[name]

    def _file_with(self, name: str) -> GgufFile:
        if name not in self:
            raise value_error(str(self.path), f"a tensor {name}", none_among(name, self._file_of_tensor))
        return self._file_of_tensor[name]


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or all files of a split one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = _open_files(path)
        self._metadata = files[0].metadata
        self._tensors = _Tensors(path, files)
        self.model_type = self._metadata.get("general.architecture", "")
        if self.model_type not in _ARCHITECTURES:
            expected = join_choices(map(repr, _ARCHITECTURES))
            raise value_error(f"{path}: general.architecture", expected, shorten(self.model_type))
        self._architecture = _ARCHITECTURES[self.model_type]
        self.activation, self.alpha, self.limit = (
            self._architecture.activation,
            None,
            self._architecture.limit,
        )
        self.num_experts = self._integer("expert_count")
        self.top_k = self._integer("expert_used_count", maximum=self.num_experts)
        pattern = re.compile(r"blk\.(\d{1,9})\.ffn_gate_inp\.weight")
        found = {int(match[1]) for name in self._tensors if (match := pattern.fullmatch(name))}
        self.num_layers = self._integer("block_count", default=max(found, default=0) + 1)
        self.moe_layers = tuple(sorted(layer for layer in found if layer < self.num_layers))
        if not self.moe_layers:
            raise value_error(str(path), "a tensor blk.<layer>.ffn_gate_inp.weight", "none")
        first = f"blk.{self.moe_layers[0]}"
        _, self.hidden_size = self._tensors.shape(f"{first}.ffn_gate_inp.weight", 2)
        _, self.intermediate_size, _ = self._tensors.shape(f"{first}.ffn_gate_exps.weight", 3)
        shared = f"{first}.ffn_gate_shexp.weight"
        self.shared_intermediate_size = self._tensors.shape(shared, 2)[0] if shared in self._tensors else 0
        for key, size in (
            ("embedding_length", self.hidden_size),
            ("expert_feed_forward_length", self.intermediate_size),
        ):
            if self._integer(key, default=size) != size:
                raise self._error(key, f"{size}, as the tensors have", str(self._integer(key)))

    def _read_layer(self, layer: int) -> LayerDescription[ExpertWeights]:
        block, num_experts, hidden = f"blk.{layer}", self.num_experts, self.hidden_size
        tensors, has_biases = self._tensors.recording(), self._architecture.has_biases
        router_bias = None
        if has_biases:
            router_bias = tensors.tensor(f"{block}.ffn_gate_inp.bias", _FLOATS, (num_experts,))
        rule, arguments, factor = self._routing(tensors, block)
        shared = None
        if self.shared_intermediate_size:
            names = f"{block}.ffn_{{}}_shexp"
            shared = _read_matrices(tensors, names, (1, hidden, self.shared_intermediate_size))
        sizes = (num_experts, hidden, self.intermediate_size)
        description = LayerDescription(
            top_k=self.top_k,
            experts=_read_matrices(tensors, f"{block}.ffn_{{}}_exps", sizes, has_biases),
            router_weight=tensors.tensor(f"{block}.ffn_gate_inp.weight", _FLOATS, (num_experts, hidden)),
            router_bias=router_bias,
            routing=rule,
            routing_arguments=arguments,
            activation=self.activation,
            limit=self.limit,
            routed_scaling_factor=factor,
            shared_experts=shared,
            layer_number=layer,
        )
        tensors.check_all_read([f"{block}.ffn", f"{block}.exp"])
        return description

    def _routing(self, tensors: _Tensors, block: str) -> tuple[str, dict[str, Any], float]:
        """The rule of a layer, its arguments, and the factor of the routed sum where the rule has none."""
        gating = self._integer("expert_gating_func", default=_SOFTMAX, minimum=0)
        renormalize = self._field("expert_weights_norm", bool, "a bool", self._architecture.renormalize)
        factor = self._field("expert_weights_scale", float, "a float", 1.0) or 1.0  # 0 stands for none
        if not 0 < factor < np.inf:
            raise self._error("expert_weights_scale", "a finite number of at least 0", str(factor))
        num_groups = self._integer("expert_group_count", default=1, minimum=0) or 1
        bias = f"{block}.exp_probs_b.bias"
        has_bias = bias in tensors
        if gating in (0, _SOFTMAX, _SOFTMAX_OF_CHOSEN):
            if num_groups > 1 or has_bias:
                found = f"{num_groups} groups" if num_groups > 1 else "a correction bias"
                raise self._error("expert_gating_func", f"sigmoid ({_SIGMOID}) with {found}", str(gating))
            chosen = gating == _SOFTMAX_OF_CHOSEN
            return "topk_softmax", {"renormalize": chosen or renormalize}, factor
        if gating != _SIGMOID:
            raise self._error(
                "expert_gating_func", "1, 2 or 3 (softmax, sigmoid, softmax of the chosen)", str(gating)
            )
        arguments: dict[str, Any] = {"renormalize": renormalize, "routed_scaling_factor": factor}
        if has_bias:
            correction = tensors.tensor(bias, _FLOATS, (self.num_experts,))
            arguments["correction_bias"] = cast(correction, np.float32)
        if num_groups == 1:
            return "topk_sigmoid", arguments, 1.0
        if self.num_experts % num_groups:
            raise self._error(
                "expert_group_count", f"a divisor of {self.num_experts} experts", str(num_groups)
            )
        kept = self._integer("expert_group_used_count", maximum=num_groups)
        return "grouped_topk", {"num_groups": num_groups, "topk_group": kept, **arguments}, 1.0

    def _integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = 2**31 - 1
    ) -> int:
        expected = f"an integer in [{minimum}, {maximum}]"
        value = self._field(key, int, expected, default)
        if not minimum <= value <= maximum:
            raise self._error(key, expected, str(value))
        return int(value)

    def _field(self, key: str, kind: type, expected: str, default: Any) -> Any:
        value = self._metadata.get(f"{self.model_type}.{key}", default)
        if value is None:
            raise self._error(key, expected, "no such key")
        if type(value) is not kind:
            raise self._error(key, expected, shorten(value))
        return value

    def _error(self, key: str, expected: str, got: str) -> ValueError:
        return value_error(f"{self.path}: {self.model_type}.{key}", expected, got)


def _read_matrices(
    tensors: _Tensors, name: str, sizes: tuple[int, int, int], has_biases: bool = False
) -> ExpertWeights:
    """The matrices ``name.format("gate")`` and so on; `sizes`: experts, hidden, intermediate.

    Those of the shared expert have no axis of experts.
    """
    count, hidden, intermediate = sizes
    names = {part: name.format(part) for part in ("gate", "up", "down")}
    shapes = dict.fromkeys(names, (intermediate, hidden)) | {"down": (hidden, intermediate)}
    leading = () if name.endswith("_shexp") else (count,)
    matrices = [
        tensors.tensor(f"{full}.weight", _WEIGHTS, (*leading, *shapes[part])) for part, full in names.items()
    ]
    gate, up, down = (matrix if leading else matrix[None] for matrix in matrices)
    kinds = [tensors.type(f"{full}.weight") for full in names.values()]
    if "MXFP4" in kinds and set(kinds) != {"MXFP4"}:
        expected = "gate, up and down all in MXFP4 or all in floats"
        place = f"{tensors.path}: tensors {name.format('*')}.weight"
        raise value_error(place, expected, " and ".join(kinds))
    arrays: dict[str, Any] = {"w13": (list(gate), list(up)), "w2": list(down)}
    if has_biases:
        both, bias = (
            [
                cast(tensors.tensor(f"{names[part]}.bias", _FLOATS, (*leading, shapes[part][0])), np.float32)
                for part in parts
            ]
            for parts in (("gate", "up"), ("down",))
        )
        arrays |= {"w13_bias": np.concatenate(both, axis=-1), "w2_bias": bias[0]}
    if any(f"{full}.scale" in tensors for full in names.values()):
        # Such a scale multiplies the products of each expert, before the bias is added.
        scales = [
            tensors.tensor(f"{full}.scale", ("F32",), (count,))
            if f"{full}.scale" in tensors
            else np.ones(count, np.float32)
            for full in names.values()
        ]
        arrays |= {"w13_tensor_scale": np.stack(scales[:2], axis=-1), "w2_tensor_scale": scales[2]}
    if kinds[0] == "MXFP4":
        return ExpertWeights("mxfp4", "GGUF MXFP4", (hidden, intermediate), arrays, _decode)
    arrays = plain.with_scales(arrays)
    return ExpertWeights("bf16", f"GGUF {kinds[0]}", (hidden, intermediate), arrays, plain.to_bfloat16)


def _open_files(path: Path) -> list[GgufFile]:
    """The file at `path`, and the others of which it is one part."""
    first = GgufFile(path)
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= 99_999:
        raise value_error(f"{path}: split.count", "an integer in [0, 99999]", shorten(count))
    if count < 2:
        return [first]
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        expected = f"a name that ends with -<number>-of-{count:05d}.gguf, for a file in {count} parts"
        raise value_error(str(path), expected, path.name)
    names = (path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))
    files = [first if name == path else GgufFile(name) for name in names]
    seen: set[str] = set()
    for file in files:
        twice = seen & set(file.infos)
        if twice:
            raise value_error(str(file.path), "each tensor in one file", f"{shorten(min(twice))} in two")
        seen |= set(file.infos)
    return files


def _decode(arrays: dict[str, Any]) -> dict[str, Any]:
    """Scales apart, and codes in the order of all other formats."""
    (gate, gate_scales), (up, up_scales), (down, down_scales) = (
        tuple(zip(*map(split_blocks, matrices), strict=True)) for matrices in (*arrays["w13"], arrays["w2"])
    )
    return {
        **arrays,
        "w13": (list(gate), list(up)),
        "w13_scales": (list(gate_scales), list(up_scales)),
        "w2": list(down),
        "w2_scales": list(down_scales),
    }


def split_blocks(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes [N, K / 32, 16], the even k in the low nibble, and scales [N, K / 32] of blocks [N, K / 32, 17].

    Byte j of a block in GGUF holds elements j (low nibble) and j + 16 (high nibble).
    """
    words = np.ascontiguousarray(blocks[..., 1:]).view("<u2")
    codes = np.empty((*blocks.shape[:-1], 16), np.uint8)
    # From its lowest nibble on, a word has the elements 2i, 2i + 16, 2i + 1, 2i + 17.
    codes[..., :8] = words & 0x0F | words >> 4 & 0xF0
    codes[..., 8:] = words >> 4 & 0x0F | words >> 8 & 0xF0
    return codes, np.ascontiguousarray(blocks[..., 0])
