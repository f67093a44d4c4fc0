"""The keys and values of a sequence in all layers of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mxfp4moe._arguments import check_int
from mxfp4moe.self_attention import KVCache


class ModelCache:
    """The keys and values of the tokens of one sequence, in all layers of a model.

    `CausalLM.new_cache` makes one; ``len(cache)`` is the number of its tokens. A call that
    fails leaves a cache as it was before.

    Parameters
    ----------
    layers : sequence of KVCache
        One for each layer.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> cache = mx.ModelCache([mx.KVCache(num_kv_heads=8, head_dim=64) for _ in range(24)])
    >>> branches = [cache.copy() for _ in range(4)]  # which share the memory of all tokens until now
    >>> len(cache), len(branches[0].layers)
    (0, 24)
    """

    __slots__ = ("_layers",)

    def __init__(self, layers: Sequence[KVCache]) -> None:
        self._layers = tuple(layers)

    def __len__(self) -> int:
        return len(self._layers[0])

    def __bool__(self) -> bool:
        return True  # an empty cache is one all the same

    def __repr__(self) -> str:
        return f"ModelCache({len(self)} tokens, {len(self._layers)} layers)"

    @property
    def layers(self) -> tuple[KVCache, ...]:
        """The cache of each layer.

        Returns
        -------
        tuple of KVCache
        """
        return self._layers

    @property
    def nbytes(self) -> int:
        """The bytes of keys and values, those that are shared with copies included.

        Returns
        -------
        int
        """
        return sum(layer.nbytes for layer in self._layers)

    def copy(self) -> ModelCache:
        """Return a cache with the same tokens, which shares their memory and grows on its own.

        Returns
        -------
        ModelCache

        Examples
        --------
        >>> branch = cache.copy()  # doctest: +SKIP
        """
        return ModelCache([layer.copy() for layer in self._layers])

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> ModelCache:
        return self.copy()

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`.

        Parameters
        ----------
        length : int
            At most ``len(cache)``.

        Raises
        ------
        TypeError, ValueError
            If `length` is no such number; the cache stays as it is.

        Examples
        --------
        >>> cache.truncate(0)  # doctest: +SKIP
        """
        length = check_int("length", length, 0, len(self))
        for layer in self._layers:
            layer.truncate(length)


@contextmanager
def restored_on_error(caches: Sequence[ModelCache]) -> Iterator[None]:
    """Within it, whatever is raised leaves the caches as they were, also if some layers have grown."""
    lengths = [len(cache) for cache in caches]
    try:
        yield
    except BaseException:
        for cache, length in zip(caches, lengths, strict=True):
            for layer in cache.layers:
                if len(layer) > length:
                    layer.truncate(length)
        raise
