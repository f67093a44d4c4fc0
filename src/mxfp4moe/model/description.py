"""What a decoder computes apart from its weights, as plain checked data that a packed file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mxfp4moe._arguments import (
    check_bool,
    check_choice,
    check_float32,
    check_int,
    check_positive_int,
    describe,
    type_error,
    value_error,
)
from mxfp4moe.model.decoder_type import MAX_HEADS, MAX_POSITIONS, MAX_VOCABULARY

QK_NORMS = ("none", "head", "whole")


@dataclass(frozen=True)
class RotaryDescription:
    """A rotary embedding: the arguments of `mxfp4moe.RotaryEmbedding`, and of `mxfp4moe.YarnScaling`."""

    head_dim: int
    base: float
    rotary_dim: int
    yarn: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_positive_int("rotary.head_dim", self.head_dim, MAX_HEADS)
        check_float32("rotary.base", self.base, 0.0)
        check_positive_int("rotary.rotary_dim", self.rotary_dim, self.head_dim)
        if not isinstance(self.yarn, dict | None):
            raise type_error("rotary.yarn", "a mapping or None", describe(self.yarn))


@dataclass(frozen=True)
class DecoderDescription:
    """The sizes and options of a decoder; every field is checked."""

    model_type: str
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    rotary: RotaryDescription
    norm_epsilon: float
    windows: tuple[int | None, ...]
    """For each layer how many positions a token sees, None for all."""
    max_positions: int
    qk_norm: str = "none"
    clip: float | None = None
    has_sinks: bool = False
    activation: str = "silu"
    """The activation of the dense MLP in layers without experts."""
    end_ids: tuple[int, ...] = ()
    """The tokens that end a text."""

    def __post_init__(self) -> None:
        if not isinstance(self.model_type, str):
            raise type_error("model_type", "a str", describe(self.model_type))
        for name, maximum in (
            ("hidden_size", None),
            ("vocab_size", MAX_VOCABULARY),
            ("num_heads", MAX_HEADS),
            ("num_kv_heads", self.num_heads),
            ("max_positions", MAX_POSITIONS),
        ):
            check_positive_int(name, getattr(self, name), maximum)
        if self.num_heads % self.num_kv_heads:
            expected = f"a divisor of num_heads = {self.num_heads}"
            raise value_error("num_kv_heads", expected, str(self.num_kv_heads))
        check_float32("norm_epsilon", self.norm_epsilon, 1e-30)
        for i, window in enumerate(self.windows):
            if window is not None:
                check_positive_int(f"windows[{i}]", window)
        if not self.windows:
            raise value_error("windows", "one for each layer", "none")
        check_choice("qk_norm", self.qk_norm, QK_NORMS)
        if self.clip is not None:
            check_float32("clip", self.clip, 0.0)
        check_bool("has_sinks", self.has_sinks)
        for i, token in enumerate(self.end_ids):
            check_int(f"end_ids[{i}]", token, 0, self.vocab_size - 1)

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.windows)

    @property
    def head_dim(self) -> int:
        """The numbers of a head."""
        return self.rotary.head_dim

    @property
    def projections(self) -> tuple[int, int, int]:
        """The widths of queries, keys and values of a token."""
        kv = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv, kv

    @property
    def scale(self) -> float:
        """What multiplies the products of queries and keys."""
        return 1 / math.sqrt(self.head_dim)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self) | {"windows": list(self.windows), "end_ids": list(self.end_ids)}

    @classmethod
    def from_json(cls, values: Any) -> DecoderDescription:
        """The inverse of `to_json`; a TypeError or ValueError that names the field which is wrong."""
        names = {each.name for each in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise type_error("decoder", f"an object with {', '.join(sorted(names))}", describe(values))
        rotary = values["rotary"]
        rotary_names = {each.name for each in fields(RotaryDescription)}
        if not isinstance(rotary, Mapping) or set(rotary) != rotary_names:
            raise type_error("rotary", f"an object with {', '.join(sorted(rotary_names))}", describe(rotary))
        for name in ("windows", "end_ids"):
            if not isinstance(values[name], list):
                raise type_error(name, "a list", describe(values[name]))
        tuples = {name: tuple(values[name]) for name in ("windows", "end_ids")}
        return cls(**{**values, **tuples, "rotary": RotaryDescription(**rotary)})
