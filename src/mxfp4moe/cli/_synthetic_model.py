"""Whole models with random weights, of the widths of published ones and with as many layers as asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from mxfp4moe.cli._synthetic import GptOssShape, Tensor, mxfp4, normal


@dataclass(frozen=True)
class Decoder(ABC):
    """A decoder with experts in each layer; the fields are those of config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float

    title: ClassVar[str]
    """The published model whose widths are the defaults."""

    @property
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        names = (
            "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
            "max_position_embeddings rms_norm_eps num_experts_per_tok"
        )
        return {
            **{name: getattr(self, name) for name in names.split()},
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
            **self._own_config(),
        }

    @property
    def shards(self) -> list[dict[str, Tensor]]:
        """A file of the embedding and the head, and one for each layer."""
        ends = {
            "model.embed_tokens.weight": normal(self.vocab_size, self.hidden_size, deviation=1.0),
            "model.norm.weight": _norm(self.hidden_size),
            "lm_head.weight": _linear(self.vocab_size, self.hidden_size),
        }
        return [ends, *(self._layer(f"model.layers.{i}.") for i in range(self.num_hidden_layers))]

    @property
    def layer_bytes(self) -> int:
        """Size of the tensors of one layer."""
        return sum(tensor.nbytes for tensor in self._layer("").values())

    @property
    def end_bytes(self) -> int:
        """Size of the tensors before and after the layers."""
        return sum(tensor.nbytes for tensor in self.shards[0].values())

    def fitting_layers(self, nbytes: float) -> int:
        """How many such layers fit into so many bytes, together with what stands before and after them."""
        return max(0, int((nbytes - self.end_bytes) // self.layer_bytes))

    @property
    def _queries(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def _keys(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def _layer(self, prefix: str) -> dict[str, Tensor]:
        attention = {
            "q_proj.weight": _linear(self._queries, self.hidden_size),
            "k_proj.weight": _linear(self._keys, self.hidden_size),
            "v_proj.weight": _linear(self._keys, self.hidden_size),
            "o_proj.weight": _linear(self.hidden_size, self._queries),
            **self._own_attention(),
        }
        return {
            f"{prefix}input_layernorm.weight": _norm(self.hidden_size),
            **{f"{prefix}self_attn.{name}": tensor for name, tensor in attention.items()},
            f"{prefix}post_attention_layernorm.weight": _norm(self.hidden_size),
            **self._block(f"{prefix}mlp."),
        }

    @abstractmethod
    def _own_config(self) -> dict[str, Any]:
        """The fields that only this type of model has, or has by other names."""

    @abstractmethod
    def _own_attention(self) -> dict[str, Tensor]:
        """What its attention has besides four matrices."""

    @abstractmethod
    def _block(self, prefix: str) -> dict[str, Tensor]:
        """Its router and experts."""


@dataclass(frozen=True)
class GptOss(Decoder):
    """gpt-oss: biases and sinks in its attention, and in every other layer a window."""

    hidden_size: int = 2880
    num_hidden_layers: int = 24
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 64
    num_experts: int = 32
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 2880
    vocab_size: int = 201_088
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-5
    sliding_window: int = 128

    title = "gpt-oss-20b"

    @property
    def _experts(self) -> GptOssShape:
        sizes = self.hidden_size, self.moe_intermediate_size, self.num_experts, self.num_experts_per_tok
        return GptOssShape(*sizes)

    def _own_config(self) -> dict[str, Any]:
        return {
            **self._experts.config,
            "num_hidden_layers": self.num_hidden_layers,
            "attention_bias": True,
            "sliding_window": self.sliding_window,
            "rope_theta": 150000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 4096,
                "truncate": False,
            },
        }

    def _own_attention(self) -> dict[str, Tensor]:
        sizes = {"q": self._queries, "k": self._keys, "v": self._keys, "o": self.hidden_size}
        biases = {f"{name}_proj.bias": normal(size, deviation=0.1) for name, size in sizes.items()}
        return {**biases, "sinks": normal(self.num_attention_heads, deviation=1.0)}

    def _block(self, prefix: str) -> dict[str, Tensor]:
        gate_up, others = self._experts.block_tensors(prefix)
        return {**gate_up, **others}


@dataclass(frozen=True)
class Qwen3Moe(Decoder):
    """Qwen3-MoE: norms of queries and keys, many small experts, in MXFP4 as compressed-tensors stores it."""

    hidden_size: int = 2048
    num_hidden_layers: int = 48
    num_attention_heads: int = 32
    num_key_value_heads: int = 4
    head_dim: int = 128
    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768
    vocab_size: int = 151_936
    max_position_embeddings: int = 40_960
    rms_norm_eps: float = 1e-6

    title = "qwen3-30b-a3b"

    def _own_config(self) -> dict[str, Any]:
        weights = {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "symmetric": True}
        group = {"targets": ["Linear"], "weights": {**weights, "dynamic": False}, "input_activations": None}
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": self.num_experts,
            "moe_intermediate_size": self.moe_intermediate_size,
            "intermediate_size": 3 * self.hidden_size,  # of dense layers, of which there are none
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "attention_bias": False,
            "use_sliding_window": False,
            "rope_theta": 1e6,
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "mxfp4-pack-quantized",
                "quantization_status": "compressed",
                "config_groups": {"group_0": group},
                "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
            },
        }

    def _own_attention(self) -> dict[str, Tensor]:
        return {"q_norm.weight": _norm(self.head_dim), "k_norm.weight": _norm(self.head_dim)}

    def _block(self, prefix: str) -> dict[str, Tensor]:
        hidden, inner = self.hidden_size, self.moe_intermediate_size
        sizes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        tensors = {f"{prefix}gate.weight": normal(self.num_experts, hidden, deviation=hidden**-0.5)}
        for i in range(self.num_experts):
            for name, (rows, columns) in sizes.items():
                codes, scales = mxfp4(rows, columns)
                tensors[f"{prefix}experts.{i}.{name}.weight_packed"] = codes.with_sizes(rows, columns // 2)
                tensors[f"{prefix}experts.{i}.{name}.weight_scale"] = scales
        return tensors


DECODERS: dict[str, type[GptOss | Qwen3Moe]] = {each.title: each for each in (GptOss, Qwen3Moe)}


def _linear(rows: int, columns: int) -> Tensor:
    """A matrix that gives sums of order 1 for inputs of order 1."""
    return normal(rows, columns, deviation=columns**-0.5)


def _norm(size: int) -> Tensor:
    return normal(size, mean=1.0, deviation=0.1)
