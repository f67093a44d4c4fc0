"""Whole models whose experts are larger than memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import whole_models

import mxfp4moe as mx
from mxfp4moe import cli


def least_limit(path: Path) -> int:
    """The experts of a token, as the error says."""
    with pytest.raises(ValueError, match="memory_limit: expected at least") as error:
        mx.CausalLM.open(path, memory_limit=1)
    return int(str(error.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize("name", ["gpt_oss", "glm4_moe", "olmoe"])
def test_logits_and_tokens_are_the_same(isa: str, tmp_path: Path, name: str) -> None:
    lm, ids = whole_models.open_model(name, tmp_path), whole_models.input_ids(name)
    lm.save(tmp_path / "packed")
    limit = least_limit(tmp_path / "packed")
    limited = mx.CausalLM.open(tmp_path / "packed", memory_limit=limit)
    assert np.array_equal(limited(ids), lm(ids))
    prompt = ids.reshape(-1)[:5]
    tokens = list(lm.generate(prompt, max_new_tokens=4))
    assert list(limited.generate(prompt, max_new_tokens=4)) == tokens
    statistics = limited.load_statistics()
    assert statistics.keys() == lm.load_statistics().keys()
    assert all(each.cache is None for each in lm.load_statistics().values())
    caches = [each.cache for each in statistics.values() if each.cache is not None]
    assert len(caches) == len(statistics)
    assert 0 < sum(cache.resident_bytes for cache in caches) <= limit
    assert all(cache.hits + cache.misses > 0 for cache in caches)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = whole_models.load("gpt_oss").write(tmp_path / "source")
    lm = mx.CausalLM.from_checkpoint(source)
    lm.save(tmp_path / "packed")
    limit = least_limit(tmp_path / "packed")
    command = ["generate", "--ids", "5", "17", "--max-new-tokens", "6", "--checkpoint"]
    packed = [*command, str(tmp_path / "packed"), "--memory-limit"]
    assert cli.main([*packed, f"{limit / 1024:.9f}KiB", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ids"] == list(lm.generate([5, 17], max_new_tokens=6))
    assert 0 <= result["hit_rate"] <= 1
    assert result["bytes_read"] > 0
    assert cli.main([*packed, "1gb"]) == 0
    assert "% of the experts in memory" in capsys.readouterr().err
    for wrong in ("0", "-1", "8 bytes", "GB", "1e9", "nan"):
        with pytest.raises(SystemExit):
            cli.main([*command, str(tmp_path / "packed"), f"--memory-limit={wrong}"])
        assert "--memory-limit: expected a number of bytes above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*packed, "1G", "--quantize", "mxfp4"])
    assert "--quantize: expected none with --memory-limit" in capsys.readouterr().err
    assert cli.main([*packed, "1"]) != 0
    assert f"memory_limit: expected at least {limit} bytes" in capsys.readouterr().err
    assert cli.main([*command, str(source), "--memory-limit", "1G"]) != 0
    assert "expected a packed folder, which mxfp4moe pack writes" in capsys.readouterr().err
