"""Small whole models of every type that can be run as one, with the logits that transformers computes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
from model_folders import ModelFolder
from paths import DATA

import mxfp4moe as mx

NAMES = sorted(path.stem for path in (DATA / "logits").glob("*.npz"))


def load(name: str) -> ModelFolder:
    """The folder of this name; callers change copies of its parts."""
    return model_folders.load(name, "logits")


def changed(name: str, **config: Any) -> ModelFolder:
    """The folder with other fields in its configuration; those that are ... are left out."""
    folder = load(name)
    fields = {**folder.config, **config}
    return folder._replace(config={key: value for key, value in fields.items() if value is not ...})


def input_ids(name: str) -> np.ndarray:
    """The sequences whose logits are known, of shape (B, T)."""
    return load(name).golden["input_ids"]


@cache
def open_model(name: str, root: Path, **options: Any) -> mx.CausalLM:
    """The model of this name, written into a folder below `root`."""
    return mx.CausalLM.from_checkpoint(load(name).write(root / name), **options)


def write_tokenizer(folder: Path, template: str | None = None) -> None:
    """A tokenizer of single bytes, by the ids of the small vocabularies; three of them are special."""
    special = ["<pad>", "<bos>", "<eos>"]
    # As byte-level tokenizers write bytes: those that are printable as themselves.
    letters = [chr(code) for code in range(33, 127)]
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(special)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config: dict[str, Any] = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
