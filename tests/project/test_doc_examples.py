"""The blocks of the pages run: Python as pasted, commands as typed, on small models under the names there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import checkpoints
import golden_gguf
import ml_dtypes
import numpy as np
import pytest
import whole_models
from checkpoints import MODELS
from paths import ROOT
from shown_code import missing_libraries

from mxfp4moe import cli

FOLDERS: dict[str, Callable[[], checkpoints.Written]] = {
    "gpt-oss-20b": MODELS["gpt-oss"],
    "gpt-oss-20b-bf16": MODELS["gpt-oss bfloat16"],
    "DeepSeek-V3": MODELS["deepseek-v3"],
    "DeepSeek-V4-Flash": MODELS["deepseek-v4"],
    "Qwen3-30B-A3B": MODELS["qwen3 bfloat16"],
    "Qwen3-30B-A3B-FP8": MODELS["qwen3 fp8"],
    "Mixtral-8x7B-v0.1": MODELS["mixtral bfloat16"],
    "MiniMax-M2": checkpoints.minimax_m2,
    "MiniMax-M3": MODELS["minimax-m3"],
}
PACKED = {"gpt-oss-20b-packed": "gpt-oss-20b"}
WHOLE = re.compile(r"CausalLM|mxfp4moe (generate|chat)|--quantize-dense")
"""What pages have that need whole models, in the place of a layer of each."""
CONTINUES = "# Continues the block above.\n"
HOW_TO = "#how-to-get-a-model"

TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("", "bench", "docs", "docs/models")
    for path in sorted((ROOT / folder).glob("*.md"))
}


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], flags=re.DOTALL)


def commands_of(block: str) -> list[list[str]]:
    """The arguments of each command on models in a block of shell commands."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    on_models = ("inspect", "quantize", "pack", "run", "generate")
    return [words[1:] for words in lines if words[:1] == ["mxfp4moe"] and words[1] in on_models]


PYTHON = [page for page in TEXTS if blocks_of(page, "python")]
COMMANDS = [page for page in TEXTS if any(map(commands_of, blocks_of(page, "bash")))]


def write_model(path: Path, *, all_layers: bool, whole: bool = False) -> None:
    """Write the model of that name with nothing but the golden layer; `all_layers` makes it the only one.

    `whole` writes a whole model instead, with a tokenizer.
    """
    if whole and path.name not in PACKED:
        whole_models.load("gpt_oss").write(path)
        whole_models.write_tokenizer(path, "{{ messages[-1].content }}")
    elif path.suffix == ".gguf":
        architecture, keys, tensors, _ = golden_gguf.gpt_oss()
        golden_gguf.write(path, architecture, keys, tensors)
    elif path.name in PACKED:
        source = path.with_name(PACKED[path.name])
        write_model(source, all_layers=True, whole=whole)
        assert cli.main(["pack", str(source), str(path)]) == 0
    else:
        written = FOLDERS[path.name]()
        if all_layers:
            written.config["num_hidden_layers"] = 1
            names = {key: key.replace(f"layers.{written.layer}.", "layers.0.") for key in written.tensors}
            written = written._replace(tensors={names[k]: array for k, array in written.tensors.items()})
        written.write(path)


def models_in(text: str) -> list[str]:
    """The models that a block names in quotes."""
    names = re.findall(r'"([\w.-]+)"', text)
    return sorted({name for name in names if name in {*FOLDERS, *PACKED} or name.endswith(".gguf")})


@pytest.mark.parametrize("page", PYTHON)
def test_python_blocks_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs alone, or says in its first line that it continues the one above."""
    blocks = blocks_of(page, "python")
    monkeypatch.chdir(tmp_path)
    for name in models_in("".join(blocks)):
        # Pages about gpt-oss show its first layer, some pages all layers; the others name the golden layer.
        all_layers = "gpt-oss" in name or "load_layers" in "".join(blocks)
        write_model(tmp_path / name, all_layers=all_layers, whole=bool(WHOLE.search("".join(blocks))))
    names: dict[str, object] = {}
    missing = missing_libraries("".join(blocks))
    for block in blocks:
        if not block.startswith(CONTINUES):
            names = {}
        if not missing_libraries(block):
            exec(block, names)
    if missing:
        pytest.skip(f"run but for the blocks with {', '.join(missing)}, not installed")


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_of_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of each block, in a folder with the models that none of them writes."""
    for number, block in enumerate(blocks_of(page, "bash")):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        written = [words[2] for words in commands_of(block) if words[0] in ("quantize", "pack")]
        for words in commands_of(block):
            for word in words:
                is_model = word in {*FOLDERS, *PACKED} or word.endswith(".gguf")
                if is_model and word not in written and not (folder / word).exists():
                    write_model(folder / word, all_layers=True, whole=bool(WHOLE.search(block)))
            if "--input" in words:
                hidden_size = FOLDERS["gpt-oss-20b"]().config["hidden_size"]
                np.save("x.npy", np.ones((3, hidden_size), ml_dtypes.bfloat16))
            assert cli.main(words) == 0, words


@pytest.mark.parametrize("page", sorted({*PYTHON, *COMMANDS}))
def test_pages_that_need_a_model_say_where_it_comes_from(page: str) -> None:
    shown = [*blocks_of(page, "python"), *blocks_of(page, "bash")]
    needed = models_in("".join(shown)) or any(map(commands_of, shown))
    own = "## How to get a model" in TEXTS[page]
    assert not needed or own or HOW_TO in TEXTS[page]


def test_every_page_is_linked() -> None:
    assert "## How to get a model\n" in TEXTS["docs/checkpoints.md"]
    index = TEXTS["docs/index.md"]
    for page in TEXTS:
        name = page.removeprefix("docs/") if page.startswith("docs/") else f"../{page}"
        assert page == "docs/index.md" or f"({name})" in index, page
    models = [page.removeprefix("docs/") for page in TEXTS if page.startswith("docs/models/")]
    assert [page for page in models if f"({page})" not in TEXTS["docs/checkpoints.md"]] == []
