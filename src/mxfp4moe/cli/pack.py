"""``mxfp4moe pack``: every layer that has experts to a packed file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._arguments import add_force, add_json, add_quantize, add_quantize_dense, add_threads
from mxfp4moe.cli._streams import complain

if TYPE_CHECKING:
    from mxfp4moe.checkpoint import Checkpoint
    from mxfp4moe.model.decoder import Decoder
    from mxfp4moe.model.loading import DecoderLoader

_MAX_IDS = 65_536  # more than any model has experts
_DESCRIPTION = """\
Packs every layer that has experts, once and for all: the folder that is written is loaded in milliseconds,
and processes that load it share one copy. MoELayer.from_checkpoint, load_layers and the other commands read
it like any checkpoint. A model of a type that can be run as a whole is packed as a whole, for CausalLM.open,
generate and chat.
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
    add_quantize_dense(parser)
    parser.add_argument(
        "--experts",
        type=_expert_ids,
        metavar="IDS",
        help="Pack these experts of each layer alone, such as 0-15,40: a slice, for one process of several. "
        "Default: all, and the rest of a whole model.",
    )
    add_force(parser)
    add_json(parser, "the summary")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Pack the checkpoint."""
    from mxfp4moe import checkpoint
    from mxfp4moe.checkpoint.packed import layer_file_name, write_index
    from mxfp4moe.cli._output import check_destination, check_free_space, model_folder
    from mxfp4moe.experts.selection import check_expert_ids
    from mxfp4moe.layer import MoELayer
    from mxfp4moe.layer_description import sliced
    from mxfp4moe.model.files import copy_text_files, write_ends, write_layer

    begin = perf_counter()
    check_destination(args.destination, args.source, args.force)
    model = checkpoint.open(args.source)
    if not model.moe_layers:
        raise ValueError(f"{args.source}: expected layers that have experts, got none")
    ids = None if args.experts is None else check_expert_ids("--experts", args.experts, model.num_experts)
    infos = [model.describe_layer(layer) for layer in model.moe_layers]
    whole, why_not = _find_whole_model(args, model)
    if args.quantize is None and ids is None:
        check_free_space(args.destination, sum(info.nbytes for info in infos))
    numbers = model.moe_layers if whole is None else range(model.num_layers)
    progress = ProgressBar("packing", len(numbers), f"{len(numbers)} layers")
    with model_folder(args.destination, args.source, args.force) as folder:
        if whole is not None:
            write_ends(folder, whole.description, whole.ends())
            copy_text_files(args.source, folder)
        for number in numbers:  # none of which is kept while the next one is read
            if whole is not None:
                write_layer(folder, number, whole.layer(number))
            else:
                description = sliced(model.read_layer(number), ids)
                layer = MoELayer._of_description(description, args.quantize, str(args.source))
                layer.save(folder / layer_file_name(number))
                del layer
            progress.advance(1)
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.packed"))
        write_index(folder, model.model_type, model.num_layers, model.moe_layers)
    if why_not:
        complain(f"the layers that have experts are packed alone: {why_not}")
    summary = {
        "source": str(args.source),
        "destination": str(args.destination),
        "layers": list(model.moe_layers),
        "whole_model": whole is not None,
        "bytes": num_bytes,
        "seconds": round(perf_counter() - begin, 3),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        what = f"{len(numbers)} layers" if whole is None else f"a whole model of {len(numbers)} layers"
        print(f"{args.destination}: {what}, {num_bytes / 1e6:.1f} MB in {summary['seconds']:.1f} s")
    return 0


def _expert_ids(text: str) -> list[int]:
    """Ids and ranges of ids, both ends included, with commas between them."""
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in (first, last or first)):
            raise argparse.ArgumentTypeError(f"expected ids such as 0-15,40, got {text[:40]!r}")
        begin, end = int(first), int(last or first)
        if end < begin or end - begin >= _MAX_IDS or (dash and not last):
            raise argparse.ArgumentTypeError(f"expected ids such as 0-15,40, got {text[:40]!r}")
        ids.extend(range(begin, end + 1))
    return ids


def _find_whole_model(
    args: argparse.Namespace, model: Checkpoint
) -> tuple[DecoderLoader | Decoder | None, str]:
    """What packs the rest of the model too; None, and why, if layers with experts are packed alone."""
    from mxfp4moe.model.loading import find_whole_model

    if args.experts is not None:
        if args.quantize_dense is not None:
            raise ValueError("--quantize-dense: expected no --experts, with which experts are packed alone")
        return None, ""
    try:
        whole = find_whole_model(model, args.quantize, args.quantize_dense)
    except ValueError as error:
        if args.quantize_dense is not None:
            raise
        return None, str(error)
    if whole is None and args.quantize_dense is not None:
        raise ValueError(f"--quantize-dense: expected a whole model of a type that can be run, got {model!r}")
    return whole, ""
