"""Experts of random integer codes in the layouts of other software, each with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from checkpoints import PARTS, Tensors, Written

BLOCK = "model.layers.0.mlp"


class Ints(NamedTuple):
    """Matrices of all experts: codes [E, N, K] without a sign, zero points and scales [E, N, groups].

    Code k is that of column order[k], [E, K].
    """

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    order: np.ndarray
    biases: np.ndarray | None = None
    """Instead of zero points: what is added after the multiplication."""

    def values(self) -> np.ndarray:
        """The numbers that they stand for, in float32."""
        by_group = self.codes.reshape(*self.scales.shape, -1).astype(np.float64)
        factors = self.scales.astype(np.float64)[..., None]
        if self.biases is None:
            exact = (by_group - self.zeros[..., None]) * factors
        else:
            exact = by_group * factors + self.biases.astype(np.float64)[..., None]
        return in_columns(exact.reshape(self.codes.shape).astype(np.float32), self.order)


def in_columns(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """What stands in `order`, in the order of columns."""
    return np.take_along_axis(array, np.argsort(order, axis=-1)[:, None], axis=-1)


def groups_of_columns(ints: Ints) -> np.ndarray:
    """The group of each column."""
    groups = np.arange(ints.order.shape[1], dtype=np.int32) * ints.scales.shape[-1] // ints.order.shape[1]
    return np.take(groups, np.argsort(ints.order, axis=-1))


class Case(NamedTuple):
    """One way to store experts."""

    store: Callable[[Ints, Case], Tensors]
    """The tensors of a matrix by the ends of their names, each with an axis of experts."""
    bits: int = 4
    group_size: int | None = 32
    symmetric: bool = True
    scale_dtype: Any = ml_dtypes.bfloat16
    option: Any = None
    ordered: bool = False
    """Whether activations order the columns, of which codes then are in the order of their groups."""

    def quantization(self) -> dict[str, Any]:
        return CONFIGURATIONS[self.store](self)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Words of 32 bits along the last axis, the first code in the lowest bits."""
    count = 32 // bits
    by_word = codes.astype(np.uint64).reshape(*codes.shape[:-1], -1, count)
    words = (by_word << (bits * np.arange(count, dtype=np.uint64))).sum(axis=-1, dtype=np.uint64)
    return words.astype(np.uint32).view(np.int32)


def _filled(array: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros after the last axis, up to a multiple."""
    return np.pad(array, [*[(0, 0)] * (array.ndim - 1), (0, -array.shape[-1] % multiple)])


def pack_quantized(ints: Ints, case: Case) -> Tensors:
    codes = in_columns(ints.codes, ints.order)
    tensors = {"weight_packed": pack(codes, case.bits), "weight_scale": ints.scales}
    tensors |= {"weight_g_idx": groups_of_columns(ints)} if case.ordered else {}
    if not case.symmetric:
        zeros = ints.zeros.swapaxes(1, 2)
        tensors["weight_zero_point"] = pack(_filled(zeros, 32 // case.bits), case.bits).swapaxes(1, 2)
        if case.option == "not packed":
            signed = ints.zeros.astype(np.int16) - 2 ** (case.bits - 1)
            tensors["weight_zero_point"] = signed.astype(np.int8)
    count, rows, columns = ints.codes.shape
    return tensors | {"weight_shape": np.tile(np.array([rows, columns]), (count, 1))}


def int_quantized(ints: Ints, case: Case) -> Tensors:
    middle = 2 ** (case.bits - 1)
    scales = ints.scales[..., 0] if case.option == "flat" else ints.scales
    codes = in_columns(ints.codes, ints.order).astype(np.int16)
    tensors = {"weight": (codes - middle).astype(np.int8), "weight_scale": scales}
    tensors |= {"weight_g_idx": groups_of_columns(ints)} if case.ordered else {}
    if not case.symmetric or case.option == "zeros":
        tensors["weight_zero_point"] = (ints.zeros.astype(np.int16) - middle).astype(np.int8)
    return tensors


def _compressed(format: str) -> Callable[[Case], dict[str, Any]]:
    def quantization(case: Case) -> dict[str, Any]:
        weights: dict[str, Any] = {"num_bits": case.bits, "type": "int", "symmetric": case.symmetric}
        weights |= {"strategy": "channel"} if case.group_size is None else {"strategy": "group"}
        weights |= {} if case.group_size is None else {"group_size": case.group_size}
        group = {"format": format, "targets": ["Linear"], "weights": weights}
        return {
            "quant_method": "compressed-tensors",
            "format": format,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:.*mlp.gate$"],
        }

    return quantization


def gptq(ints: Ints, case: Case) -> Tensors:
    """The option is what is missing in the zero points."""
    zeros = ints.zeros.astype(np.int32).swapaxes(1, 2) - int(case.option)
    return {
        "qweight": pack(in_columns(ints.codes, ints.order), case.bits).swapaxes(1, 2),
        "qzeros": pack(_filled(zeros & (2**case.bits - 1), 32 // case.bits), case.bits),
        "scales": ints.scales.swapaxes(1, 2),
        "g_idx": groups_of_columns(ints),
    }


def _of_gptq(case: Case) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": case.bits,
        "group_size": case.group_size or -1,
        "sym": case.symmetric,
        "desc_act": False,
        "checkpoint_format": "gptq" if case.option else "gptq_v2",
        "damp_percent": 0.01,
        "meta": {"quantizer": ["gptqmodel:1.0"]},
        "dynamic": {r"-:.*mlp\.gate$": {}},
    }


def awq(ints: Ints, case: Case) -> Tensors:
    """Eight columns of a transposed matrix in a word, in this order from the lowest nibble on."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def words(array: np.ndarray) -> np.ndarray:
        columns = _filled(array.swapaxes(1, 2), 8)
        by_word = columns.reshape(*columns.shape[:-1], -1, 8)[..., order]
        return pack(by_word.reshape(columns.shape), 4)

    scales = ints.scales.swapaxes(1, 2)
    return {"qweight": words(ints.codes), "qzeros": words(ints.zeros), "scales": scales}


def _of_awq(case: Case) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": case.group_size or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["gate"],
    }


def auto_round(ints: Ints, case: Case) -> Tensors:
    """The option is the packing."""
    if case.option == "auto_round:auto_awq":
        return awq(ints, case)
    offset = case.option == "auto_round:auto_gptq"
    tensors = gptq(ints, case._replace(option=offset))
    del tensors["g_idx"]
    return tensors


def _of_auto_round(case: Case) -> dict[str, Any]:
    return {
        "quant_method": "auto-round",
        "packing_format": case.option,
        "bits": case.bits,
        "group_size": case.group_size or -1,
        "sym": case.symmetric,
        "data_type": "int",
        "iters": 200,
        "extra_config": {f"{BLOCK}.gate": {"bits": 16, "data_type": "fp"}},
    }


def mlx(ints: Ints, case: Case) -> Tensors:
    """Biases that stand for zero points, whose scales have few bits, so that products are exact; or any."""
    biases = -ints.zeros.astype(np.float32) * ints.scales.astype(np.float32)
    return {
        "weight": pack(ints.codes, case.bits).view(np.uint32),
        "scales": ints.scales,
        "biases": biases.astype(case.scale_dtype) if ints.biases is None else ints.biases,
    }


def _of_mlx(case: Case) -> dict[str, Any]:
    return {"group_size": case.group_size, "bits": case.bits, "mode": "affine"}


CONFIGURATIONS: dict[Callable[..., Tensors], Callable[[Case], dict[str, Any]]] = {
    pack_quantized: _compressed("pack-quantized"),
    int_quantized: _compressed("int-quantized"),
    gptq: _of_gptq,
    awq: _of_awq,
    auto_round: _of_auto_round,
    mlx: _of_mlx,
}

CASES: dict[str, Case] = {
    "ct 4 bits": Case(pack_quantized),
    "ct 4 bits, 64": Case(pack_quantized, group_size=64, scale_dtype=np.float16),
    "ct 4 bits, channel": Case(pack_quantized, group_size=None, scale_dtype=np.float32),
    "ct 4 bits, zeros": Case(pack_quantized, symmetric=False),
    "ct 4 bits, channel, zeros": Case(pack_quantized, group_size=None, symmetric=False),
    "ct 4 bits, zeros not packed": Case(pack_quantized, symmetric=False, option="not packed"),
    "ct 8 bits": Case(pack_quantized, bits=8),
    "ct 8 bits, channel": Case(pack_quantized, bits=8, group_size=None),
    "ct 8 bits, zeros": Case(pack_quantized, bits=8, group_size=64, symmetric=False),
    "ct 8 bits, zeros not packed": Case(pack_quantized, bits=8, symmetric=False, option="not packed"),
    "ct int": Case(int_quantized, bits=8, group_size=None),
    "ct int, flat": Case(int_quantized, bits=8, group_size=None, scale_dtype=np.float32, option="flat"),
    "ct int, zeros of zero": Case(int_quantized, bits=8, group_size=None, option="zeros"),
    "ct int, zeros": Case(int_quantized, bits=8, group_size=None, symmetric=False),
    "ct int, 4 bits": Case(int_quantized, group_size=64),
    "gptq": Case(gptq, scale_dtype=np.float16, option=True),
    "gptq, zeros": Case(gptq, scale_dtype=np.float16, symmetric=False, option=True),
    "gptq, channel": Case(gptq, group_size=None, scale_dtype=np.float16, option=True),
    "gptq v2, zeros": Case(gptq, group_size=64, scale_dtype=np.float16, symmetric=False, option=False),
    "gptq 8 bits": Case(gptq, bits=8, scale_dtype=np.float16, option=True),
    "gptq v2, 8 bits, zeros": Case(gptq, bits=8, scale_dtype=np.float16, symmetric=False, option=False),
    "awq": Case(awq, scale_dtype=np.float16, symmetric=False),
    "awq, 64": Case(awq, group_size=64, symmetric=False),
    "awq, channel": Case(awq, group_size=None, scale_dtype=np.float16, symmetric=False),
    **{
        f"auto-round {packing}": Case(
            auto_round, scale_dtype=np.float16, symmetric=packing == "auto_round", option=packing
        )
        for packing in ("auto_round:auto_gptq", "auto_round", "auto_round:gptqmodel", "auto_round:auto_awq")
    },
    "ct 4 bits, ordered": Case(pack_quantized, ordered=True),
    "ct 8 bits, zeros, ordered": Case(pack_quantized, bits=8, group_size=64, symmetric=False, ordered=True),
    "ct int, ordered": Case(int_quantized, bits=8, ordered=True),
    "gptq, ordered": Case(gptq, scale_dtype=np.float16, option=True, ordered=True),
    "gptq v2, 8 bits, zeros, ordered": Case(
        gptq, bits=8, scale_dtype=np.float16, symmetric=False, option=False, ordered=True
    ),
    "mlx, biases": Case(mlx, group_size=64, option="biases"),
    "mlx 8 bits, biases": Case(mlx, bits=8, scale_dtype=np.float32, option="biases"),
    "mlx": Case(mlx, group_size=64),
    "mlx, zeros": Case(mlx, symmetric=False, scale_dtype=np.float16),
    "mlx 8 bits": Case(mlx, bits=8, group_size=64),
    "mlx 8 bits, zeros": Case(mlx, bits=8, symmetric=False),
}


def random_ints(
    rng: np.random.Generator, case: Case, shape: tuple[int, int, int], order: np.ndarray | None = None
) -> Ints:
    """Codes over the whole range, zero points too unless they are in the middle."""
    count, rows, columns = shape
    if order is None:
        order = np.tile(np.arange(columns), (count, 1))
        if case.ordered:  # those of a group ascend, as they stand where groups tell them
            order = np.sort(
                rng.permuted(order, axis=1).reshape(count, -1, case.group_size or columns), axis=2
            )
            order = order.reshape(count, columns)
    scales = (count, rows, columns // (case.group_size or columns))
    few_bits = np.exp2(rng.integers(-4, 4, scales)) * rng.choice([-1, 1], scales)
    top, middle = 2**case.bits, 2 ** (case.bits - 1)
    zeros = np.full(scales, middle) if case.symmetric else rng.integers(top, size=scales)
    has_biases = case.option == "biases"
    is_exact = case.store is mlx and not has_biases
    factors = (few_bits if is_exact else rng.uniform(0.5, 2, scales) / middle).astype(case.scale_dtype)
    biases = (-factors.astype(np.float64) * rng.uniform(0, top, scales)).astype(case.scale_dtype)
    return Ints(
        rng.integers(top, size=shape).astype(np.uint8),
        zeros.astype(np.uint8),
        factors,
        order,
        biases if has_biases else None,
    )


def written(case: Case, sizes: tuple[int, int, int] = (4, 128, 192)) -> tuple[Written, dict[str, Ints]]:
    """A layer of Qwen3-MoE, and its weights; sizes: experts, hidden, intermediate."""
    count, hidden, intermediate = sizes
    rng = np.random.default_rng(case.bits)
    shapes = {"gate": (intermediate, hidden), "up": (intermediate, hidden), "down": (hidden, intermediate)}
    weights = {part: random_ints(rng, case, (count, *shapes[part])) for part in ("gate", "down")}
    weights["up"] = random_ints(rng, case, (count, *shapes["up"]), weights["gate"].order)
    weights = {part: weights[part] for part in PARTS}
    router = rng.standard_normal((count, hidden)).astype(ml_dtypes.bfloat16)
    tensors = {f"{BLOCK}.gate.weight": router}
    for part, ints in weights.items():
        for suffix, array in case.store(ints, case).items():
            if case.store is mlx:
                tensors[f"{BLOCK}.switch_mlp.{part}_proj.{suffix}"] = np.ascontiguousarray(array)
                continue
            for expert in range(count):
                name = f"{BLOCK}.experts.{expert}.{part}_proj.{suffix}"
                tensors[name] = np.ascontiguousarray(array[expert])
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "moe_intermediate_size": intermediate,
        "num_experts": count,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "quantization_config": case.quantization(),
    }
    return Written(config, tensors, 0, {}), weights
