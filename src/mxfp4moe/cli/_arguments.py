"""What the subcommands share to declare their arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mxfp4moe._arguments import join_choices
from mxfp4moe.config import MAX_THREADS
from mxfp4moe.experts.quantizing import QUANTIZE_FORMATS
from mxfp4moe.formats import GROUP_MULTIPLE

if TYPE_CHECKING:
    from mxfp4moe.checkpoint import Checkpoint

_WHOLE_ROW = -1
"""The group size that says so, as in other software."""


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is an integer of at least `minimum` and at most `maximum`."""
    expected = f"of at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"

    def integer(text: str) -> int:
        value = int(text)
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"expected an integer {expected}, got {value}")
        return value

    return integer


_UNITS = {"": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("", 1024), ("B", 1000), ("iB", 1024))
}
"""The bytes of each unit, by its name in the usual spelling."""


def num_bytes(text: str) -> int:
    """The type of an argument that is a number of bytes, such as 500MB, 1.5GB, 8GiB or 8G (which is 8GiB)."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([a-z]*)", text, re.ASCII | re.IGNORECASE)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if not found or found[2].lower() not in units or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(
            f"expected a number of bytes above 0, such as 8GB or 8GiB, got {text!r}"
        )
    return max(1, int(float(found[1]) * units[found[2].lower()]))


def name(text: str) -> str:
    """The type of an argument that is one of several names: upper case is as good as lower case."""
    return text.lower()


def path_or_dash(text: str) -> Path | Literal["-"]:
    """The type of an argument that is a path, or - for a standard stream; a file of that name is ./-."""
    return "-" if text == "-" else Path(text)


def add_alias(parser: argparse.ArgumentParser, alias: str, option: str, **how: Any) -> None:
    """Accept `alias` for the flag `option`, which was added with the same `how`; help does not show it."""
    attribute = option.lstrip("-").replace("-", "_")
    parser.add_argument(alias, dest=attribute, help=argparse.SUPPRESS, **how)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the number of threads, by default None, which `mxfp4moe.cli.main` sets for the whole command."""
    how: dict[str, Any] = {"type": integer(1, MAX_THREADS), "metavar": "N"}
    parser.add_argument(
        "--threads",
        help=f"Number of threads, from 1 to {MAX_THREADS}. Default: MXFP4MOE_NUM_THREADS, else "
        "OMP_NUM_THREADS, else all processors that this process may use.",
        **how,
    )
    add_alias(parser, "--num-threads", "--threads", **how)


SIZES = {
    "hidden_size": "Length of a hidden state",
    "intermediate_size": "Rows of gate, and of up, of an expert",
    "num_experts": "Number of experts",
    "top_k": "Number of experts of each token",
}


def add_sizes(parser: argparse.ArgumentParser, of_what: str, defaults: Mapping[str, object]) -> None:
    """Add the sizes of a layer, by default None; help says that they have `defaults`."""
    how: dict[str, Any] = {"type": integer(1), "metavar": "N"}
    for size, what in SIZES.items():
        parser.add_argument(flag(size), help=f"{what}{of_what}. Default: {defaults[size]}.", **how)
    add_alias(parser, "--experts", "--num-experts", **how)


def add_layer(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add the number of a layer, by default None: the first that has experts."""
    parser.add_argument(
        "--layer",
        type=integer(0),
        metavar="N",
        help=f"Number of the layer {whose}, counted from 0. Default: the first layer that has experts.",
    )


def chosen_layer(args: argparse.Namespace, model: Checkpoint) -> int:
    """The number that ``--layer`` gives, or that of the first layer of `model` that has experts."""
    if args.layer is not None:
        return int(args.layer)
    if not model.moe_layers:
        raise ValueError(f"{args.checkpoint}: expected a layer that has experts, got none")
    return model.moe_layers[0]


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Add the format that weights are quantized to, by default None."""
    parser.add_argument(
        "--quantize",
        type=name,
        choices=QUANTIZE_FORMATS,
        metavar="FORMAT",
        help="Quantize the routed experts while they are read, if they are bfloat16, float16 or float32, to "
        f"{join_choices(QUANTIZE_FORMATS)}. Default: leave them as they are (float16 and float32 become "
        "bfloat16).",
    )


def add_quantize_dense(parser: argparse.ArgumentParser) -> None:
    """Add the format that all matrices but experts and routers are quantized to, by default None."""
    parser.add_argument(
        "--quantize-dense",
        type=name,
        choices=QUANTIZE_FORMATS,
        metavar="FORMAT",
        help="Quantize attention, layers without experts, shared experts and the head of a whole model while "
        f"they are read, to {join_choices(QUANTIZE_FORMATS)}. Default: leave them as they are (float16 and "
        "float32 become bfloat16).",
    )


def add_group_size(parser: argparse.ArgumentParser) -> None:
    """Add the size of the groups of integers, by default None; `group_size_of` says which it is."""
    parser.add_argument(
        "--group-size",
        type=_group_size,
        metavar="N",
        help=f"How many weights of a row share a scale in int4 and int8: a multiple of {GROUP_MULTIPLE}, or "
        f"{_WHOLE_ROW} for a whole row. Default: {GROUP_MULTIPLE}.",
    )


def group_size_of(value: int | None) -> int | None:
    """The size that --group-size stands for; None is the whole row."""
    return GROUP_MULTIPLE if value is None else None if value == _WHOLE_ROW else value


def _group_size(text: str) -> int:
    value = int(text)
    if value != _WHOLE_ROW and (value < 1 or value % GROUP_MULTIPLE):
        expected = f"expected a multiple of {GROUP_MULTIPLE}, or {_WHOLE_ROW} for a whole row"
        raise argparse.ArgumentTypeError(f"{expected}, got {value}")
    return value


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the seed, by default 0."""
    parser.add_argument(
        "--seed",
        type=integer(0),
        default=0,
        metavar="N",
        help="Seed of all random numbers. Default: %(default)s.",
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flag to print `what` as JSON."""
    parser.add_argument(
        "--json", action="store_true", help=f"Print {what} as JSON. Default: print it as text."
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the flag to replace what is there."""
    parser.add_argument(
        "--force",
        action="store_true",
        help="Replace a model folder at DST. Default: an existing DST is an error.",
    )


def flag(option: str) -> str:
    """The flag of the argument whose attribute is `option`."""
    return "--" + option.replace("_", "-")
