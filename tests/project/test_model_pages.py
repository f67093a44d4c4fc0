"""The examples of docs/checkpoints.md and docs/models run, on golden layers under the names that they use."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
from checkpoints import MODELS
from paths import ROOT

DOCS = ROOT / "docs"
FOLDERS: dict[str, Callable[[], checkpoints.Written]] = {
    "gpt-oss-20b": MODELS["gpt-oss"],
    "DeepSeek-V3": MODELS["deepseek-v3"],
    "DeepSeek-V4-Flash": MODELS["deepseek-v4"],
    "Qwen3-30B-A3B": MODELS["qwen3 bfloat16"],
    "Qwen3-30B-A3B-FP8": MODELS["qwen3 fp8"],
    "Mixtral-8x7B-v0.1": MODELS["mixtral bfloat16"],
    "MiniMax-M2": checkpoints.minimax_m2,
    "MiniMax-M3": MODELS["minimax-m3"],
}
PAGES = ["checkpoints.md", *(f"models/{path.name}" for path in sorted((DOCS / "models").glob("*.md")))]


def write_models(folder: Path, code: str) -> None:
    """Write the folders that `code` names, with nothing but the golden layer."""
    for name, make in FOLDERS.items():
        if f'"{name}"' in code:
            written = make()
            if "load_layers" in code:  # of all layers
                written.config["num_hidden_layers"] = 1
                written = written._replace(
                    tensors={
                        key.replace(f"layers.{written.layer}.", "layers.0."): array
                        for key, array in written.tensors.items()
                    }
                )
            written.write(folder / name)
    for name in re.findall(r'"([\w.-]+\.gguf)"', code):
        test_gguf = pytest.importorskip("test_gguf")
        architecture, keys, tensors, _ = test_gguf.gpt_oss()
        test_gguf.write(folder / name, architecture, keys, tensors)


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, "".join(blocks))
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def test_every_page_is_linked() -> None:
    for index in (DOCS / "index.md", DOCS / "checkpoints.md"):
        text = index.read_text()
        assert [page for page in PAGES if page.startswith("models/") and f"({page})" not in text] == []
