"""The options of the commands that generate text."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxfp4moe.cli._arguments import (
    add_quantize,
    add_quantize_dense,
    add_seed,
    add_threads,
    integer,
    name,
    num_bytes,
)

if TYPE_CHECKING:
    from mxfp4moe.experts.activation_format import ActivationFormat
    from mxfp4moe.model.causal_lm import CausalLM

DEFAULT_TOKENS = 256
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""What Open MPI and MPICH call the number of ranks."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model and how it is loaded."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="PATH",
        help="A model folder, or a packed folder of a whole model. Required.",
    )
    add_quantize(parser)
    add_quantize_dense(parser)
    parser.add_argument(
        "--activation-format",
        type=name,
        choices=("bfloat16", "int8"),
        default="bfloat16",
        metavar="FORMAT",
        help="What activations are rounded to, bfloat16 or int8. For int8 the experts must be in mxfp4, "
        "nvfp4, int4 or int8; other matrices are computed so if they are in one of these. It is faster "
        "without AMX, and less exact. Default: bfloat16.",
    )
    parser.add_argument(
        "--memory-limit",
        type=num_bytes,
        metavar="BYTES",
        help="The most that the experts of a packed folder take in memory, such as 8GB or 8GiB; others are "
        "read when they are needed. Default: files are mapped, and the system decides.",
    )
    add_threads(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add how long an answer is and how its tokens are chosen."""
    parser.add_argument(
        "--system", metavar="TEXT", help="The system message of the conversation. Default: none."
    )
    parser.add_argument(
        "--max-new-tokens",
        type=integer(1),
        metavar="N",
        help="End an answer after so many tokens. "
        f"Default: {DEFAULT_TOKENS}, or fewer if the context of the model ends before.",
    )
    for option, default, what in (
        ("--temperature", 0.0, "What divides the logits; 0 takes the likeliest token each time"),
        ("--top-p", 1.0, "Draw from the likeliest tokens that together are so probable"),
        ("--min-p", 0.0, "Draw from tokens that are at least so probable, relative to the likeliest one"),
    ):
        parser.add_argument(
            option, type=_number(option), default=default, metavar="X", help=f"{what}. Default: %(default)s."
        )
    parser.add_argument(
        "--top-k",
        type=integer(1),
        metavar="N",
        help="Draw from so many likeliest tokens. Default: all of the vocabulary.",
    )
    add_seed(parser)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="End an answer before this text (with --ids: after this id); may be given several times. "
        "Default: the tokens that the model ends its texts with.",
    )


def _number(option: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        top = {"--temperature": 1e6}.get(option, 1.0)
        if not 0 <= value <= top or (option == "--top-p" and value == 0):
            raise argparse.ArgumentTypeError(f"expected a number from 0 to {top:g}, got {text}")
        return value

    return number


def load_model(args: argparse.Namespace) -> CausalLM:
    """Load the model."""
    from mxfp4moe.model.causal_lm import CausalLM

    if args.memory_limit is not None:
        return CausalLM.open(
            args.checkpoint, memory_limit=args.memory_limit, activation_format=_activation_format(args)
        )
    return CausalLM.from_checkpoint(
        args.checkpoint,
        quantize=args.quantize,
        quantize_dense=args.quantize_dense,
        activation_format=_activation_format(args),
    )


def _activation_format(args: argparse.Namespace) -> ActivationFormat | None:
    return None if args.activation_format == "bfloat16" else args.activation_format


def num_started_ranks() -> int:
    """How many processes mpirun or srun has started this one with."""
    names = (*_SIZES, "SLURM_NTASKS") if {"PMIX_RANK", "PMI_RANK"} & os.environ.keys() else _SIZES
    sizes = [os.environ[name] for name in names if os.environ.get(name, "").isdecimal()]
    return int(sizes[0]) if sizes else 1


def with_model(args: argparse.Namespace, use: Callable[[CausalLM], int]) -> int:
    """Load the model and use it. Of several ranks, which mpirun starts, rank 0 uses it with all of them."""
    for option in ("quantize", "quantize_dense"):
        if args.memory_limit is not None and getattr(args, option) is not None:
            name = option.replace("_", "-")
            args.parser.error(f"argument --{name}: expected none with --memory-limit, for a packed folder")
    if num_started_ranks() == 1:
        return use(load_model(args))
    from mxfp4moe.mpi.whole_model import RankError, Ranks

    try:
        ranks = Ranks(_activation_format(args))
        if ranks.rank:
            ranks.serve(args.checkpoint, args.quantize, args.memory_limit)
            return 0
        with ranks.model(args.checkpoint, args.quantize, args.quantize_dense, args.memory_limit) as lm:
            return use(lm)
    except RankError as error:
        raise ValueError(str(error)) from error


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `CausalLM.generate` that say how tokens are chosen."""
    return {key: getattr(args, key) for key in ("temperature", "top_p", "top_k", "min_p", "seed")}


def num_new_tokens(args: argparse.Namespace, lm: CausalLM, length: int) -> int:
    """How many tokens are generated after `length` tokens."""
    if args.max_new_tokens is not None:
        return int(args.max_new_tokens)
    return max(1, min(DEFAULT_TOKENS, lm.max_positions - length))
