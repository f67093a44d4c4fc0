"""Small models in every format that the package reads, each file as a document that can be changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gguf_models
import integer_storages
import numpy as np
import quantized_folders
from checkpoints import (
    MODELS,
    Written,
    gguf_blocks,
    load_golden,
    mixtral_weights,
    qwen3,
    qwen3_weights,
)
from matrices import MATRICES, random_matrix
from packed_examples import FORMATS, ROUTINGS, SPECIAL_FORMATS, make_experts, make_layer
from quantized_storages import STORAGES

import mxfp4moe as mx
from fuzz.documents import BLOCKS, Document, Gguf, Json, Packed, Safetensors, gguf_tensor

NUM_EXPERTS = 4


class Example(NamedTuple):
    """A model on disk: its path in the folder, its files, and how it is read."""

    name: str
    path: str
    files: dict[str, bytes]
    documents: dict[str, Document]
    read: Callable[[Path], Any]
    """A MoELayer or PackedExperts from the path of the model."""


# --- Hugging Face folders -----------------------------------------------------------------------------------


def few_experts(written: Written) -> Written:
    """The same model with four experts, so that a case takes little time."""
    config = json.loads(json.dumps(written.config))
    text = config.get("text_config", config)
    field = next(name for name in ("num_experts", "num_local_experts", "n_routed_experts") if name in text)
    before, text[field] = text[field], NUM_EXPERTS
    text["num_experts_per_tok"] = 2
    text |= {name: 2 for name in ("n_group", "topk_group") if name in text}
    tensors = {}
    for name, array in written.tensors.items():
        expert = re.search(r"\.experts\.(?:\w+\.)?(\d+)\.", name)
        if expert is not None and int(expert[1]) >= NUM_EXPERTS:
            continue
        if "tid2eid" in name:
            array = array[:, :2] % NUM_EXPERTS
        elif expert is None and "shared" not in name and array.shape[0] == before:
            array = array[:NUM_EXPERTS]
        tensors[name] = np.ascontiguousarray(array)
    return written._replace(config=config, tensors=tensors)


def model_folders(folder: Path) -> Iterator[Example]:
    """Folders with models of every family and every quantization, in one file or in two with an index."""
    models = {
        name: make for name, make in MODELS.items() if not name.startswith("mixtral") or "fused" in name
    }
    models |= {f"qwen3 {name}": partial(qwen3, store) for name, store in STORAGES.items()}
    models |= {f"integers {name}": partial(_integers, name) for name in integer_storages.CASES}
    for number, (name, make) in enumerate(models.items()):
        written, path = few_experts(make()), folder / re.sub(r"[ :,]+", "-", name)
        written.write(path, 1 + number % 2)
        files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(path.iterdir())}
        yield Example(name, path.name, files, _documents(files), _layer_reader(written.layer))
    yield from _folders_of_others(folder)


def _folders_of_others(folder: Path) -> Iterator[Example]:
    """As other software writes them: a configuration in a file of its own, or of several kinds of input."""
    for name in quantized_folders.NAMES:
        stored = quantized_folders.load(name)
        path = stored.write(folder / name)
        if path.is_file():  # GGUF, of which there are others
            continue
        files = {f"{name}/{file}": content for file, content in stored.files.items()}
        yield Example(name, name, files, _documents(files), _layer_reader(stored.layer))


def _integers(name: str) -> Written:
    return integer_storages.written(integer_storages.CASES[name], (NUM_EXPERTS, 64, 128))[0]


def _layer_reader(number: int) -> Callable[[Path], mx.MoELayer]:
    return lambda path: mx.MoELayer.from_checkpoint(path, number)


def _documents(files: dict[str, bytes]) -> dict[str, Document]:
    kinds: dict[str, Callable[[bytes], Document]] = {
        ".json": Json,
        ".safetensors": Safetensors,
        ".packed": Packed,
    }
    return {name: kinds[Path(name).suffix](content) for name, content in files.items()}


# --- GGUF ---------------------------------------------------------------------------------------------------


def gguf_files(folder: Path) -> Iterator[Example]:
    for name, kind in (
        ("llama", 39),
        ("llama", 30),
        ("qwen3moe", 39),
        ("qwen3moe", 0),
        ("gpt-oss", 39),
        ("gpt-oss", 1),
    ):
        document = _gguf(name, kind)
        file = f"{name}-{kind}.gguf"
        files, documents = {file: document.content()}, {file: document}
        (folder / file).write_bytes(files[file])
        yield Example(f"gguf {name} type {kind}", file, files, documents, _layer_reader(0))
    for name, kinds in BLOCK_FILES.items():
        document, file = _gguf_of_blocks(kinds), f"blocks-{name}.gguf"
        files, documents = {file: document.content()}, {file: document}
        (folder / file).write_bytes(files[file])
        yield Example(f"gguf {name}", file, files, documents, _layer_reader(0))
    for name in ("deepseek2", "mistral4", "step35"):
        document, file = _gguf_model(name), f"{name}.gguf"
        files, documents = {file: document.content()}, {file: document}
        (folder / file).write_bytes(files[file])
        yield Example(f"gguf {name}", file, files, documents, _layer_reader(gguf_models.LAYER))


def _gguf_model(name: str) -> Gguf:
    """A layer with more options than those of the golden files have."""

    def typed(value: Any) -> list[Any]:
        if isinstance(value, list):
            return [9, [typed(value[0])[0], value]]
        return [{bool: 7, int: 4, float: 6}[type(value)], value]

    metadata: list[Any] = [["general.architecture", 8, name]]
    metadata += [[f"{name}.{key}", *typed(value)] for key, value in gguf_models.metadata(name).items()]
    stored = gguf_models.stored(name)
    kinds = {key: 0 if array.dtype == np.float32 else 30 for key, array in stored.items()}
    described = {key: gguf_tensor(array, kinds[key]) for key, array in stored.items()}
    tree = {
        "version": 3,
        "metadata": metadata,
        "tensors": [[key, *entry] for key, (entry, _) in described.items()],
    }
    return Gguf(tree, {key: data for key, (_, data) in described.items()})


INTEGER_TYPES = (2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23)  # Q4_0 to Q6_K, IQ4_NL, IQ4_XS
BLOCK_FILES = {
    **{f"type-{kind}": (kind, kind, kind) for kind in INTEGER_TYPES},
    "Q4_K-and-Q6_K": (12, 12, 14),
    "mixed": (11, 7, 39),
    "nvfp4": (40, 40, 40),
}
"""Types of gate, up and down."""
FLOATS_AT = {3: (0, 2), 7: (0, 2), 10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2), 14: (208,)}
"""Where blocks have float16 numbers, if not at their beginning alone."""


def _gguf_of_blocks(kinds: tuple[int, int, int]) -> Gguf:
    """A layer whose matrices are of these types, as small as the largest block allows."""
    rng = np.random.default_rng(kinds)
    size = max(64, *(BLOCKS[kind][0] for kind in kinds))
    router = rng.standard_normal((NUM_EXPERTS, size), np.float32)
    tensors = {"blk.0.ffn_gate_inp.weight": (router, 0)}
    for part, kind in zip(("gate", "up", "down"), kinds, strict=True):
        blocks = _random_blocks(rng, kind, (NUM_EXPERTS, size, size))
        tensors[f"blk.0.ffn_{part}_exps.weight"] = blocks, kind
    return _gguf_file("qwen3moe", tensors, {"hidden": size, "intermediate": size})


def _random_blocks(rng: np.random.Generator, kind: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Any bytes, with scales such that results are of order 1."""
    elements, nbytes = BLOCKS[kind]
    blocks = rng.integers(256, size=(*shape[:2], shape[2] // elements, nbytes)).astype(np.uint8)
    if kind == 39:
        blocks[..., 0] = rng.integers(118, 124, blocks.shape[:-1])
    elif kind == 40:
        blocks[..., :4] = rng.integers(20, 40, (*blocks.shape[:-1], 4))
    else:
        for begin in FLOATS_AT.get(kind, (0,)):
            scales = rng.uniform(1e-4, 1e-2, blocks.shape[:-1]).astype("<f2")
            blocks[..., begin : begin + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:2], -1)


def _gguf(architecture: str, kind: int) -> Gguf:
    tensors: dict[str, tuple[np.ndarray, int]] = {}
    if architecture == "gpt-oss":
        golden = load_golden("gptoss")
        _, weights = qwen3_weights()
        rng = np.random.default_rng(0)
        shape = {"hidden": 128, "intermediate": 96}
        tensors["blk.0.ffn_gate_inp.bias"] = np.ones(NUM_EXPERTS, np.float32), 0
        for part, size in (("gate", 96), ("up", 96), ("down", 128)):
            tensors[f"blk.0.ffn_{part}_exps.bias"] = rng.standard_normal((NUM_EXPERTS, size), np.float32), 0
        router = rng.standard_normal((NUM_EXPERTS, 128), np.float32)
    else:
        golden, weights = (mixtral_weights if architecture == "llama" else qwen3_weights)()
        shape, router = golden["config"], golden["router_weight"][:NUM_EXPERTS].astype(np.float32)
    tensors["blk.0.ffn_gate_inp.weight"] = router, 0
    for part, matrices in weights.items():
        few = type(matrices)(matrices.codes[:NUM_EXPERTS], matrices.scales[:NUM_EXPERTS])
        tensors[f"blk.0.ffn_{part}_exps.weight"] = _as_type(few, kind), kind
    return _gguf_file(architecture, tensors, shape)


def _gguf_file(architecture: str, tensors: dict[str, tuple[np.ndarray, int]], shape: dict[str, Any]) -> Gguf:
    sizes = {
        "block_count": 2,
        "embedding_length": shape["hidden"],
        "feed_forward_length" if architecture == "llama" else "expert_feed_forward_length": shape[
            "intermediate"
        ],
        "expert_count": NUM_EXPERTS,
        "expert_used_count": 2,
    }
    metadata: list[Any] = [["general.architecture", 8, architecture], ["general.name", 8, "fuzz"]]
    metadata += [[f"{architecture}.{key}", 4, value] for key, value in sizes.items()]
    metadata += [
        ["tokens", 9, [8, ["a", "é"]]],
        ["scores", 9, [6, [0.5, 1.0]]],
        ["nested", 9, [9, [[4, [1]], [4, []]]]],
    ]
    described = {name: gguf_tensor(*tensor) for name, tensor in tensors.items()}
    tree = {
        "version": 3,
        "metadata": metadata,
        "tensors": [[name, *entry] for name, (entry, _) in described.items()],
    }
    return Gguf(tree, {name: data for name, (_, data) in described.items()})


def _as_type(matrices: Any, kind: int) -> np.ndarray:
    if kind == 39:
        return gguf_blocks(matrices)
    values = matrices.values()
    if kind == 30:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({0: np.float32, 1: np.float16}[kind])


# --- packed files -------------------------------------------------------------------------------------------


def packed_files(folder: Path) -> Iterator[Example]:
    rng = np.random.default_rng(0)
    for number, name in enumerate((*FORMATS, *SPECIAL_FORMATS)):
        make_experts(rng, name).save(folder / f"experts-{number}.packed")
        yield _packed_example(folder, f"experts-{number}.packed", name, mx.PackedExperts.open)
    for number, name in enumerate(ROUTINGS):
        make_layer(rng, name, FORMATS[number % len(FORMATS)]).save(folder / f"layer-{number}.packed")
        yield _packed_example(folder, f"layer-{number}.packed", name, mx.MoELayer.open)
    for number, name in enumerate(MATRICES):
        mx.pack_linear(**random_matrix(rng, name, 40, 96)).save(folder / f"linear-{number}.packed")
        yield _packed_example(folder, f"linear-{number}.packed", name, mx.PackedLinear.open)


def _packed_example(folder: Path, file: str, name: str, open_file: Callable[..., Any]) -> Example:
    files = {file: (folder / file).read_bytes()}
    return Example(
        f"packed {name}", file, files, _documents(files), lambda path: open_file(path, verify=True)
    )


def packed_folders(folder: Path) -> Iterator[Example]:
    rng = np.random.default_rng(1)
    path = folder / "packed"
    path.mkdir()
    layers = {"1": "layer-00001.packed", "2": "layer-00002.packed"}
    for number, file in layers.items():
        layer = make_layer(rng, ("qwen", "minimax")[int(number) - 1])
        mx.MoELayer(**layer.arguments() | {"layer_number": int(number)}).save(path / file)
    index = {"packed_layers": 1, "model_type": "mixtral", "num_layers": 3, "layers": layers}
    (path / "packed_layers.json").write_text(json.dumps(index))
    files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(path.iterdir())}
    for number in layers:
        yield Example(
            f"packed folder, layer {number}", "packed", files, _documents(files), _layer_reader(int(number))
        )


KINDS: dict[str, Callable[[Path], Iterator[Example]]] = {
    "folders": model_folders,
    "gguf": gguf_files,
    "packed": packed_files,
    "packed folders": packed_folders,
}
