"""Which experts the next layer will probably choose, asked for while a layer computes.

What a layer adds to the hidden state of a token is small beside it. So the router of the next layer, given
what this layer reads, mostly chooses what it will choose (arXiv:2312.17238, section 3.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.experts.cache import ExpertCache, prefetch_likely
from mxfp4moe.layer_routing import LayerRouter

_MAX_TOKENS = 8  # more tokens choose so many experts that reading ahead does not pay


class NextLayer:
    """The router and the experts of the layer that is called after another one.

    Parameters
    ----------
    router : LayerRouter
    cache : ExpertCache
    """

    __slots__ = ("_cache", "_router")

    def __init__(self, router: LayerRouter, cache: ExpertCache) -> None:
        self._router, self._cache = router, cache

    def expect(self, rows: NDArray[Any]) -> None:
        """Begin to read the experts that tokens with these hidden states will probably be routed to."""
        if 0 < len(rows) <= _MAX_TOKENS:
            read = rows.copy()
            prefetch_likely(self._cache, lambda: self._choose(read))

    def _choose(self, read: NDArray[Any]) -> NDArray[np.int32] | None:
        try:
            return self._router.likely(read)
        except (ValueError, MemoryError):  # a token that cannot be routed is for the layer itself to refuse
            return None
