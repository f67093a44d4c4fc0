"""``mxfp4moe run``: one layer of a checkpoint on hidden states from a file."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mxfp4moe.cli._arguments import add_layer, add_quantize, add_threads, chosen_layer, flag, path_or_dash
from mxfp4moe.cli._streams import is_null

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DESCRIPTION = """\
Computes one layer of a checkpoint. Input and output are .npy files; a path that is - is the standard input or
the standard output. The input holds hidden states of shape (..., hidden_size) in float32, float16 or
bfloat16, the latter as np.save writes arrays of ml_dtypes.bfloat16 (dtype V2). The output has the same dtype
and shape.
"""

_OTHERS = {
    "input_ids": "Token ids, for layers that route by them. Default: none.",
    "router_hidden_states": "What the router reads, if that is not --input. Default: none.",
}
"""Further arguments of a layer, by name."""


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="compute one layer of a checkpoint on hidden states from a .npy file",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="A model folder, a GGUF file, a packed file or a packed folder. Required.",
    )
    add_layer(parser, "in the model")
    for option, what in (
        ("--input", "The hidden states. Required."),
        ("--output", "Where to write the result. Required."),
    ):
        parser.add_argument(option, type=path_or_dash, required=True, metavar="FILE", help=what)
    for name, what in _OTHERS.items():
        parser.add_argument(flag(name), type=path_or_dash, metavar="FILE", help=what)
    add_quantize(parser)
    add_threads(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Compute the layer and write the result."""
    from mxfp4moe import checkpoint
    from mxfp4moe._files import check_target
    from mxfp4moe.layer import MoELayer

    inputs = {name: path for name in ("input", *_OTHERS) if (path := getattr(args, name)) is not None}
    first, *more = [name for name, path in inputs.items() if path == "-"] or [""]
    if more:
        expected = f"expected a file, for {flag(first)} is the standard input already"
        args.parser.error(f"argument {flag(more[0])}: {expected}")
    if args.output == "-":  # before all is computed
        _check_stdout()
    else:
        check_target(args.output)
    arrays: dict[str, Any] = {name: _read_array(path) for name, path in inputs.items()}
    model = checkpoint.open(args.checkpoint)
    description = model.read_layer(chosen_layer(args, model))
    layer = MoELayer._of_description(description, args.quantize, str(args.checkpoint))
    try:
        result = layer(arrays.pop("input"), **arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{', '.join(map(_name, inputs.values()))}: {error}") from None
    _write_array(args.output, result)
    return 0


def _name(path: Path | str) -> str:
    return "standard input" if path == "-" else str(path)


def _read_array(path: Path | str) -> NDArray[Any]:
    import ml_dtypes
    import numpy as np

    from mxfp4moe._json import check_regular_file

    if isinstance(path, Path):
        check_regular_file(path)
        file: Path | BytesIO = path
    else:
        file = BytesIO(sys.stdin.buffer.read())  # for np.load seeks
    try:
        array = np.load(file, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged header makes NumPy raise
        raise ValueError(f"{_name(path)}: expected an array in a .npy file, got {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{_name(path)}: expected an array in a .npy file, got an archive of arrays")
    # np.save loses the name of dtypes that are not NumPy's own.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _check_stdout() -> None:
    if sys.stdout.isatty() or is_null(sys.stdout):
        got = "a terminal" if sys.stdout.isatty() else "a closed one"
        raise ValueError(f"--output -: expected the standard output to be a file or a pipe, got {got}")


def _write_array(path: Path | str, array: NDArray[Any]) -> None:
    import numpy as np

    from mxfp4moe._files import atomic_file

    with nullcontext(sys.stdout.buffer) if path == "-" else atomic_file(Path(path)) as file:
        # Given a file, np.save writes past it and does not notice a full disk.
        np.save(SimpleNamespace(write=file.write), array)
