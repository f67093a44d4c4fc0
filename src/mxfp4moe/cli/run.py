"""``mxfp4moe run``: one layer of a checkpoint on hidden states from a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mxfp4moe.cli._arguments import add_threads, integer
from mxfp4moe.experts.quantizing import QUANTIZE_FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DESCRIPTION = """\
Computes one layer of a checkpoint. The input is a .npy file of float32, float16 or bfloat16 hidden states of
shape (..., hidden_size); bfloat16 as np.save writes arrays of ml_dtypes.bfloat16 (dtype V2). The output has
its dtype and shape.
"""


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="compute one layer of a checkpoint on hidden states from a .npy file",
        description=_DESCRIPTION,
    )
    path = "a model folder, a GGUF file, a packed file or folder"
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help=path)
    parser.add_argument(
        "--layer", type=integer(0), metavar="N", help="which layer (the first that has experts)"
    )
    parser.add_argument("--input", type=Path, required=True, metavar="X.npy", help="hidden states")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="Y.npy", help="where to write the result"
    )
    parser.add_argument(
        "--input-ids", type=Path, metavar="IDS.npy", help="token ids, for layers that route by them"
    )
    parser.add_argument(
        "--quantize", choices=QUANTIZE_FORMATS, help="quantize bfloat16 experts while they are read"
    )
    add_threads(parser, "--num-threads")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compute the layer and write the result."""
    import numpy as np

    from mxfp4moe import checkpoint
    from mxfp4moe._files import atomic_file, check_target
    from mxfp4moe.layer import MoELayer

    check_target(args.output)  # before all is computed
    hidden_states = _read_array(args.input)
    input_ids = None if args.input_ids is None else _read_array(args.input_ids)
    model = checkpoint.open(args.checkpoint)
    if args.layer is None and not model.moe_layers:
        raise ValueError(f"{args.checkpoint}: expected a layer that has experts, got none")
    number = model.moe_layers[0] if args.layer is None else args.layer
    layer = MoELayer._of_description(model.read_layer(number), args.quantize, None)
    try:
        result = layer(hidden_states, input_ids, num_threads=args.num_threads)
    except (TypeError, ValueError) as error:
        files = f"{args.input}" + (f", {args.input_ids}" if args.input_ids else "")
        raise ValueError(f"{files}: {error}") from None
    with atomic_file(args.output) as file:
        # Given a file, np.save writes past it and does not notice a full disk.
        np.save(SimpleNamespace(write=file.write), result)
    return 0


def _read_array(path: Path) -> NDArray[Any]:
    import ml_dtypes
    import numpy as np

    from mxfp4moe._json import check_regular_file

    check_regular_file(path)
    try:
        array = np.load(path, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged header makes NumPy raise
        raise ValueError(f"{path}: expected an array in a .npy file, got {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: expected an array in a .npy file, got an archive of arrays")
    # np.save loses the name of dtypes that are not NumPy's own.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
