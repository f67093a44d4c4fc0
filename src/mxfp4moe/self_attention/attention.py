"""Attention of the last positions of sequences over their key/value caches."""

from __future__ import annotations

from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mxfp4moe import _core
from mxfp4moe._arguments import (
    check_dtype,
    check_float32,
    check_shape,
    describe,
    type_error,
    value_error,
)
from mxfp4moe.config import active_kernels, resolve_num_threads
from mxfp4moe.formats import FLOAT_CODES
from mxfp4moe.self_attention.cache import (
    FLOAT_DTYPES,
    MAX_HEADS,
    MAX_POSITIONS,
    KVCache,
    as_float32,
    check_window,
    snapshot,
)

_FLOAT32 = np.dtype(np.float32)


@overload
def attention(
    queries: list[Any] | tuple[Any, ...],
    cache: list[KVCache] | tuple[KVCache, ...],
    *,
    scale: float,
    sliding_window: SupportsIndex | None = None,
    sinks: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
) -> list[NDArray[Any]]: ...


@overload
def attention(
    queries: ArrayLike,
    cache: KVCache,
    *,
    scale: float,
    sliding_window: SupportsIndex | None = None,
    sinks: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]: ...


def attention(
    queries: Any,
    cache: Any,
    *,
    scale: float,
    sliding_window: SupportsIndex | None = None,
    sinks: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    num_threads: int | None = None,
) -> Any:
    """Attention of the last positions of a sequence over all that its cache holds.

    The query of a position sees the keys of its own and of all earlier positions, or as many of the last as
    the window has. Its weights are the softmax of ``scale * (query . key)`` over these, and over the sink of
    its head, which has no value. Heads are grouped: query head h reads head ``h // (H / num_kv_heads)`` of
    the cache.

    The sums run over the positions in an order that depends on the positions alone. So on one instruction
    set, the result of a position has the same bits however the sequence was cut into calls, whatever else is
    computed with it, and for any number of threads.

    Parameters
    ----------
    queries : float32 array of shape (T, H, head_dim), or a list of them
        Of the last T positions in the cache. bfloat16 and float16 are taken, too.
    cache : KVCache, or a list of as many
        Caches of a list differ in nothing but their positions; the sequences are computed together.
    scale : float
        Most models have ``1 / sqrt(head_dim)``.
    sliding_window : int, optional
        How many positions a query sees, its own the last of them. Not given: that of the cache.
    sinks : float array of shape (H,), optional
        For each query head a score without a value.
    dtype : dtype, optional
        Of the result: float32, bfloat16 or float16; float32 if not given.
    num_threads : int, optional
        For this call; see `mxfp4moe.num_threads`.

    Returns
    -------
    ndarray of shape (T, H, head_dim), or a list of them

    Raises
    ------
    TypeError
        An argument is of another kind or dtype.
    ValueError
        A wrong shape; more queries than positions; a number out of range; caches of different sizes.
    MemoryError
        There is no memory for the workspace.

    References
    ----------
    Attention Is All You Need, arXiv:1706.03762, section 3.2. GQA, arXiv:2305.13245: groups of heads.
    Efficient Streaming Language Models with Attention Sinks, arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> cache = mx.KVCache(num_kv_heads=1, head_dim=2, dtype="float32")
    >>> cache.append(np.zeros((2, 1, 2), np.float32), np.array([[[1, 2]], [[3, 6]]], np.float32))
    >>> mx.attention(np.ones((2, 1, 2), np.float32), cache, scale=1.0)
    array([[[1., 2.]],
    <BLANKLINE>
           [[2., 4.]]], dtype=float32)
    """
    is_list = isinstance(cache, (list, tuple))
    caches = list(cache) if is_list else [cache]
    names = [f"queries[{i}]" for i in range(len(caches))] if is_list else ["queries"]
    for i, each in enumerate(caches):
        if not isinstance(each, KVCache):
            raise type_error(f"cache[{i}]" if is_list else "cache", "a KVCache", describe(each))
    if is_list and not isinstance(queries, (list, tuple)):
        raise type_error("queries", f"a list of {len(caches)} arrays, as cache is a list", describe(queries))
    if is_list and len(queries) != len(caches):
        raise value_error("queries", f"as many arrays as caches, {len(caches)}", str(len(queries)))
    result_dtype = _FLOAT32 if dtype is None else check_dtype("dtype", dtype, FLOAT_DTYPES)
    number = check_float32("scale", scale)
    window = check_window(sliding_window)
    threads = resolve_num_threads(num_threads)
    if not caches:
        return []
    _check_same_sizes(caches)
    given = queries if is_list else [queries]
    arrays = [_as_queries(name, value, caches[0]) for name, value in zip(names, given, strict=True)]
    num_heads = arrays[0].shape[1]
    heads = _as_sinks(sinks, num_heads)
    results = [np.empty(array.shape, result_dtype) for array in arrays]
    sequences = []
    for name, array, each, result in zip(names, arrays, caches, results, strict=True):
        check_shape(name, array, ("T", num_heads, caches[0].head_dim))
        pages, length = snapshot(each)
        if len(array) > length:
            raise value_error(name, f"at most {length} positions, those of its cache", str(len(array)))
        if len(array):
            sequences.append((array, pages, length, result.view(np.uint8)))
    if sequences:
        window = caches[0].sliding_window if window is None else window
        _core.attention(
            sequences,
            active_kernels(),
            num_heads,
            heads,
            threads,
            scale=number,
            window=MAX_POSITIONS if window is None else window,
            out_dtype=FLOAT_CODES[result_dtype],
        )
    return results if is_list else results[0]


def _check_same_sizes(caches: list[KVCache]) -> None:
    def sizes(cache: KVCache) -> str:
        heads = f"{cache.num_kv_heads} heads of {cache.head_dim}"
        return f"{heads} of {cache.dtype}, sliding_window {cache.sliding_window}"

    for i, cache in enumerate(caches[1:], 1):
        if sizes(cache) != sizes(caches[0]):
            raise value_error(f"cache[{i}]", f"what cache[0] has, {sizes(caches[0])}", sizes(cache))


def _as_queries(name: str, value: Any, cache: KVCache) -> np.ndarray:
    array = as_float32(name, value)
    check_shape(name, array, ("T", "H", cache.head_dim))
    heads = array.shape[1]
    if heads == 0 or heads % cache.num_kv_heads or heads > MAX_HEADS:
        expected = f"a multiple of {cache.num_kv_heads} heads, those of the cache, up to {MAX_HEADS}"
        raise value_error(name, expected, f"shape {array.shape}")
    return array


def _as_sinks(value: Any, num_heads: int) -> np.ndarray | None:
    if value is None:
        return None
    sinks = as_float32("sinks", value)
    check_shape("sinks", sinks, (num_heads,))
    return sinks
