"""Every style of names and every layout that a type may come in gives the same layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import NAMES, Arrays, load

import mxfp4moe as mx
from mxfp4moe import checkpoint
from mxfp4moe.checkpoint import ExpertWeights
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._names import Block
from mxfp4moe.checkpoint.model_folder import ModelFolder as Folder
from mxfp4moe.checkpoint.model_type import FusedLayout, Names
from mxfp4moe.checkpoint.models import read_model

OWN_READERS = ("gpt_oss", "inkling_text")  # whose experts no style alone describes


def cases() -> Iterator[tuple[str, int, str]]:
    """Type, number of the style of names, and layout: of a tensor for each matrix, or of fused ones."""
    for name in NAMES:
        row = checkpoint.get_model_type(load(name).config["model_type"])
        for style, names in enumerate(row.names):
            if name not in OWN_READERS:
                yield name, style, "matrices"
                yield from ((name, style, f"fused {i}") for i in range(len(names.layouts)))


def matrices(experts: ExpertWeights) -> list[np.ndarray]:
    """Gate, up and down, or up and down, of all experts in bfloat16."""
    w13, down = experts.arrays["w13"], np.stack(list(experts.arrays["w2"]))
    if isinstance(w13, tuple):
        return [*(np.stack(part) for part in w13), down]
    stacked = np.stack(list(w13))
    if not experts.arrays.get("gated", True):
        return [stacked, down]
    return [*np.split(stacked, 2, axis=1), down]


def fused(names: Names, layout: FusedLayout, parts: list[np.ndarray]) -> list[np.ndarray]:
    """The tensors of `Names.fused` in a layout."""
    *first, down = parts
    if len(names.fused) == 2 and len(first) == 2:
        first = [np.concatenate(first, axis=1)]
    turns_down = layout.is_transposed if layout.is_down_transposed is None else layout.is_down_transposed
    tensors = [each.swapaxes(1, 2) if layout.is_transposed else each for each in first]
    tensors.append(down.swapaxes(1, 2) if turns_down else down)
    return [np.ascontiguousarray(t).reshape(-1, t.shape[-1]) if layout.is_flat else t for t in tensors]


@pytest.mark.parametrize(("name", "style", "storage"), list(cases()))
def test_style_gives_the_same_layer(tmp_path: Path, name: str, style: int, storage: str) -> None:
    model = load(name)
    published = model.write(tmp_path / "published")
    facts = read_model(Config.read(published / "config.json"))
    description: Any = checkpoint.read_layer(published, model.layer)
    names = facts.names[style]
    old = facts.find_block(Folder(published), model.layer)
    # The prefixes go with any style: here the last one.
    new = Block(facts.layers[-1].format(layer=model.layer), names)
    tensors: Arrays = {f"{new.router}.weight": model.tensors[f"{old.router}.weight"]}
    for argument in (*facts.tensors, *facts.rule(model.layer).tensors):
        tensors[new.tensor(argument)] = model.tensors[old.tensor(argument)]
    experts = matrices(description.experts)
    if storage == "matrices":
        for expert in range(facts.num_experts):
            for full, part in zip(new.expert_matrices(expert), experts, strict=True):
                tensors[f"{full}.weight"] = part[expert]
        shared_names = [f"{full}.weight" for full in new.shared_matrices()]
    else:
        layout = names.layouts[int(storage.split()[1])]
        tensors |= dict(zip(new.fused, fused(names, layout, experts), strict=True))
        shared_names = list(new.shared_fused)
    if description.shared_experts is not None:
        shared = [part[0] for part in matrices(description.shared_experts)]
        if len(shared_names) < len(shared):
            shared = [np.concatenate(shared[:-1]), shared[-1]]
        tensors |= dict(zip(shared_names, shared, strict=True))
    tensors = {full: np.ascontiguousarray(array) for full, array in tensors.items()}
    folder = model._replace(tensors=tensors).write(tmp_path / "rewritten")
    expected, got = (mx.MoELayer.from_checkpoint(path, layer=model.layer) for path in (published, folder))
    assert got == expected
