"""Rotary embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def rotary_frequencies(base: float, rotary_dim: int, yarn: Any = None) -> tuple[np.ndarray, float]:
    """Radians for each position of each pair, and what sines and cosines are multiplied by.

    Parameters
    ----------
    base : float
    rotary_dim : int
    yarn : YarnScaling, optional

    Returns
    -------
    frequencies : float64 ndarray of shape (rotary_dim / 2,)
    attention_factor : float

    References
    ----------
    RoFormer, arXiv:2104.09864. YaRN, arXiv:2309.00071, sections 3.2 and 3.4.

    Examples
    --------
    >>> from mxfp4moe import reference
    >>> frequencies, factor = reference.rotary_frequencies(100.0, 4)
    >>> frequencies.tolist(), factor
    ([1.0, 0.1], 1.0)
    """
    pairs = np.arange(rotary_dim // 2)
    frequencies = base ** (-2.0 * pairs / rotary_dim)
    if yarn is None:
        return frequencies, 1.0

    def pair_that_turns(times: float) -> float:
        length = yarn.original_max_position_embeddings
        return rotary_dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    share = np.clip((pairs - low) / (high - low), 0, 1)
    factor = yarn.attention_factor
    if factor is None:
        factor = 0.1 * math.log(yarn.factor) + 1
    return frequencies * (1 - share) + frequencies / yarn.factor * share, factor


def rotary_embedding(
    x: np.ndarray,
    positions: np.ndarray,
    frequencies: np.ndarray,
    *,
    attention_factor: float = 1.0,
    interleaved: bool = False,
) -> np.ndarray:
    """Turn pairs (a, b) of each head to ``(a * cos - b * sin, b * cos + a * sin)``, in float32.

    The angle is the position times the frequency of the pair. Sine and cosine are computed in float64, times
    `attention_factor`, and rounded once. Numbers after the pairs are left as they are.

    Parameters
    ----------
    x : ndarray of shape (..., T, heads, head_dim)
    positions : integer ndarray that broadcasts to (..., T)
    frequencies : float64 ndarray of shape (pairs,)
    attention_factor : float, default 1
    interleaved : bool, default False
        Whether pair i is (2 i, 2 i + 1), not (i, i + pairs).

    Returns
    -------
    float32 ndarray of the shape of x

    References
    ----------
    RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> x = np.array([[[1.0, 0.0, 5.0]]])
    >>> reference.rotary_embedding(x, np.array([0]), np.array([1.0])).tolist()
    [[[1.0, 0.0, 5.0]]]
    """
    pairs = len(frequencies)
    angles = positions[..., None, None] * frequencies
    cos, sin = ((f(angles) * attention_factor).astype(np.float32) for f in (np.cos, np.sin))
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    result = x.astype(np.float32)
    a, b = result[..., first].copy(), result[..., second].copy()
    result[..., first] = a * cos - b * sin
    result[..., second] = b * cos + a * sin
    return result
