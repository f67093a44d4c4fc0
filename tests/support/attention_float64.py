"""The attention of a decoder layer in float64, and how far the contract's roundings may take a result.

Each bound is elementwise: the magnitudes that are summed, times the number of roundings and their unit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from model_folders import ModelFolder

EPS32, EPS16 = 2.0**-24, 2.0**-8  # half an ulp, relative

Array = np.ndarray[Any, Any]


class Bounded(NamedTuple):
    """Numbers, and how far from each what is computed may be."""

    value: Array
    error: Array

    def rounded(self, unit: float, count: int = 1) -> Bounded:
        """After so many roundings of that unit, one after the other."""
        return Bounded(self.value, self.error + count * unit * (abs(self.value) + self.error))

    def times(self, matrix: Array, bias: Array | None) -> Bounded:
        """The products with a matrix, summed in any order."""
        magnitude = (abs(self.value) + self.error) @ abs(matrix).T
        value = self.value @ matrix.T
        error = self.error @ abs(matrix).T + (matrix.shape[1] + 2) * EPS32 * magnitude
        if bias is not None:
            value = value + bias
            error = error + EPS32 * abs(value)
        return Bounded(value, error)

    def reshape(self, *shape: int) -> Bounded:
        return Bounded(self.value.reshape(shape), self.error.reshape(shape))

    def norm(self, weight: Array, epsilon: float) -> Bounded:
        """The RMS norm of the last axis, in float32."""
        root = np.sqrt((self.value**2).mean(-1, keepdims=True) + epsilon)
        # The root changes by no more than the root mean square of the errors.
        root_error = np.sqrt((self.error**2).mean(-1, keepdims=True))
        assert (root_error < root / 2).all()
        error = (self.error * root + abs(self.value) * root_error) / (root * (root - root_error))
        return Bounded(self.value / root * weight, error * abs(weight)).rounded(EPS32, 4)

    def rotated(self, angles: Array, factor: float) -> Bounded:
        """Rotary embeddings of the first numbers of each head, as many as two for each angle."""
        half = angles.shape[-1]
        c, s = np.cos(angles)[:, None] * factor, np.sin(angles)[:, None] * factor
        value, error = self.value.copy(), self.error.copy()
        first, second = self.value[..., :half], self.value[..., half : 2 * half]
        d1, d2 = self.error[..., :half], self.error[..., half : 2 * half]
        # Sine and cosine of the angle as float64 has it, rounded; two products and a sum.
        unit = 8 * EPS32 * factor * (abs(first) + d1 + abs(second) + d2)
        value[..., :half], value[..., half : 2 * half] = first * c - second * s, second * c + first * s
        error[..., :half] = abs(c) * d1 + abs(s) * d2 + unit
        error[..., half : 2 * half] = abs(c) * d2 + abs(s) * d1 + unit
        return Bounded(value, error)


def attention_float64(folder: ModelFolder, layer: int, residual: Array) -> Bounded:
    """What the attention of a layer adds to the residual stream of a whole sequence."""
    config = folder.config

    def tensor(name: str) -> Array | None:
        found = folder.tensors.get(f"model.layers.{layer}.{name}")
        return None if found is None else found.astype(np.float64)

    def project(rows: Bounded, name: str) -> Bounded:
        matrix = tensor(f"self_attn.{name}_proj.weight")
        assert matrix is not None
        return rows.times(matrix, tensor(f"self_attn.{name}_proj.bias"))

    epsilon, num_heads = config["rms_norm_eps"], config["num_attention_heads"]
    num_kv = config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // num_heads
    weight = tensor("input_layernorm.weight")
    assert weight is not None
    exact = Bounded(residual.astype(np.float64), np.zeros(residual.shape))
    rows = exact.norm(weight, epsilon).rounded(EPS16)
    heads = {}
    for name, count in (("q", num_heads), ("k", num_kv), ("v", num_kv)):
        part, norm = project(rows, name), tensor(f"self_attn.{name}_norm.weight")
        if norm is not None and norm.size > size:
            part = part.norm(norm, epsilon)
        part = part.reshape(len(residual), count, size)
        if norm is not None and norm.size == size:
            part = part.norm(norm, epsilon)
        if (clip := config.get("clip_qkv")) is not None:
            part = Bounded(part.value.clip(-clip, clip), part.error)
        heads[name] = part
    angles, factor = _angles(config, size, len(residual))
    q, k = heads["q"].rotated(angles, factor), heads["k"].rotated(angles, factor)
    sinks = tensor("self_attn.sinks")
    window = _window(config, layer)
    mixed = _attend(q, k, heads["v"], sinks, window)
    flat = mixed.reshape(len(residual), num_heads * size).rounded(EPS16)
    return project(flat, "o")


def _attend(q: Bounded, k: Bounded, v: Bounded, sinks: Array | None, window: int | None) -> Bounded:
    (length, num_heads, size), scale = q.value.shape, q.value.shape[-1] ** -0.5
    group = num_heads // k.value.shape[1]
    value, error = np.empty(q.value.shape), np.empty(q.value.shape)
    for t, h in np.ndindex(length, num_heads):
        begin = 0 if window is None else max(0, t + 1 - window)
        keys = slice(begin, t + 1), h // group
        (qv, qe), (kv, ke) = (q.value[t, h], q.error[t, h]), (k.value[keys], k.error[keys])
        (vv, ve), count = (v.value[keys], v.error[keys]), t + 1 - begin
        scores = scale * (kv @ qv)
        magnitude = scale * ((abs(kv) + ke) @ (abs(qv) + qe))
        score_error = scale * (ke @ (abs(qv) + qe) + abs(kv) @ qe) + (size + 4) * EPS32 * magnitude
        largest = max(scores.max(), -np.inf if sinks is None else sinks[h])
        weights = np.exp(scores - largest)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[h] - largest))
        weights /= total
        # All exponents within an error: quotients of sums change by no more than twice that, as exponents.
        # Exponentials in float32 are off by 16 ulps, sums and rescalings of n weights by 3 n.
        ulps = 16 + 3 * count + 4 * abs(scores - largest).max()
        relative = math.expm1(2 * score_error.max()) + ulps * EPS32
        value[t, h] = weights @ vv
        error[t, h] = weights @ (relative * (abs(vv) + ve) + ve) + (count + 4) * EPS32 * (
            weights @ (abs(vv) + ve)
        )
    return Bounded(value, error)


def _window(config: dict[str, Any], layer: int) -> int | None:
    kinds = config.get("layer_types")
    if config.get("use_sliding_window") is False or (kinds and kinds[layer] == "full_attention"):
        return None
    return config.get("sliding_window")


def _angles(config: dict[str, Any], size: int, length: int) -> tuple[Array, float]:
    rope = config["rope_parameters"]
    size = int(size * rope.get("partial_rotary_factor", 1))
    base = rope["rope_theta"]
    frequencies, factor = base ** (-np.arange(0, size, 2) / size), 1.0
    if rope["rope_type"] == "yarn":
        stretch, known = rope["factor"], rope["original_max_position_embeddings"]
        factor = 0.1 * math.log(stretch) + 1
        ends = [
            size * math.log(known / (2 * math.pi * rope[name])) / (2 * math.log(base))
            for name in ("beta_fast", "beta_slow")
        ]
        if rope.get("truncate", True):
            ends = [math.floor(ends[0]), math.ceil(ends[1])]
        low, high = max(ends[0], 0), min(ends[1], size - 1)
        ramp = np.clip((np.arange(size // 2) - low) / max(high - low, 0.001), 0, 1)
        frequencies = frequencies * (1 - ramp) + frequencies / stretch * ramp
    return np.arange(length)[:, None] * frequencies, factor
