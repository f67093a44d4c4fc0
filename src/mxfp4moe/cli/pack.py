"""``mxfp4moe pack``: every layer that has experts to a packed file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._arguments import add_force, add_json, add_quantize, add_threads

_DESCRIPTION = """\
Packs every layer that has experts, once and for all: the folder that is written is loaded in milliseconds,
and processes that load it share one copy. MoELayer.from_checkpoint, load_layers and the other commands read
it like any checkpoint.
"""


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "pack",
        help="write every layer of a checkpoint to memory-mapped packed files",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="A model folder, a GGUF file or a packed folder."
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="The folder to write.")
    add_quantize(parser)
    add_force(parser)
    add_json(parser, "the summary")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Pack the checkpoint."""
    from mxfp4moe import checkpoint
    from mxfp4moe.checkpoint.packed import layer_file_name, write_index
    from mxfp4moe.cli._output import check_destination, check_free_space, model_folder
    from mxfp4moe.layer import MoELayer

    begin = perf_counter()
    check_destination(args.destination, args.source, args.force)
    model = checkpoint.open(args.source)
    if not model.moe_layers:
        raise ValueError(f"{args.source}: expected layers that have experts, got none")
    num_bytes, infos = 0, [model.describe_layer(layer) for layer in model.moe_layers]
    if args.quantize is None:
        check_free_space(args.destination, sum(info.nbytes for info in infos))
    progress = ProgressBar("packing", len(infos), f"{len(infos)} layers")
    with model_folder(args.destination, args.source, args.force) as folder:
        for number in model.moe_layers:
            layer = MoELayer._of_description(model.read_layer(number), args.quantize, str(args.source))
            path = folder / layer_file_name(number)
            layer.save(path)
            del layer  # before the next one is read
            num_bytes += path.stat().st_size
            progress.advance(1)
        write_index(folder, model)
    summary = {
        "source": str(args.source),
        "destination": str(args.destination),
        "layers": list(model.moe_layers),
        "bytes": num_bytes,
        "seconds": round(perf_counter() - begin, 3),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{args.destination}: {len(infos)} layers, {num_bytes / 1e6:.1f} MB in {summary['seconds']:.1f} s"
        )
    return 0
