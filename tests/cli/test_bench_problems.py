"""What `mxfp4moe bench` measures: shapes, routing, random weights, as many experts as the memory holds."""

from __future__ import annotations

import numpy as np
import pytest
from bench_examples import TINY, TINY_SHAPE

from mxfp4moe.cli import main
from mxfp4moe.cli._bench import memory, problem


def test_shapes_are_those_of_the_models() -> None:
    sizes = {
        name: (shape.hidden_size, shape.intermediate_size, shape.num_experts, shape.top_k, shape.activation)
        for name, shape in problem.SHAPES.items()
    }
    assert sizes["gpt-oss-20b"] == (2880, 2880, 32, 4, "swigluoai")
    assert sizes["gpt-oss-120b"] == (2880, 2880, 128, 4, "swigluoai")
    assert sizes["qwen3-30b-a3b"] == sizes["qwen3-30b-a3b-fp8"] == (2048, 768, 128, 8, "silu")
    assert sizes["deepseek-v4-flash"] == (4096, 2048, 256, 6, "silu")
    assert sizes["mixtral-8x7b"] == (4096, 14336, 8, 2, "silu")
    assert problem.SHAPES["deepseek-v4-flash"].limit == 10
    assert problem.SHAPES["gpt-oss-20b"].has_bias
    assert not problem.SHAPES["qwen3-30b-a3b"].has_bias


@pytest.mark.parametrize("routing", problem.ROUTINGS)
def test_routing_draws_distinct_experts_and_weights_that_sum_to_one(
    routing: str, rng: np.random.Generator
) -> None:
    shape = problem.Shape("many", 32, 32, 40, 5)
    router = problem.Router(shape, routing, rng)
    hidden = router.hidden_states(2000)
    first, second = router.draw(hidden), router.draw(hidden)
    assert not np.array_equal(first.topk_ids, second.topk_ids)
    for batch in (first, second):
        assert batch.hidden_states is hidden
        assert all(len(set(row)) == 5 for row in batch.topk_ids.tolist())
        np.testing.assert_allclose(batch.topk_weights.sum(axis=1), 1, rtol=1e-6)  # 5 roundings of 2**-24
    counts = np.sort(np.bincount(first.topk_ids.ravel(), minlength=40))[::-1]
    # 10000 slots over 40 experts: 250 each, and no count is as far as 10 standard deviations (160) from it.
    if routing == "uniform":
        assert 90 < counts[-1] <= counts[0] < 410
    elif routing == "hot":
        assert counts[0] == 2000
        assert counts[1] < 410
    else:
        # The chance of rank 1 to be among 5 of 40 draws with chances 1 / rank is above 0.7, that of rank 40
        # below 0.07.
        assert counts[0] > 1300
        assert counts[-1] < 160


def test_arrays_depend_on_the_seed_alone() -> None:
    first, again, other = (
        problem.random_arrays(TINY_SHAPE, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.w13, again.w13)
    assert not np.array_equal(first.w13, other.w13)
    assert first.w13.shape == (6, 128, 48)
    assert first.w2_scales is not None
    assert first.w2_scales.shape == (6, 96, 2)
    assert problem.pack(TINY_SHAPE, first).nbytes >= 6 * TINY_SHAPE.expert_bytes


def test_fewer_experts_where_memory_is_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = problem.SHAPES["gpt-oss-20b"]
    assert memory.fit(shape, 2, 10**12, 1) == shape
    cut = memory.fit(shape, 2, 1_500_000_000, 1)
    assert 4 <= cut.num_experts < 32
    assert 2 * cut.num_experts * shape.expert_bytes < 1_500_000_000
    assert memory.fit(shape, 4, 1_500_000_000, 1).num_experts < cut.num_experts
    with pytest.raises(
        ValueError, match=r"memory: expected room for 4 experts of gpt-oss-20b, mxfp4, got 0\.7 GB"
    ):
        memory.fit(shape, 2, 7 * 10**8, 1)
    assert memory.available_memory() > 0
    assert memory.last_cache_bytes() > 0

    monkeypatch.setattr(memory, "fit", lambda *args: TINY_SHAPE)
    assert main([*TINY, "--num-experts", "9", "--tokens", "1"]) == 0
    assert "custom, mxfp4: 6 experts instead of 9" in capsys.readouterr().err
