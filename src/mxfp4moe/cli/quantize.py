"""``mxfp4moe quantize``: the expert weights of a checkpoint to 4 or 8 bits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._arguments import add_force, add_group_size, add_json, add_threads, name
from mxfp4moe.experts.quantizing import QUANTIZE_FORMATS
from mxfp4moe.quantize._common import ScaleRule

_DESCRIPTION = """\
Writes a copy of a model folder whose expert weights are quantized, as safetensors files that other software
reads: the layout of compressed-tensors, of DeepSeek-V3 (fp8_block) or of gpt-oss. No data is needed for
calibration. All other tensors, those of shared experts included, and all other files such as the tokenizer,
are copied unchanged.
"""


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a copy of a model folder with its experts in 4 or 8 bits",
        description=_DESCRIPTION,
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="A Hugging Face model folder.")
    parser.add_argument("destination", metavar="DST", type=Path, help="The folder to write.")
    parser.add_argument(
        "--format",
        type=name,
        choices=QUANTIZE_FORMATS,
        default="mxfp4",
        help="Format of the quantized weights; fp8_block has a scale for each 128 x 128. "
        "Default: %(default)s.",
    )
    parser.add_argument(
        "--layout",
        type=name,
        choices=("compressed-tensors", "gpt-oss"),
        help="Names and shapes of the quantized tensors. Default: gpt-oss for gpt-oss models in mxfp4, "
        "compressed-tensors for others.",
    )
    parser.add_argument(
        "--scale-rule",
        type=name,
        choices=get_args(ScaleRule),
        help="How the scales of mxfp4 and mxfp8 are rounded to powers of two. Default: floor.",
    )
    add_group_size(parser)
    add_force(parser)
    add_json(parser, "the summary")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize the checkpoint."""
    from mxfp4moe.cli._output import check_destination, check_free_space, model_folder
    from mxfp4moe.cli._quantize.folder import Quantization
    from mxfp4moe.cli._quantize.options import Options

    begin = perf_counter()
    check_destination(args.destination, args.source, args.force)
    plan = Quantization(args.source, Options(args.format, args.layout, args.scale_rule, args.group_size))
    check_free_space(args.destination, plan.nbytes)
    progress = ProgressBar("quantizing", plan.source_bytes)
    with model_folder(args.destination, args.source, args.force) as folder:
        plan.write(folder, progress.advance)
    summary = {
        "source": str(args.source),
        "destination": str(args.destination),
        "format": args.format,
        "layout": plan.layout,
        "num_quantized": plan.num_quantized,
        "source_bytes": plan.source_bytes,
        "bytes": plan.nbytes,
        "seconds": round(perf_counter() - begin, 3),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{args.destination}: {plan.num_quantized} tensors quantized to {args.format}, "
            f"{plan.source_bytes / 1e6:.1f} MB -> {plan.nbytes / 1e6:.1f} MB in {summary['seconds']:.1f} s"
        )
    return 0
