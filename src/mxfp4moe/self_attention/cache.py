"""Keys and values of the positions of a sequence, in pages that caches share."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from mxfp4moe import _core
from mxfp4moe._arguments import as_array, cast, check_choice, check_int, check_positive_int, check_shape
from mxfp4moe._immutable import Immutable
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.formats import FLOAT_CODES

_PAGE = _core.PAGE_POSITIONS
_DTYPES: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
FLOAT_DTYPES = tuple(FLOAT_CODES)
_FLOAT32 = np.dtype(np.float32)
MAX_HEADS = 1 << 16
MAX_HEAD_DIM = 1 << 12
MAX_POSITIONS = 1 << 40
_MEMORY_BYTES = 2 << 20  # of pages that are made together: a huge page of the system
_Pages = tuple[_core.KVPage, ...]


class _State(NamedTuple):
    """What a cache holds; it never changes, so that copies of a cache and calls may keep it."""

    length: int
    pages: _Pages
    spare: _Pages  # to be filled next, unless another cache does so first


class KVCache(Immutable):
    """Keys and values of the positions of one sequence, for one layer.

    It grows by pages of 64 positions, without copying what it holds. A copy shares its pages; what either
    appends afterwards is its own. No call changes a number that has been appended, so that several threads
    may read, copy and append at once.

    Parameters
    ----------
    num_kv_heads : int
        Heads of keys and values.
    head_dim : int
    dtype : {"bfloat16", "float32"}
        What keys and values are rounded to, once.
    sliding_window : int, optional
        The window of `attention` over this cache where the call gives none. All positions are kept, so that
        `truncate` may go back to any.

    Attributes
    ----------
    num_kv_heads, head_dim : int
    dtype : str
    sliding_window : int or None
    nbytes : int

    Raises
    ------
    TypeError, ValueError
        An argument is of another kind or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> cache = mx.KVCache(num_kv_heads=2, head_dim=16)
    >>> keys = values = np.ones((3, 2, 16), np.float32)
    >>> cache.append(keys, values)
    >>> other = cache.copy()
    >>> other.append(keys, values)
    >>> len(cache), len(other)
    (3, 6)
    """

    __slots__ = ("_slot", "dtype", "head_dim", "num_kv_heads", "sliding_window")

    num_kv_heads: Final[int]
    head_dim: Final[int]
    dtype: Final[Literal["bfloat16", "float32"]]
    sliding_window: Final[int | None]

    def __init__(
        self,
        num_kv_heads: SupportsIndex,
        head_dim: SupportsIndex,
        *,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        sliding_window: SupportsIndex | None = None,
    ) -> None:
        self.num_kv_heads = check_positive_int("num_kv_heads", num_kv_heads, MAX_HEADS)
        self.head_dim = check_positive_int("head_dim", head_dim, MAX_HEAD_DIM)
        self.dtype = check_choice("dtype", dtype, _DTYPES)
        self.sliding_window = check_window(sliding_window)
        self._slot = _core.Slot(_State(0, (), ()))

    def __len__(self) -> int:
        return self._slot.get().length

    def __bool__(self) -> bool:
        return True  # an empty cache is one all the same

    def __repr__(self) -> str:
        window = "" if self.sliding_window is None else f", sliding_window={self.sliding_window}"
        sizes = f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, dtype={self.dtype!r}"
        return f"<KVCache of {len(self)} positions: {sizes}{window}>"

    @property
    def nbytes(self) -> int:
        """Bytes of the pages, also of those that are shared, or not filled yet."""
        state = self._slot.get()
        return sum(page.nbytes for page in state.pages + state.spare)

    def append(self, keys: ArrayLike, values: ArrayLike) -> None:
        """Append the keys and values of the next positions, each rounded once to the dtype of the cache.

        The cache is as it was if this fails.

        Parameters
        ----------
        keys, values : float32 array of shape (T, num_kv_heads, head_dim)
            bfloat16 and float16 are taken, too. Keys are those after the rotary embedding.

        Raises
        ------
        TypeError
            An array is of another kind or dtype.
        ValueError
            An array is of another shape.
        MemoryError
            There is no memory for the new positions.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> cache = mx.KVCache(num_kv_heads=1, head_dim=8, dtype="float32")
        >>> cache.append(np.zeros((70, 1, 8), np.float32), np.ones((70, 1, 8), np.float32))
        >>> len(cache)
        70
        """
        new_keys = _as_positions("keys", keys, ("T", self.num_kv_heads, self.head_dim))
        new_values = _as_positions("values", values, new_keys.shape)
        threads = resolve_num_threads(None)
        if len(new_keys) == 0:
            return
        while True:  # until no other thread has changed the cache meanwhile
            state = self._slot.get()
            grown = self._grown(state, len(new_keys))
            first = state.length // _PAGE
            _core.fill_pages(list(grown.pages[first:]), state.length, new_keys, new_values, threads)
            if self._slot.exchange(state, grown):
                return

    def copy(self) -> KVCache:
        """Copy the cache, in no time: both share the memory of what it holds.

        Returns
        -------
        KVCache

        Examples
        --------
        >>> import mxfp4moe as mx
        >>> len(mx.KVCache(2, 16).copy())
        0
        """
        other = KVCache(
            self.num_kv_heads, self.head_dim, dtype=self.dtype, sliding_window=self.sliding_window
        )
        other._slot.exchange(other._slot.get(), self._slot.get())
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> KVCache:
        return self.copy()

    def __reduce__(self) -> Any:
        raise TypeError("a KVCache cannot be pickled")

    def truncate(self, length: SupportsIndex) -> None:
        """Forget all positions from `length` on.

        Parameters
        ----------
        length : int
            At most ``len(cache)``.

        Raises
        ------
        TypeError
            `length` is no integer.
        ValueError
            `length` is negative or larger than ``len(cache)``.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> cache = mx.KVCache(num_kv_heads=1, head_dim=4)
        >>> cache.append(np.ones((5, 1, 4), np.float32), np.ones((5, 1, 4), np.float32))
        >>> cache.truncate(2)
        >>> len(cache)
        2
        """
        while True:
            state = self._slot.get()
            kept = check_int("length", length, 0, state.length)
            if self._slot.exchange(state, _State(kept, state.pages[: -(-kept // _PAGE)], state.spare)):
                return

    def _grown(self, state: _State, count: int) -> _State:
        """The state with `count` more positions, which are to be filled.

        `state` and all that share its pages stay as they are.
        """
        end = state.length + count
        check_int("the number of positions", end, 0, MAX_POSITIONS)
        pages, spare = list(state.pages), list(state.spare)
        first, inside = divmod(state.length, _PAGE)
        if inside and not pages[first].claim(inside, min(_PAGE, end - first * _PAGE)):
            # Another cache has filled the rest of the page.
            filled = pages.pop()
            pages.append(self._new_page(spare, len(pages), end))
            pages[first].copy_from(filled)
        while len(pages) * _PAGE < end:
            pages.append(self._new_page(spare, len(pages), end))
        return _State(end, tuple(pages), tuple(spare))

    def _new_page(self, spare: list[_core.KVPage], index: int, end: int) -> _core.KVPage:
        """A page for this cache alone, to be page `index` of it and filled up to position `end`."""
        filled = min(_PAGE, end - index * _PAGE)
        while True:
            if not spare:
                sizes = self.num_kv_heads, self.head_dim, _core.DTYPES[self.dtype]
                # The memory of a cache grows with it, so that small ones take little.
                limit = max(1, _MEMORY_BYTES // _core.page_bytes(*sizes))
                spare += _core.new_pages(*sizes, max(-(-end // _PAGE) - index, min(index, limit)))
            page = spare.pop(0)
            if page.claim(0, filled):
                return page


class Room(NamedTuple):
    """Positions of a cache that are to be filled, before the cache has them."""

    cache: KVCache
    before: _State
    after: _State

    @property
    def begin(self) -> int:
        """The first of these positions."""
        return self.before.length

    @property
    def pages(self) -> _Pages:
        """The pages of the cache with these positions."""
        return self.after.pages

    def commit(self) -> None:
        """Give the positions, which have been filled, to the cache."""
        if not self.cache._slot.exchange(self.before, self.after):
            raise RuntimeError(
                "cache: expected to be left alone during a call, was changed by another thread"
            )


def reserve(cache: KVCache, count: int) -> Room:
    """Room for `count` more positions; the cache stays as it is until `commit`."""
    state = cache._slot.get()
    return Room(cache, state, cache._grown(state, count))


def snapshot(cache: KVCache) -> tuple[_Pages, int]:
    """The pages and the number of positions of a cache, which stay as they are."""
    state = cache._slot.get()
    return state.pages, state.length


def check_window(value: Any) -> int | None:
    """The argument `sliding_window`: None, or how many positions a query sees, its own the last of them."""
    return None if value is None else check_positive_int("sliding_window", value, MAX_POSITIONS)


def as_float32(name: str, value: Any) -> np.ndarray:
    """`value` as a float32 array, C-contiguous, exactly; copied only if needed."""
    array = as_array(name, value, FLOAT_DTYPES)
    if array.dtype == _FLOAT32 and array.flags.c_contiguous:  # on the path of every decode step
        return array
    return np.ascontiguousarray(cast(array, np.float32))


def _as_positions(name: str, value: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    array = as_float32(name, value)
    check_shape(name, array, shape)
    return array
