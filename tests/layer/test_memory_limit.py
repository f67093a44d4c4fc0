"""Layers that are larger than memory: the same bits within any limit, which experts stay, what is read."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import layer_fields
import numpy as np
import pytest
from packed_examples import FORMATS, ROUTINGS, SPECIAL_FORMATS, K, activation_of, make_experts, make_layer

import mxfp4moe as mx
from mxfp4moe.experts.cache import ExpertCache

MANY = 12


def wait_for_reads() -> None:
    """Until all that was asked for in the background has been begun."""
    for thread in threading.enumerate():
        if thread.name == "mxfp4moe-read":
            thread.join()


def cache_of(layer: mx.MoELayer) -> ExpertCache:
    cache = layer.expert_cache
    assert cache is not None
    return cache


def saved(rng: np.random.Generator, path: Path, format: str = "mxfp4", top_k: int = 3) -> mx.MoELayer:
    """A layer of many experts, which is also in a file."""
    experts = make_experts(rng, format, num_experts=MANY)
    router = rng.standard_normal((MANY, K), np.float32)
    layer = mx.MoELayer(experts, router, top_k=top_k, activation=activation_of(experts))  # type: ignore[arg-type]
    layer.save(path)
    return layer


def opened(path: Path, num_experts: int, **options: Any) -> mx.MoELayer:
    """The layer of a file, with memory for so many of its experts."""
    experts = cache_of(mx.MoELayer.open(path, memory_limit=1 << 40)).expert_bytes
    return mx.MoELayer.open(path, memory_limit=num_experts * experts, **options)


def test_a_file_that_has_become_shorter(tmp_path: Path, rng: np.random.Generator) -> None:
    """To touch what is gone would end the process, also where it was in memory before."""
    saved(rng, path := tmp_path / "layer")
    layer, x = opened(path, 4), rng.standard_normal((1, K), np.float32)
    layer(x)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"layer: expected {size} bytes, as when it was opened, got"):
            layer(x)
    assert not cache_of(layer)._experts.budget._holds


@pytest.mark.parametrize("format", [*FORMATS, *SPECIAL_FORMATS])
def test_calls_have_the_bits_of_the_whole(
    isa: str, tmp_path: Path, rng: np.random.Generator, format: str
) -> None:
    """Whatever fits: all, or some experts after others; sums and terms, into other memory and in place."""
    whole = saved(rng, tmp_path / "layer", format)
    x = rng.standard_normal((9, K), np.float32)
    weights, ids = whole.route(x)
    ids[3], ids[4, 1] = -1, ids[4, 0]  # a token without experts, and an expert twice
    options: dict[str, Any] = {"activation": whole.activation}
    for size in (5, MANY):
        layer = opened(tmp_path / "layer", size)
        assert np.array_equal(layer(x.astype(np.float16)), whole(x.astype(np.float16)))
        for combine in (True, False):
            expected = mx.fused_experts(x, whole.experts, weights, ids, combine=combine, **options)
            got = mx.fused_experts(x, layer.experts, weights, ids, combine=combine, **options)
            assert np.array_equal(got, expected)
        in_place = x.copy()
        assert np.array_equal(layer(in_place, out=in_place), whole(x))
        assert cache_of(layer).resident_bytes <= cache_of(layer).memory_limit
        wait_for_reads()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_layers_of_every_routing(tmp_path: Path, rng: np.random.Generator, routing: str) -> None:
    whole = make_layer(rng, routing)
    whole.save(tmp_path / "layer")
    x = rng.standard_normal((9, K), np.float32)
    inputs = {"input_ids": np.arange(9) % 4} if routing == "deepseek v4" else {}
    layer = opened(tmp_path / "layer", 2)
    assert layer == whole
    for rows in (x, x[:1], x[:0]):
        given = {name: ids[: len(rows)] for name, ids in inputs.items()}
        assert np.array_equal(layer(rows, **given), whole(rows, **given))


@pytest.mark.parametrize("names", layer_fields.COMBINATIONS, ids="-".join)
def test_layers_with_any_field(tmp_path: Path, rng: np.random.Generator, names: tuple[str, ...]) -> None:
    call = layer_fields.random_call(rng, names, 13)
    call.layer.save(tmp_path / "layer")
    layer = opened(tmp_path / "layer", call.layer.top_k)
    assert np.array_equal(layer_fields.Call(layer, *call[1:]).run(), call.run())


def test_terms_of_some_tokens_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rng: np.random.Generator
) -> None:
    from mxfp4moe.experts import cached_run

    whole, x = saved(rng, tmp_path / "layer"), rng.standard_normal((40, K), np.float32)
    monkeypatch.setattr(cached_run, "_TERM_BYTES", 5 * 4 * K * 3)
    assert np.array_equal(opened(tmp_path / "layer", 4)(x), whole(x))


# --- which experts stay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 8])
def test_the_least_recently_used_go_first(tmp_path: Path, rng: np.random.Generator, size: int) -> None:
    """Hits, misses, and the experts that are there are those of a plain list of recent ones."""
    saved(rng, tmp_path / "layer")
    layer = opened(tmp_path / "layer", size)
    cache, recent, hits, misses = cache_of(layer), OrderedDict[int, None](), 0, 0
    for _ in range(25):
        x = rng.standard_normal((1, K), np.float32)
        ids = np.unique(layer.route(x)[1]).tolist()
        layer(x)
        hits += sum(i in recent for i in ids)
        misses += sum(i not in recent for i in ids)
        for i in ids:
            recent[i] = None
            recent.move_to_end(i)
        while len(recent) > size:
            recent.popitem(last=False)
        assert cache.resident_ids == sorted(recent)
    statistics = layer.load_statistics().cache
    assert statistics is not None
    assert statistics == cache.statistics()
    assert statistics[:3] == (hits, misses, 0)
    assert statistics.hit_rate == hits / (hits + misses)
    assert statistics.bytes_read == misses * cache.expert_bytes
    assert statistics.resident_bytes == len(recent) * cache.expert_bytes


def test_experts_are_prefetched_pinned_and_evicted(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = saved(rng, tmp_path / "layer")
    layer = opened(tmp_path / "layer", 8)
    cache, x = cache_of(layer), rng.standard_normal((30, K), np.float32)
    assert cache.resident_ids == []
    assert cache.statistics().hit_rate == 1
    cache.prefetch(range(2))
    cache.pin([3, 9, 4])
    cache.pin([9, 5])
    wait_for_reads()
    assert cache.resident_ids == [0, 1, 3, 4, 5, 9]
    with pytest.raises(ValueError, match=f"ids: expected at most {5 * cache.expert_bytes} pinned bytes"):
        cache.pin([6, 7])
    for _ in range(2):
        assert np.array_equal(layer(x), whole(x))
        assert {3, 4, 5, 9} <= set(cache.resident_ids)
    cache.prefetch(range(MANY))  # as many as have room
    wait_for_reads()
    assert len(cache.resident_ids) == 8
    cache.evict([9, 0, 1])
    assert 9 in cache.resident_ids
    cache.unpin([9])
    cache.evict([9])
    assert 9 not in cache.resident_ids
    cache.evict()
    assert cache.resident_ids == [3, 4, 5]
    cache.unpin(range(MANY))
    cache.evict()
    assert cache.resident_bytes == cache.statistics().resident_bytes == 0
    assert np.array_equal(layer(x), whole(x))


def test_memory_is_given_back(tmp_path: Path, rng: np.random.Generator) -> None:
    """Fewer pages are in memory, as the system counts them, and in the cache of the file as well."""
    w13, w2 = rng.standard_normal((8, 512, 256), np.float32), rng.standard_normal((8, 256, 256), np.float32)
    experts = mx.pack_experts(w13, None, w2, None, format="bf16")
    whole = mx.MoELayer(experts, rng.standard_normal((8, 256), np.float32), top_k=2)
    whole.save(tmp_path / "layer")
    layer = opened(tmp_path / "layer", 3)
    cache, data = cache_of(layer), np.asarray(layer.experts.data)
    if pages_in_memory(data):
        pytest.skip("this file system keeps files in memory")
    most = cache.memory_limit // mmap.PAGESIZE
    for _ in range(6):
        x = rng.standard_normal((1, 256), np.float32)
        assert np.array_equal(layer(x), whole(x))
        assert 0 < pages_in_memory(data) <= most
    cache.evict()
    assert pages_in_memory(data) == 0


def pages_in_memory(data: np.ndarray) -> int:
    import ctypes

    address, size = data.__array_interface__["data"][0], data.nbytes
    found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    pointer = found.ctypes.data_as(ctypes.c_void_p)
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pointer) == 0
    return int((found & 1).sum())


def test_threads_share_a_limit(tmp_path: Path, rng: np.random.Generator) -> None:
    """No call waits for ever, none is wrong, and the limit holds at any time."""
    whole = saved(rng, tmp_path / "layer")
    layer = opened(tmp_path / "layer", 5)
    cache = cache_of(layer)
    batches = [rng.standard_normal((1 + i % 9, K), np.float32) for i in range(24)]

    def work(i: int) -> bool:
        cache.prefetch([i % MANY])
        if i % 7 == 0:
            cache.evict()
        within = cache.resident_bytes <= cache.memory_limit
        return np.array_equal(layer(batches[i], num_threads=1), whole(batches[i])) and within

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the test runner has threads
def test_children_of_fork_do_not_wait_for_threads_of_the_parent(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    whole, x = saved(rng, tmp_path / "layer"), rng.standard_normal((20, K), np.float32)
    layer = opened(tmp_path / "layer", 3)
    cached = layer.experts._cached
    assert cached is not None
    with cached.budget.hold(cached, [0, 1, 2]):  # as a call in another thread does
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if np.array_equal(layer(x, num_threads=1), whole(x, num_threads=1)) else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- layers of a model --------------------------------------------------------------------------------------


def folder_of_layers(rng: np.random.Generator, path: Path, count: int) -> list[mx.MoELayer]:
    from mxfp4moe.checkpoint.packed import layer_file_name, write_index

    path.mkdir()
    layers = [saved(rng, path / layer_file_name(i)) for i in range(count)]
    write_index(path, "mixtral", count, range(count))
    return layers


def test_layers_share_a_limit(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = folder_of_layers(rng, tmp_path / "model", 3)
    least = 3 * cache_of(opened(tmp_path / "model" / "layer-00000.packed", MANY)).expert_bytes
    layers = mx.load_layers(tmp_path / "model", memory_limit=2 * least)
    x = rng.standard_normal((1, K), np.float32)
    for _ in range(3):
        for layer, expected in zip(layers, whole, strict=True):
            assert np.array_equal(layer(x), expected(x))
            wait_for_reads()
            assert cache_of(layer).resident_bytes <= 2 * least
    assert cache_of(layers[0]).memory_limit == 2 * least
    parts = mx.load_layers(tmp_path / "model", experts=range(4, 9), memory_limit=2 * least)
    for part, expected in zip(parts, whole, strict=True):
        assert np.array_equal(part(x), expected.slice(range(4, 9))(x))
        smaller = part.slice([8, 5])
        assert np.array_equal(smaller(x), expected.slice([8, 5])(x))
        cache_of(smaller).prefetch([8])
        with pytest.raises(ValueError, match="ids: expected experts that this slice holds, got 4"):
            cache_of(smaller).prefetch([4])
    with pytest.raises(
        ValueError, match=f"memory_limit: expected at least {least} bytes, .* got {least - 1}"
    ):
        mx.load_layers(tmp_path / "model", memory_limit=least - 1)


def test_the_next_layer_is_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    """By its own router, on what this layer reads."""
    folder_of_layers(rng, tmp_path / "model", 2)
    first, second = mx.load_layers(tmp_path / "model", memory_limit=1 << 30)
    x = rng.standard_normal((2, K), np.float32)
    first(x)
    wait_for_reads()
    likely = np.unique(second.route(x)[1]).tolist()
    assert cache_of(second).resident_ids == likely
    assert cache_of(second).statistics()[:3] == (0, 0, len(likely))
    second(x)
    assert cache_of(second).statistics()[:3] == (len(likely), 0, len(likely))
    first(rng.standard_normal((100, K), np.float32))  # of which nothing is to be learnt
    wait_for_reads()
    assert cache_of(second).resident_ids == likely


def test_copies_have_no_limit(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = saved(rng, tmp_path / "layer")
    layer = opened(tmp_path / "layer", 3)
    again = pickle.loads(pickle.dumps(layer))
    assert again == whole
    assert again.expert_cache is None
    assert whole.load_statistics().cache is None
    layer.save(tmp_path / "again")
    assert mx.MoELayer.open(tmp_path / "again", verify=True) == whole


def test_wrong_arguments(tmp_path: Path, rng: np.random.Generator) -> None:
    saved(rng, tmp_path / "layer")
    for wrong, error in (("8G", TypeError), (1.5, TypeError), (True, TypeError), (0, ValueError)):
        with pytest.raises(error, match="memory_limit: expected an integer"):
            mx.MoELayer.open(tmp_path / "layer", memory_limit=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory_limit: expected at least"):
        mx.MoELayer.open(tmp_path / "layer", memory_limit=1)
    cache = cache_of(opened(tmp_path / "layer", 4))
    for method in (cache.prefetch, cache.pin, cache.unpin, cache.evict):
        with pytest.raises(ValueError, match=r"ids\[1\]: expected an integer in \[0, 11\], got 12"):
            method([0, MANY])
        with pytest.raises(TypeError, match="ids: expected a range or ids of experts"):
            method("0")


def test_models_that_are_not_packed_are_refused(tmp_path: Path) -> None:
    import model_folders

    name = next(iter(model_folders.NAMES))
    path = model_folders.load(name).write(tmp_path)
    with pytest.raises(ValueError, match="memory_limit: expected a packed folder, .* which is none"):
        mx.load_layers(path, memory_limit=1 << 30)


def test_files_that_cannot_be_mapped_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rng: np.random.Generator
) -> None:
    from mxfp4moe import _unix

    saved(rng, tmp_path / "layer")
    monkeypatch.setattr(_unix, "has_unlimited_addresses", lambda: False)
    with pytest.raises(ValueError, match="expected a file that is mapped as a whole, on Linux"):
        mx.MoELayer.open(tmp_path / "layer", memory_limit=1 << 30)


def test_a_limit_holds_where_no_thread_can_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rng: np.random.Generator
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    whole, x = saved(rng, tmp_path / "layer"), rng.standard_normal((30, K), np.float32)
    layer = opened(tmp_path / "layer", 4)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert np.array_equal(layer(x), whole(x))
    cache_of(layer).prefetch([0])
    assert 0 in cache_of(layer).resident_ids


def test_any_call_fits_beside_pins(tmp_path: Path, rng: np.random.Generator) -> None:
    """Random limits, batches and pins."""
    whole = saved(rng, tmp_path / "layer")
    for _ in range(8):
        size = int(rng.integers(3, MANY + 1))
        layer = opened(tmp_path / "layer", size)
        if size > 3:
            cache_of(layer).pin(rng.choice(MANY, size - 3, replace=False))
        for _ in range(3):
            x = rng.standard_normal((int(rng.integers(0, 25)), K), np.float32)
            assert np.array_equal(layer(x), whole(x))
