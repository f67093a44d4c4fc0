"""Weights of experts that are not packed yet, as they stand in the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe.formats import ExpertsFormat


@dataclass(frozen=True)
class ExpertWeights:
    """The matrices of the experts of one layer, as they stand in the files.

    Attributes
    ----------
    format : str or (str, str)
        The format of `mxfp4moe.pack_experts` that they are packed in, or a pair of those of w13 and w2.
    source : str
        How the checkpoint stores them, in words.
    sizes : (int, int)
        Hidden size and intermediate size.
    arrays : dict
        The arguments of `mxfp4moe.pack_experts` by name, unless there is `decode`; views of the mapped files.
    decode : callable or None
        It makes of `arrays` what `pack_experts` takes, for sources that store it otherwise. It copies. Where
        it treats experts differently, it has a method `select` for some of them, which returns another one.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> arrays = {"w13": np.ones((4, 64, 96), np.float32), "w2": np.ones((4, 96, 32), np.float32)}
    >>> weights = mx.checkpoint.ExpertWeights("bf16", "float32", (96, 32), arrays)
    >>> weights.num_experts, weights.hidden_size
    (4, 96)
    >>> sorted(weights.arguments())
    ['format', 'w13', 'w2']
    """

    format: ExpertsFormat
    source: str
    sizes: tuple[int, int]
    arrays: dict[str, Any]
    decode: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return len(self.arrays["w2"])

    @property
    def hidden_size(self) -> int:
        """Length of what an expert reads and returns."""
        return self.sizes[0]

    @property
    def intermediate_size(self) -> int:
        """Rows of up, and of gate if there is one."""
        return self.sizes[1]

    @property
    def gated(self) -> bool:
        """Whether they have gate and up, or up alone."""
        return bool(self.arrays.get("gated", True))

    @property
    def nbytes(self) -> int:
        """Size in the checkpoint."""
        return sum(array.nbytes for array in _arrays(list(self.arrays.values())))

    def _select(self, places: NDArray[np.int32]) -> ExpertWeights:
        """The experts at these ascending places: of arrays of all of them nothing else is read."""
        count = self.num_experts
        arrays = {name: _of_experts(value, places, count) for name, value in self.arrays.items()}
        select = getattr(self.decode, "select", None)
        return replace(self, arrays=arrays, decode=self.decode if select is None else select(places))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `mxfp4moe.pack_experts` that pack them.

        Returns
        -------
        dict
            Arrays and options by the names of the parameters.
        """
        arrays = self.arrays if self.decode is None else self.decode(self.arrays)
        return {**arrays, "format": self.format}


def _of_experts(value: Any, places: NDArray[np.int32], count: int) -> Any:
    """Some experts of an argument: an array with an axis of `count`, a list of so many, or a few of these."""
    if isinstance(value, np.ndarray) and value.ndim and len(value) == count:
        first, last = int(places[0]), int(places[-1])
        return value[first : last + 1] if last - first + 1 == len(places) else value[places]
    if type(value) is list and len(value) == count and not any(type(item) is list for item in value):
        return [value[place] for place in places]
    if type(value) in (list, tuple) and all(type(item) in (list, np.ndarray) for item in value):
        return type(value)(_of_experts(item, places, count) for item in value)
    return value


def _arrays(value: object) -> Iterator[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)
