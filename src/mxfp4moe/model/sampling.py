"""Choosing the next token: the same bits from the same logits, whatever CPU, batch or number of threads.

NumPy's own exp and pairwise sums may differ from one CPU to the next. What is used here are additions,
multiplications and comparisons of float64, each rounded exactly, and running sums, whose order is fixed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import check_int, check_real, describe, type_error, value_error

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_TERMS = 14  # of the series of exp: the next one is below 2**-60 for arguments up to ln(2) / 2
_LEAST = -64 * 0.6931471805599453
"""Tokens that are less likely than 2**-64 of the likeliest one are never drawn."""
_MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, with the meaning of the arguments of `CausalLM.generate`."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        temperature = check_real("temperature", self.temperature)
        if not 0 <= temperature <= 1e6:
            raise value_error("temperature", "a number in [0, 1e6]", repr(temperature))
        top_p, min_p = check_real("top_p", self.top_p), check_real("min_p", self.min_p)
        if not 0 < top_p <= 1:
            raise value_error("top_p", "a number above 0 and at most 1", repr(top_p))
        if not 0 <= min_p <= 1:
            raise value_error("min_p", "a number in [0, 1]", repr(min_p))
        if self.top_k is not None:
            check_int("top_k", self.top_k, 1)

    def choose(self, logits: NDArray[np.float32], seed: int, position: int) -> int:
        """The id of the token at `position` of a sequence; equal logits go to the lower id.

        Parameters
        ----------
        logits : float32 ndarray of shape (vocab_size,)
        seed, position : int
            The key and the counter of the random number.
        """
        best = int(np.argmax(logits))
        if np.isnan(logits[best]) or logits[best] == -np.inf:
            raise value_error("logits", "numbers", f"{logits[best]} at position {position}")
        if self.temperature == 0 or logits[best] == np.inf:
            return best
        # Differences of float32 numbers are exact enough in float64 that equal ones stay equal.
        with np.errstate(over="ignore"):  # of a tiny temperature
            values = (logits.astype(np.float64) - float(logits[best])) / self.temperature
        ids = self._likely(values)
        weights = exp(values[ids])  # of the likeliest one: 1
        sums = np.add.accumulate(weights[: np.count_nonzero(weights >= self.min_p)])
        if self.top_p < 1:
            sums = sums[: np.searchsorted(sums, self.top_p * sums[-1]) + 1]
        chosen = np.searchsorted(sums, uniform(seed, position) * sums[-1], side="right")
        return int(ids[min(int(chosen), len(sums) - 1)])

    def _likely(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The ids that may be drawn, the likeliest first, equal ones by their ids."""
        least = _LEAST
        if self.top_k is not None and self.top_k < len(values):
            least = max(least, float(np.partition(values, -self.top_k)[-self.top_k]))
        ids = np.flatnonzero(values >= least)
        return ids[np.argsort(-values[ids], kind="stable")][: self.top_k]


def check_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """The seed of each of `count` sequences: one for all, or a list."""
    if not isinstance(seed, list | tuple):
        return [check_int("seed", seed, 0, _MAX_SEED)] * count
    if len(seed) != count:
        raise value_error("seed", f"an integer or {count} of them, one for each sequence", str(len(seed)))
    return [check_int(f"seed[{i}]", each, 0, _MAX_SEED) for i, each in enumerate(seed)]


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a position: 53 bits of NumPy's Philox with these as key and counter."""
    bits = np.random.Philox(key=seed, counter=[position, 0, 0, 0]).random_raw()
    return float(int(bits) >> 11) * 2.0**-53


def exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponentials of numbers in [-708, 0], within two units in the last place, the same on every CPU."""
    powers = np.rint(values * _LOG2_E)
    rest = (values - powers * _LN2_HIGH) - powers * _LN2_LOW
    result = np.ones_like(rest)
    for n in range(_TERMS, 0, -1):
        result = 1 + result * rest / n
    return np.ldexp(result, powers.astype(np.int64))


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen, and how many, as `CausalLM.generate` takes it."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    stop: Collection[int] | None


class Batch(NamedTuple):
    """How the tokens of all sequences are chosen."""

    sampling: Sampling
    seeds: list[int]
    stop: Collection[int]
    num_threads: int


def check_stop(stop: Any) -> frozenset[int]:
    """The ids that end a text."""
    if isinstance(stop, str | bytes) or not isinstance(stop, Collection):
        raise type_error("stop", "a set of token ids", describe(stop))
    return frozenset(check_int("stop", token, 0) for token in stop)
