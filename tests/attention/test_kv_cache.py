"""`KVCache`: what it holds, what copies share, what is left of it after a failure; calls that are wrong."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from problems import assert_same_bits
from sequences import Heads, draw

import mxfp4moe as mx
from mxfp4moe import _core
from mxfp4moe.self_attention.cache import reserve

HEADS = Heads(2, 2, 8)


def held(cache: mx.KVCache, scale: float = 0.0) -> np.ndarray:
    """A number for each position that depends on all positions up to it."""
    queries = np.ones((len(cache), HEADS.num_heads, HEADS.head_dim), np.float32)
    return mx.attention(queries, cache, scale=scale or 0.3)


def test_copies_share_memory_and_nothing_else(rng: np.random.Generator) -> None:
    sequence = draw(rng, HEADS, 300, "float32")
    cache = sequence.cache(200)
    before = held(cache)
    copies = [cache.copy(), copy.copy(cache), copy.deepcopy(cache)]
    pages = cache._slot.get().pages
    for i, other in enumerate(copies):
        assert other._slot.get().pages is pages
        other.append(sequence.keys[200 + i :][:5], sequence.values[200 + i :][:5])
        assert len(other) == 205
        # All whole pages are shared still; the first to append goes on in the last page too.
        assert all(a is b for a, b in zip(other._slot.get().pages[:3], pages, strict=False))
        assert (other._slot.get().pages[3] is pages[3]) == (i == 0)
    assert len(cache) == 200
    assert_same_bits(held(cache), before)
    for i, other in enumerate(copies):
        again = mx.KVCache(2, 8, dtype="float32")
        order = [*range(200), *range(200 + i, 205 + i)]
        again.append(sequence.keys[order], sequence.values[order])
        assert_same_bits(held(other), held(again))


def test_memory_grows_with_the_cache(rng: np.random.Generator) -> None:
    sequence = draw(rng, HEADS, 1400, "float32")
    cache = mx.KVCache(2, 8, dtype="float32")
    page = 64 * 2 * (8 + 16) * 4
    for t in range(1400):
        cache.append(sequence.keys[t : t + 1], sequence.values[t : t + 1])
        assert (t // 64 + 1) * page <= cache.nbytes <= max(2 * t // 64, 1) * page + (2 << 20)
    assert_same_bits(held(cache), held(sequence.cache()))
    spare = cache._slot.get().spare
    assert spare
    # Copies share the spare pages too; each page is filled by the first that needs it.
    copies = [cache.copy(), cache.copy()]
    for i, other in enumerate(copies):
        other.append(sequence.keys[i : i + 200], sequence.values[i : i + 200])
    for i, other in enumerate(copies):
        again = sequence.cache()
        again.append(sequence.keys[i : i + 200], sequence.values[i : i + 200])
        assert_same_bits(held(other), held(again))
    assert_same_bits(held(cache), held(sequence.cache()))


def test_truncate_and_go_on(rng: np.random.Generator) -> None:
    sequence = draw(rng, HEADS, 300, "bfloat16")
    cache = sequence.cache()
    for length in (299, 256, 130, 64, 1, 0):
        cache.truncate(length)
        assert len(cache) == length
        assert_same_bits(held(cache), held(sequence.cache(length)))
        other = cache.copy()
        other.append(sequence.keys[length:], sequence.values[length:])
        assert_same_bits(held(other), held(sequence.cache()))


def test_sizes_and_repr() -> None:
    cache = mx.KVCache(3, 20, sliding_window=7)
    assert cache.nbytes == 0
    cache.append(np.ones((65, 3, 20), np.float32), np.ones((65, 3, 20), np.float32))
    assert cache.nbytes == 2 * 64 * 3 * (20 + 32) * 2  # two pages; values are padded to 32
    assert repr(cache) == (
        "<KVCache of 65 positions: num_kv_heads=3, head_dim=20, dtype='bfloat16', sliding_window=7>"
    )
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache)


def test_the_window_of_the_cache_holds_where_none_is_given(rng: np.random.Generator) -> None:
    sequence = draw(rng, HEADS, 100, "float32")
    cache = mx.KVCache(2, 8, dtype="float32", sliding_window=9)
    cache.append(sequence.keys, sequence.values)
    queries = sequence.queries
    assert_same_bits(
        mx.attention(queries, cache, scale=1.0),
        mx.attention(queries, sequence.cache(), scale=1.0, sliding_window=9),
    )
    assert_same_bits(
        mx.attention(queries, cache, scale=1.0, sliding_window=100),
        mx.attention(queries, sequence.cache(), scale=1.0),
    )


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_append_changes_nothing(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    sequence = draw(rng, HEADS, 300, "float32")
    cache = sequence.cache(100)
    other = cache.copy()
    before, left = held(cache), failing
    real = _core.new_pages

    def new_pages(*sizes: int) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise MemoryError("no memory for pages")
        return real(*sizes[:-1], 1)

    monkeypatch.setattr(_core, "new_pages", new_pages)
    with pytest.raises(MemoryError):
        cache.append(sequence.keys[100:], sequence.values[100:])
    monkeypatch.undo()
    assert len(cache) == 100
    for each in (cache, other):
        assert_same_bits(held(each), before)
        each.append(sequence.keys[100:], sequence.values[100:])
        assert_same_bits(held(each), held(sequence.cache()))


PROGRAM = """
import resource
import numpy as np
import mxfp4moe as mx

cache = mx.KVCache(8, 64)
positions = np.ones((1000, 8, 64), np.float32)
cache.append(positions, positions)
queries = np.ones((1, 8, 64), np.float32)
before = mx.attention(queries, cache, scale=1.0)
with open("/proc/self/status") as file:
    size = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), -1))
try:
    while True:
        cache.append(positions, positions)
except MemoryError as error:
    print(error)
length = len(cache)
assert length % 1000 == 0 and np.array_equal(mx.attention(queries, cache, scale=1.0), before)
cache.truncate(1)
cache.append(positions, positions)
assert len(cache) == 1001
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_out_of_memory_leaves_the_cache_intact() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bytes of a key/value cache" in done.stdout


def test_threads_append_to_copies_of_one_cache(rng: np.random.Generator) -> None:
    """Each thread grows a copy of its own, position by position, while others read the shared pages."""
    sequence = draw(rng, HEADS, 40, "float32")
    shared = sequence.cache(10)
    wrong: list[int] = []

    def work(thread: int) -> None:
        cache = shared.copy()
        order = list(range(10))
        for t in np.random.default_rng(thread).permutation(np.arange(10, 40)):
            cache.append(sequence.keys[t : t + 1], sequence.values[t : t + 1])
            order.append(t)
        again = mx.KVCache(2, 8, dtype="float32")
        again.append(sequence.keys[order], sequence.values[order])
        if held(cache).tobytes() != held(again).tobytes():
            wrong.append(thread)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(shared) == 10


def test_threads_append_to_one_cache() -> None:
    """No position is lost, and none is torn: each of a thread's has the same number everywhere."""
    cache = mx.KVCache(1, 4, dtype="float32")

    def work(thread: int) -> None:
        for _ in range(50):
            positions = np.full((3, 1, 4), thread, np.float32)
            cache.append(positions, positions)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 600
    values = mx.attention(np.zeros((600, 1, 4), np.float32), cache, scale=1.0, sliding_window=1)[:, 0]
    assert (values == values[:, :1]).all()
    assert sorted(values[::3, 0].tolist()) == sorted([0.0, 1.0, 2.0, 3.0] * 50)
    assert (values[0::3] == values[1::3]).all()
    assert (values[0::3] == values[2::3]).all()


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


WRONG_CACHES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_kv_heads": 0}, ValueError, "num_kv_heads: expected an integer in [1, 65536], got 0"),
    ({"num_kv_heads": 2.0}, TypeError, "num_kv_heads: expected an integer, got 2.0"),
    ({"head_dim": -1}, ValueError, "head_dim: expected an integer in [1, 4096], got -1"),
    ({"head_dim": 2**62}, ValueError, "head_dim: expected an integer in [1, 4096]"),
    ({"dtype": "float16"}, ValueError, "dtype: expected 'bfloat16' or 'float32', got 'float16'"),
    ({"dtype": np.float32}, TypeError, "dtype: expected 'bfloat16' or 'float32', got an object"),
    ({"sliding_window": 0}, ValueError, "sliding_window: expected an integer in"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_CACHES)
def test_wrong_caches(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mx.KVCache(**{"num_kv_heads": 2, "head_dim": 8} | arguments)


WRONG_APPENDS: list[tuple[Any, Any, type[Exception], str]] = [
    (ones(1, 2, 9), ones(1, 2, 8), ValueError, "keys: expected shape (T, 2, 8), got shape (1, 2, 9)"),
    (ones(1, 2, 8), ones(2, 2, 8), ValueError, "values: expected shape (1, 2, 8), got shape (2, 2, 8)"),
    (ones(2, 8), ones(2, 8), ValueError, "keys: expected shape (T, 2, 8), got shape (2, 8)"),
    (ones(1, 2, 8, dtype=np.int8), ones(1, 2, 8), TypeError, "keys: expected an array of"),
    (ones(1, 2, 8), None, TypeError, "values: expected an array of"),
    (ones(1, 2, 8), ones(1, 2, 8, dtype=np.float64), TypeError, "values: expected an array of"),
]


@pytest.mark.parametrize(("keys", "values", "error", "message"), WRONG_APPENDS)
def test_wrong_appends(keys: Any, values: Any, error: type[Exception], message: str) -> None:
    cache = mx.KVCache(2, 8)
    cache.append(ones(3, 2, 8), ones(3, 2, 8))
    with pytest.raises(error, match=re.escape(message)):
        cache.append(keys, values)
    assert len(cache) == 3


@pytest.mark.parametrize(("length", "error"), [(4, ValueError), (-1, ValueError), (1.0, TypeError)])
def test_wrong_truncations(length: Any, error: type[Exception]) -> None:
    cache = mx.KVCache(2, 8)
    cache.append(ones(3, 2, 8), ones(3, 2, 8))
    with pytest.raises(error, match="length: expected an integer"):
        cache.truncate(length)
    assert len(cache) == 3


WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"queries": ones(4, 2, 8)},
        ValueError,
        "queries: expected at most 3 positions, those of its cache, got 4",
    ),
    ({"queries": ones(1, 3, 8)}, ValueError, "queries: expected a multiple of 2 heads, those of the cache"),
    ({"queries": ones(1, 0, 8)}, ValueError, "queries: expected a multiple of 2 heads"),
    ({"queries": ones(1, 2, 7)}, ValueError, "queries: expected shape (T, H, 8), got shape (1, 2, 7)"),
    ({"queries": ones(1, 2, 8, dtype=np.float64)}, TypeError, "queries: expected an array of"),
    ({"queries": [ones(1, 2, 8)], "cache": []}, ValueError, "queries: expected as many arrays as caches, 0"),
    ({"cache": "a"}, TypeError, "cache: expected a KVCache, got 'a'"),
    ({"cache": [1]}, TypeError, "cache[0]: expected a KVCache, got 1"),
    ({"scale": np.inf}, ValueError, "scale: expected a finite float32 number, got inf"),
    ({"scale": None}, TypeError, "scale: expected a real number, got None"),
    ({"sinks": ones(3)}, ValueError, "sinks: expected shape (2,), got shape (3,)"),
    ({"sinks": np.ones(2, np.int64)}, TypeError, "sinks: expected an array of"),
    ({"sliding_window": 0}, ValueError, "sliding_window: expected an integer in"),
    ({"sliding_window": True}, TypeError, "sliding_window: expected an integer, got True"),
    ({"dtype": np.float64}, TypeError, "dtype: expected bfloat16, float16 or float32, got float64"),
    ({"num_threads": 0}, ValueError, "num_threads: expected an integer in"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_CALLS)
def test_wrong_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    cache = mx.KVCache(2, 8)
    cache.append(ones(3, 2, 8), ones(3, 2, 8))
    right = {"queries": ones(1, 2, 8), "cache": cache, "scale": 1.0}
    with pytest.raises(error, match=re.escape(message)):
        mx.attention(**right | arguments)


def test_caches_of_a_list_have_the_same_sizes() -> None:
    caches = [mx.KVCache(2, 8), mx.KVCache(2, 8, dtype="float32")]
    for cache in caches:
        cache.append(ones(3, 2, 8), ones(3, 2, 8))
    with pytest.raises(
        ValueError, match=re.escape("cache[1]: expected what cache[0] has, 2 heads of 8 of bfloat16")
    ):
        mx.attention([ones(1, 2, 8)] * 2, caches, scale=1.0)
    with pytest.raises(ValueError, match=re.escape("queries[1]: expected shape (T, 2, 8)")):
        mx.attention([ones(1, 2, 8), ones(1, 4, 8)], [caches[0]] * 2, scale=1.0)
    with pytest.raises(TypeError, match="queries: expected a list of 2 arrays"):
        mx.attention(ones(2, 1, 2, 8), [caches[0]] * 2, scale=1.0)


def test_reserved_positions_are_of_the_cache_that_was() -> None:
    cache = mx.KVCache(2, 8)
    room = reserve(cache, 3)
    keys = values = np.ones((1, 2, 8), np.float32)
    cache.append(keys, values)
    with pytest.raises(RuntimeError, match="cache: expected to be left alone during a call"):
        room.commit()
    assert len(cache) == 1
    again = reserve(cache, 70)
    again.commit()
    assert (again.begin, len(cache), len(again.pages)) == (1, 71, 2)
