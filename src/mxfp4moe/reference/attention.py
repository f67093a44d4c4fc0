"""Attention over the keys and values of a sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


def attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    scale: float,
    sliding_window: int | None = None,
    sinks: np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """Grouped-query attention of the last positions of a sequence, evaluated in float64 and rounded once.

    Query head h reads head ``h // (H / num_kv_heads)`` of keys and values. The query of a position sees its
    own and all earlier positions, or the last `sliding_window` of these. The weights are the softmax of
    ``scale * (query . key)`` over what it sees and over the sink of its head, which has no value.

    Parameters
    ----------
    queries : ndarray of shape (T, H, D)
        Of the last T positions.
    keys, values : ndarray of shape (N, num_kv_heads, D)
        Of all positions, as the cache holds them.
    scale : float
    sliding_window : int, optional
    sinks : ndarray of shape (H,), optional
    dtype : dtype, default float32

    Returns
    -------
    ndarray of shape (T, H, D)

    References
    ----------
    Attention Is All You Need, arXiv:1706.03762, section 3.2. GQA, arXiv:2305.13245. Efficient Streaming
    Language Models with Attention Sinks, arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np
    >>> from mxfp4moe import reference
    >>> values = np.array([[[2.0]], [[4.0]]])
    >>> reference.attention(np.zeros((2, 1, 1)), np.ones((2, 1, 1)), values, scale=1.0).ravel().tolist()
    [2.0, 3.0]
    """
    num_queries, num_heads, dim = queries.shape
    group = num_heads // keys.shape[1]
    all_keys, all_values = (np.repeat(each.astype(np.float64), group, axis=1) for each in (keys, values))
    result = np.zeros((num_queries, num_heads, dim))
    with np.errstate(all="ignore"):
        for t in range(num_queries):
            end = len(keys) - num_queries + t + 1
            seen = slice(0 if sliding_window is None else max(0, end - sliding_window), end)
            products = np.einsum("hd,nhd->nh", queries[t].astype(np.float64), all_keys[seen])
            scores = np.float64(np.float32(scale)) * products
            if sinks is not None:
                scores = np.concatenate([scores, sinks.astype(np.float64)[None]])
            largest = scores.max(axis=0)
            weights = np.exp(scores - np.where(largest == -np.inf, 0, largest))
            sums = np.einsum("nh,nhd->hd", weights[: end - seen.start], all_values[seen])
            result[t] = sums / weights.sum(axis=0)[:, None]
        return np.asarray(result.astype(dtype))
