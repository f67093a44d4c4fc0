"""How fast tokens came, and what share of the time the bytes of a step need at the least."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, cycle, islice
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mxfp4moe import config
from mxfp4moe.cli._roofline import read_bandwidth

if TYPE_CHECKING:
    from mxfp4moe.model.causal_lm import CausalLM

_SAMPLES = 3  # of the bandwidth
_LEAST_BYTES = 256 << 20  # that are read for a sample, more than caches hold


@dataclass
class Timing:
    """When each token came."""

    num_prompt_tokens: int
    begin: float = field(default_factory=perf_counter)
    times: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A token has come."""
        self.times.append(perf_counter())

    def summary(self, lm: CausalLM) -> dict[str, Any]:
        """The rates, and the share of the roofline of a decode step, as far as there was one."""
        if not self.times:
            return {"prompt_tokens": self.num_prompt_tokens, "prompt_tokens_per_second": None} | _NO_STEPS
        first = self.times[0] - self.begin
        result: dict[str, Any] = {
            "prompt_tokens": self.num_prompt_tokens,
            "prompt_tokens_per_second": self.num_prompt_tokens / first,
        }
        steps = np.diff(self.times)
        if not len(steps):
            return result | _NO_STEPS
        middle = self.num_prompt_tokens + len(steps) // 2
        nbytes = lm._decoder.step_bytes(middle)
        result |= {"tokens_per_second": len(steps) / float(np.sum(steps)), "bytes_per_token": nbytes}
        caches = [each.cache for each in lm.load_statistics().values() if each.cache is not None]
        if caches:  # memory is not what limits it
            needed = sum(cache.hits + cache.misses for cache in caches)
            return result | {
                "roofline_share": None,
                "hit_rate": sum(cache.hits for cache in caches) / max(needed, 1),
                "bytes_read": sum(cache.bytes_read for cache in caches),
            }
        return result | {"roofline_share": nbytes / weights_bandwidth(lm) / float(median(steps))}


_NO_STEPS: dict[str, Any] = dict.fromkeys(("tokens_per_second", "bytes_per_token", "roofline_share"))


def weights_bandwidth(lm: CausalLM) -> float:
    """Bytes a second that the machine reads, the best of some samples of the model's own weights."""
    arrays = [np.frombuffer(data, np.uint8) for data in lm._decoder.packed_bytes()]
    samples = []
    for _ in range(_SAMPLES):
        enough = islice(cycle(arrays), _num_arrays(arrays))
        samples.append(read_bandwidth(enough, config.active_kernels(), config.get_num_threads()))
    return max(samples)


def _num_arrays(arrays: list[np.ndarray[Any, Any]]) -> int:
    """How many arrays, the first again after the last, are enough bytes for a sample."""
    sizes = accumulate(array.size for array in cycle(arrays))
    return 1 + next(i for i, size in enumerate(sizes) if size >= _LEAST_BYTES)


def describe(summary: dict[str, Any]) -> str:
    """The rates in a line."""
    parts = [f"{summary['prompt_tokens']} tokens of the prompt"]
    if (rate := summary["prompt_tokens_per_second"]) is not None:
        parts[0] += f" at {rate:.1f} tokens/s"
    if (rate := summary["tokens_per_second"]) is not None:
        share = summary["roofline_share"]
        of_what = f"{100 * share:.0f} % of the roofline" if share is not None else _describe_cache(summary)
        if share is not None and round(100 * share) > 100:
            of_what += ": more than the machine read afterwards"
        parts.append(
            f"then {rate:.1f} tokens/s ({summary['bytes_per_token'] / 1e9:.3f} GB a token, {of_what})"
        )
    return ", ".join(parts)


def _describe_cache(summary: dict[str, Any]) -> str:
    rate, gigabytes = 100 * summary["hit_rate"], summary["bytes_read"] / 1e9
    return f"{rate:.0f} % of the experts in memory, {gigabytes:.3f} GB read"
