"""How a layer chooses experts: a routing function and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe.layer_values import text_of
from mxfp4moe.routing import ROUTING_FUNCTIONS

RoutingFunction = Callable[..., tuple[NDArray[np.float32], NDArray[np.int32]]]


class Chooser(NamedTuple):
    """How a layer makes experts and weights of logits."""

    routing: str | RoutingFunction
    top_k: int
    arguments: dict[str, Any]

    def __call__(
        self, router_logits: NDArray[np.float32], input_ids: ArrayLike | None, num_threads: int | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        rule = self.routing
        if not isinstance(rule, str):
            return rule(router_logits, self.top_k, **self.arguments)
        second = input_ids if rule == "hash_topk" else self.top_k
        function: RoutingFunction = ROUTING_FUNCTIONS[rule]
        return function(router_logits, second, num_threads=num_threads, **self.arguments)

    @property
    def text(self) -> str:
        """The function and its arguments, for a person to read."""
        rule = self.routing
        name = rule if isinstance(rule, str) else getattr(rule, "__name__", "function")
        arguments = (f"{key}={text_of(value)}" for key, value in self.arguments.items())
        return f"{name}({', '.join(arguments)})"
