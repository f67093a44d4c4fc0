"""Rotary embeddings: the position of a query or key as angles between pairs of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import (
    as_integer_array,
    check_bool,
    check_int,
    check_positive_int,
    check_real,
    describe,
    to_int64,
    type_error,
    value_error,
)
from mxfp4moe._immutable import Immutable
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.self_attention.cache import MAX_HEAD_DIM, as_float32

_MAX_BASE = 1e30
_PI = "3.14159265358979323846264338327950288419716939937510"
_DIGITS = 40  # far more than a float64 number has


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: rotary embeddings stretched to more positions than a model was first trained with.

    Pairs that turn more often than `beta_fast` times within the original positions keep their frequencies,
    those that turn less often than `beta_slow` times have them divided by `factor`, and between is a ramp.

    Parameters
    ----------
    factor : float
        How many times more positions, at least 1.
    original_max_position_embeddings : int
    beta_fast, beta_slow : float, default 32 and 1
    truncate : bool, default True
        Whether the ends of the ramp are whole pairs. gpt-oss has False.
    attention_factor : float, optional
        Multiplies sines and cosines; ``0.1 * ln(factor) + 1`` if not given.

    Raises
    ------
    TypeError, ValueError
        A field is of another kind or out of range.

    References
    ----------
    YaRN: Efficient Context Window Extension of Large Language Models, arXiv:2309.00071.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.YarnScaling(32, 4096, truncate=False).beta_fast
    32.0
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("factor", _check_number("factor", self.factor, 1.0))
        original = self.original_max_position_embeddings
        keep(
            "original_max_position_embeddings",
            check_positive_int("original_max_position_embeddings", original, _core.MAX_ANGLE),
        )
        for name in ("beta_fast", "beta_slow"):
            keep(name, _check_number(name, getattr(self, name), 1e-30))
        if self.beta_fast < self.beta_slow:
            raise value_error("beta_fast", f"at least beta_slow, {self.beta_slow}", repr(self.beta_fast))
        keep("truncate", check_bool("truncate", self.truncate))
        if self.attention_factor is not None:
            keep("attention_factor", _check_number("attention_factor", self.attention_factor, 0.0))


class RotaryEmbedding(Immutable):
    """Turn pairs of the numbers of each head by angles that grow with the position.

    Pair i of ``rotary_dim / 2`` has the frequency ``base**(-2 * i / rotary_dim)``; its angle is the position
    times that. A pair (a, b) becomes ``(a * cos - b * sin, b * cos + a * sin)`` in float32, where sine and
    cosine are computed in float64 and rounded once. So each position has the same bits on every CPU, whatever
    is computed with it.

    Parameters
    ----------
    head_dim : int
    base : float
        Above 1: ``rope_theta`` of a model.
    rotary_dim : int, optional
        How many numbers of a head are turned, the first ones; an even number, `head_dim` if not given.
    interleaved : bool, default False
        Whether a pair is two neighbours, not a number of the first half and one of the second half.
    yarn : YarnScaling, optional
    max_position : int, optional
        Positions must be below it; below 2**24 in any case.

    Attributes
    ----------
    head_dim, rotary_dim, max_position : int
    base : float
    interleaved : bool
    yarn : YarnScaling or None
    frequencies : float64 ndarray of shape (rotary_dim / 2,)
        Radians for each position; read-only.
    attention_factor : float
        What sines and cosines are multiplied by; 1 without YaRN.

    Raises
    ------
    TypeError, ValueError
        An argument is of another kind or out of range.

    References
    ----------
    RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> rotary = mx.RotaryEmbedding(2, base=10000.0)
    >>> rotary(np.array([[[1, 0]], [[1, 0]]], np.float32), np.array([0, 1])).round(4)
    array([[[1.    , 0.    ]],
    <BLANKLINE>
           [[0.5403, 0.8415]]], dtype=float32)
    """

    __slots__ = (
        "attention_factor",
        "base",
        "frequencies",
        "head_dim",
        "interleaved",
        "max_position",
        "rotary_dim",
        "yarn",
    )

    head_dim: Final[int]
    rotary_dim: Final[int]
    base: Final[float]
    interleaved: Final[bool]
    yarn: Final[YarnScaling | None]
    max_position: Final[int]
    frequencies: Final[NDArray[np.float64]]
    attention_factor: Final[float]

    def __init__(
        self,
        head_dim: SupportsIndex,
        *,
        base: float,
        rotary_dim: SupportsIndex | None = None,
        interleaved: bool = False,
        yarn: YarnScaling | None = None,
        max_position: SupportsIndex | None = None,
    ) -> None:
        self.head_dim = check_positive_int("head_dim", head_dim, MAX_HEAD_DIM)
        turned = head_dim if rotary_dim is None else rotary_dim
        self.rotary_dim = check_int("rotary_dim", turned, 2, self.head_dim)
        if self.rotary_dim % 2:
            raise value_error("rotary_dim", "an even number", str(self.rotary_dim))
        self.base = check_real("base", base)
        if not 1 < self.base <= _MAX_BASE:
            raise value_error("base", f"a number above 1 and at most {_MAX_BASE:g}", repr(self.base))
        self.interleaved = check_bool("interleaved", interleaved)
        if yarn is not None and not isinstance(yarn, YarnScaling):
            raise type_error("yarn", "a YarnScaling or None", describe(yarn))
        self.yarn = yarn
        limit = _core.MAX_ANGLE
        self.max_position = (
            limit if max_position is None else check_positive_int("max_position", max_position, limit)
        )
        frequencies, self.attention_factor = _frequencies(self.base, self.rotary_dim, yarn)
        # A view of bytes, which nobody can make writeable again.
        self.frequencies = np.frombuffer(frequencies.tobytes(), np.float64)

    def __repr__(self) -> str:
        return (
            f"RotaryEmbedding({self.head_dim}, base={self.base}, rotary_dim={self.rotary_dim}, "
            f"interleaved={self.interleaved}, yarn={self.yarn}, max_position={self.max_position})"
        )

    def __call__(
        self, x: ArrayLike, positions: ArrayLike, *, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """Turn the heads of queries or keys.

        Parameters
        ----------
        x : float32 array of shape (..., T, heads, head_dim)
            bfloat16 and float16 are taken, too.
        positions : integer array of shape (T,), or one that broadcasts to (..., T)
            In [0, max_position).
        num_threads : int, optional
            For this call; see `mxfp4moe.num_threads`.

        Returns
        -------
        float32 ndarray of the shape of x

        Raises
        ------
        TypeError
            An argument is of another kind or dtype.
        ValueError
            An array is of another shape; a position is out of range.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> rotary = mx.RotaryEmbedding(64, base=10000.0, rotary_dim=32)
        >>> rotary(np.ones((5, 8, 64), np.float32), np.arange(5)).shape
        (5, 8, 64)
        """
        heads = as_float32("x", x)
        if heads.ndim < 3 or heads.shape[-1] != self.head_dim:
            raise value_error("x", f"shape (..., T, heads, {self.head_dim})", f"shape {heads.shape}")
        at = self._as_positions(positions, heads.shape[:-2])
        threads = resolve_num_threads(num_threads)
        result = np.empty(heads.shape, np.float32)
        if result.size:
            flat = (-1, *heads.shape[-2:])
            _core.rotary(
                heads.reshape(flat),
                at,
                self.frequencies,
                result.reshape(flat),
                threads,
                factor=self.attention_factor,
                interleaved=self.interleaved,
            )
        return result

    def _as_positions(self, value: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """The position of each token, in one axis."""
        positions = as_integer_array("positions", value)
        if positions.shape != shape:
            try:
                positions = np.broadcast_to(positions, shape)
            except ValueError:
                expected = f"a shape that broadcasts to {shape}"
                raise value_error("positions", expected, f"shape {positions.shape}") from None
        at = to_int64(positions).reshape(-1)
        if at.size and not 0 <= at.min() <= at.max() < self.max_position:
            bad = at[((at < 0) | (at >= self.max_position)).argmax()]
            raise value_error("positions", f"values in [0, {self.max_position - 1}]", str(bad))
        return at


def _check_number(name: str, value: Any, minimum: float) -> float:
    """`value` as a float of at least `minimum` and at most 1e30."""
    number = check_real(name, value)
    if not minimum <= number <= _MAX_BASE:
        raise value_error(name, f"a number in [{minimum:g}, {_MAX_BASE:g}]", repr(number))
    return number


def _frequencies(base: float, dim: int, yarn: YarnScaling | None) -> tuple[NDArray[np.float64], float]:
    """The frequency of each pair, and the factor of sines and cosines.

    They are computed with many digits and rounded once, so that they are the same numbers everywhere: those
    of a math library depend on its version and on the CPU.
    """
    # It is imported here, because at the top it would slow down the import of the package.
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = _DIGITS
        log_base = Decimal(base).ln()
        exact = [(log_base * (-2 * i) / dim).exp() for i in range(dim // 2)]
        if yarn is None:
            return np.array([float(each) for each in exact]), 1.0

        def pair_that_turns(times: float) -> Decimal:
            original = yarn.original_max_position_embeddings
            return dim * (original / (Decimal(times) * 2 * Decimal(_PI))).ln() / (2 * log_base)

        low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
        if yarn.truncate:
            low, high = low.to_integral_value("ROUND_FLOOR"), high.to_integral_value("ROUND_CEILING")
        low, high = max(low, Decimal(0)), min(high, Decimal(dim - 1))
        if low == high:
            high += Decimal("0.001")
        factor = Decimal(yarn.factor)
        frequencies = []
        for i, each in enumerate(exact):
            share = min(max((i - low) / (high - low), Decimal(0)), Decimal(1))
            frequencies.append(float(each * (1 - share) + each / factor * share))
        default = float(factor.ln() / 10 + 1)
        return np.array(frequencies), default if yarn.attention_factor is None else yarn.attention_factor
