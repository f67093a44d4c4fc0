"""Files with structural changes behind right checksums: an error that names the file, or a layer that works.

The five kinds are safetensors, the configurations and indexes of model folders, GGUF, packed files and packed
folders. What is read is called and compared with float64, whatever the file said; where the change means
nothing the result must be the same bits as before.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from packed_examples import activation_of

import mxfp4moe as mx
from fuzz import float64
from fuzz.bounded import Bounded, add, exactly, misses, multiply
from fuzz.cases import Campaign, Case, Rng
from fuzz.examples import KINDS, Example
from mxfp4moe.cli import main

ERRORS = (TypeError, ValueError, OSError)
MAX_MESSAGE = 2000
NUM_TOKENS = 3


def _prepare(folder: Path) -> Case:
    examples = {}
    for kind, make in KINDS.items():
        (folder / kind).mkdir()
        examples[kind] = list(make(folder / kind))
    expected = {id(e): run(e.read(folder / kind / e.path)) for kind in KINDS for e in examples[kind]}

    files: dict[str, list[tuple[Path, Example, str]]] = {}
    for kind in KINDS:
        for example in examples[kind]:
            for file in example.files:
                label = kind if kind != "folders" else Path(file).suffix[1:]
                files.setdefault(label, []).append((folder / kind, example, file))

    def case(rng: Rng) -> str:
        label = list(files)[rng.integers(len(files))]
        where, example, file = files[label][rng.integers(len(files[label]))]
        return f"{label}: {_try(rng, where, example, file, expected[id(example)])}"

    return case


def _try(rng: Rng, folder: Path, example: Example, file: str, expected: bytes) -> str:
    path, document = folder / file, example.documents[file]
    how = rng.random()
    path.unlink()  # mapped bytes must not change under their readers
    try:
        if how < 0.1:
            path.write_bytes(document.vary(rng))
        elif how < 0.14:
            damage(rng, path, example)
        else:
            path.write_bytes(document.mutate(rng))
        outcome = _outcome(folder, example, expected, same=how < 0.1)
        if rng.random() < 0.03:
            check_commands(folder / example.path, outcome)
    finally:
        restore(path, example.files[file])
    return outcome


def damage(rng: Rng, path: Path, example: Example) -> None:
    """Something else in place of the file, or nothing."""
    content = example.files[list(example.files)[rng.integers(len(example.files))]]
    match rng.integers(9):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to(path.name)
        case 2:
            os.mkfifo(path)
        case 3:
            path.write_bytes(b"")
        case 4:
            path.write_bytes(content)  # of another file, perhaps
        case 5:
            path.write_bytes(content[: rng.integers(len(content))])
        case 6:
            path.write_bytes(content + b"\0" * int(rng.integers(1, 5000)))
        case 7:
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _outcome(folder: Path, example: Example, expected: bytes, same: bool) -> str:
    try:
        read = example.read(folder / example.path)
    except ERRORS as error:
        assert not same, f"refused although nothing has changed: {error}"
        message = str(error)
        named = str(folder / example.path) in message or message.startswith("layer: expected")
        assert named, f"the error does not name the file: {error!r}"
        assert len(message) < MAX_MESSAGE, f"a message of {len(message)} characters: {message[:100]}"
        assert "\n" not in message, f"an error of several lines: {error!r}"
        return "refused"
    try:
        result = run(read)
    except mx.PackedFormatError:  # scales of other blocks than the file says
        assert not same
        return "read, cannot unpack"
    except ValueError as error:  # a router with NaN or infinite weights
        argument = str(error).split(":")[0]
        assert not same and argument in ("hidden_states", "router_logits", "logits"), repr(error)
        return "read, cannot route"
    if same:
        assert result == expected, "another result although nothing has changed"
        return "the same"
    return "read, the same result" if result == expected else "read, another result"


def check_commands(path: Path, outcome: str) -> None:
    """The commands end with one line of error, or, if the layer can be read, with what can be read again."""
    _command("inspect", str(path))
    for name in ("pack", "quantize"):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, "written")
            if _command(name, str(path), str(written)) == 0:
                model = mx.checkpoint.open(written)
                for layer in model.moe_layers:
                    model.describe_layer(layer)
                shutil.rmtree(written)
            left = os.listdir(folder)
            assert not left, f"left by {name} of what was {outcome}: {left}"


def _command(*arguments: str) -> int:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(arguments)
    lines = errors.getvalue().splitlines()
    assert status == 0 or (status == 1 and len(lines) == 1 and lines[0].startswith("mxfp4moe: error: ")), (
        lines
    )
    return status


def run(read: Any) -> bytes:
    """The result of a call, checked."""
    if isinstance(read, mx.PackedExperts):
        return run_experts(read)
    if isinstance(read, mx.PackedLinear):
        return run_linear(read)
    return run_layer(read)


def run_linear(linear: mx.PackedLinear) -> bytes:
    hidden = _hidden_states(linear.shape[1])
    result = linear(hidden)
    compare(result, float64.linear(hidden, linear.arguments()))
    return result.tobytes()


def run_experts(experts: mx.PackedExperts) -> bytes:
    hidden = _hidden_states(experts.hidden_size)
    weights = np.full((NUM_TOKENS, 2), 0.5, np.float32)
    ids = np.arange(2 * NUM_TOKENS).reshape(NUM_TOKENS, 2) % experts.num_experts
    activation = activation_of(experts)
    result = mx.fused_experts(hidden, experts, weights, ids, activation=activation)
    options = float64.Options(activation)
    compare(result, float64.fused_experts(hidden, experts.arguments(), weights, ids, options))
    return result.tobytes()


def run_layer(layer: mx.MoELayer) -> bytes:
    hidden = _hidden_states(layer.hidden_size)
    input_ids = np.zeros(NUM_TOKENS, np.int64)
    weights, ids = layer.choose(layer.router_logits(hidden), input_ids)
    result = layer(hidden, input_ids)
    options = float64.Options(layer.activation, layer.alpha, layer.limit)
    expected = float64.fused_experts(hidden, layer.experts.arguments(), weights, ids, options)
    with np.errstate(all="ignore"):
        expected = multiply(
            expected, exactly(np.full(expected.value.shape, np.float32(layer.routed_scaling_factor)))
        )
        if layer.shared_experts is not None:
            ones, zeros = np.ones((NUM_TOKENS, 1), np.float32), np.zeros((NUM_TOKENS, 1), np.int64)
            shared = layer.shared_experts.arguments()
            expected = add(
                expected,
                float64.fused_experts(
                    hidden, shared, ones, zeros, options._replace(limit=layer.shared_limit)
                ),
            )
    compare(result, expected)
    return result.tobytes()


def compare(result: np.ndarray, expected: Bounded) -> None:
    wrong = misses(result, float64.stored(expected, result.dtype))
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} values are wrong"


def _hidden_states(size: int) -> np.ndarray:
    assert size < 1 << 20, f"hidden size {size} from a file of at most some megabytes"
    return np.cos(np.arange(NUM_TOKENS * size, dtype=np.float32) ** 2).reshape(NUM_TOKENS, size)


FILES = Campaign("files", _prepare, max_bytes=1 << 30)
