"""``mxfp4moe bench``: how close calls come to what the machine can do, and how others compare."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mxfp4moe._files import atomic_file
from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._arguments import (
    SIZES,
    add_group_size,
    add_seed,
    add_sizes,
    add_threads,
    flag,
    group_size_of,
    integer,
    name,
)
from mxfp4moe.cli._bench.problem import ALIASES, ROUTINGS, SHAPES, Shape

if TYPE_CHECKING:
    from mxfp4moe.cli._bench.contenders import Peer
    from mxfp4moe.cli._bench.report import Result
    from mxfp4moe.experts.activation_format import ActivationFormat
    from mxfp4moe.reference import ExpertArrays

_MODELS = ("gpt-oss-20b", "qwen3-30b-a3b")  # those of _synthetic_model, which takes a while to import
_TOKENS = [1, 4, 16, 64, 256, 1024]
_MIN_SECONDS = 1e-6
_ACTIVATION_FORMATS = ("bfloat16", "int8")


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="time calls against the limits of this machine and against other implementations",
        description="Times fused_experts on random weights, with fresh random routing for each call. Readers "
        "and peak arithmetic run between the calls: they give the roofline of each call, and the best share "
        "of it is shown. Instruction sets and peers take turns on the same routing.",
    )
    parser.add_argument(
        "--shape",
        type=_names,
        default=["gpt-oss-20b"],
        metavar="NAME,...",
        help=f"Models whose layers are timed: {', '.join(SHAPES)}. Default: gpt-oss-20b.",
    )
    parser.add_argument(
        "--format",
        type=_names,
        metavar="NAME,...",
        help="Formats of the weights, or all: mxfp4, mxfp8 (e4m3), nvfp4, fp8_block (128 x 128), bf16, int4, "
        "int8. Default: that of the model.",
    )
    add_group_size(parser)
    add_sizes(parser, "", dict.fromkeys(SIZES, "that of the model"))
    _add_model_options(parser)
    parser.add_argument(
        "--tokens",
        type=_numbers,
        default=_TOKENS,
        metavar="N,...",
        help=f"Numbers of tokens of a call. Default: {','.join(map(str, _TOKENS))}.",
    )
    add_threads(parser)
    parser.add_argument(
        "--isa",
        type=_names,
        metavar="NAME,...",
        help="Instruction sets that take turns, or all. Default: the active one.",
    )
    parser.add_argument(
        "--activation-format",
        type=_names,
        default=["bfloat16"],
        metavar="NAME,...",
        help="What activations are rounded to, bfloat16 or int8; both take turns on each instruction set. "
        "The roofline of int8 is that of products of integers. With --model one of them. Default: bfloat16.",
    )
    parser.add_argument(
        "--routing",
        type=name,
        choices=ROUTINGS,
        default="uniform",
        help="How tokens choose experts: all alike, some more often, or all of them one. "
        "Default: %(default)s.",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="How long each number of tokens is measured, in seconds. Default: 2 seconds.",
    )
    parser.add_argument(
        "--peers",
        type=_names,
        default=[],
        metavar="NAME,...",
        help="Other implementations: numpy, onnxruntime, llama.cpp, or all. Default: none.",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="Write all figures as JSON to FILE, or to the standard output (-) if FILE is left out. Default: "
        "print tables alone.",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="Write a roofline plot of every call; the ending of FILE says its format. Default: no plot.",
    )
    add_seed(parser)
    parser.set_defaults(run=run, parser=parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what whole models have."""
    group = parser.add_argument_group(
        "whole models", "With --model, tokens per second of whole models with random weights are measured."
    )
    group.add_argument(
        "--model",
        type=_names,
        metavar="NAME,...",
        help=f"Models whose widths the measured models have: {', '.join(_MODELS)}. "
        "Default: layers are timed, as --shape says.",
    )
    group.add_argument(
        "--layers",
        type=integer(1),
        metavar="N",
        help="Layers of each model. Default: as many as the memory allows.",
    )
    group.add_argument(
        "--dense",
        type=_names,
        default=["bf16"],
        metavar="NAME,...",
        help="Formats of the matrices beside the experts: bf16, int8, mxfp8, fp8_block. llama.cpp then "
        "has BF16 for bf16 and Q8_0 for the others. Default: bf16.",
    )
    group.add_argument(
        "--context",
        type=_numbers_from_zero,
        default=[0, 1024, 4096],
        metavar="N,...",
        help="Tokens in the cache before the measured ones; 0 stands for 16, the fewest that are measured. "
        "Default: 0,1024,4096.",
    )
    group.add_argument(
        "--prefill",
        type=_numbers,
        default=[512, 2048],
        metavar="N,...",
        help="Lengths of prompts. Default: 512,2048.",
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; 1 if contenders disagree."""
    return _run_layers(args) if args.model is None else _run_models(args)


def _run_models(args: argparse.Namespace) -> int:
    """Measure whole models."""
    from mxfp4moe import __version__, config
    from mxfp4moe.cli._bench import model, models
    from mxfp4moe.cli._bench.llama_cpp_model import LlamaCppModel

    for option in ("shape", "format", *SIZES, "isa", "plot", "tokens", "routing", "group_size"):
        if getattr(args, option) != args.parser.get_default(option):
            args.parser.error(f"argument {flag(option)}: applies to layers, not to --model")
    _check_names(args, "model", args.model, _MODELS)
    _check_names(args, "dense", args.dense, model.DENSE)
    _check_names(args, "activation_format", args.activation_format, _ACTIVATION_FORMATS)
    if len(args.activation_format) > 1:
        args.parser.error("argument --activation-format: expected one of them with --model, got several")
    _check_names(args, "peers", args.peers, ["llama.cpp", "all"])
    with_peer = bool(args.peers) and not (args.peers == ["all"] and LlamaCppModel.missing())
    if with_peer and LlamaCppModel.missing():
        raise ValueError(f"--peers llama.cpp: {LlamaCppModel.missing()}")
    _check_files(args)
    text = sys.stderr if args.json == "-" else sys.stdout
    num_threads = config.resolve_num_threads(args.threads)
    print(f"mxfp4moe {__version__}, {config.active_isa()}, {num_threads} threads", file=text, flush=True)
    results = []
    for title in args.model:
        for result in models.measure(title, args, with_peer):
            print(f"\n{model.format_table(result)}", file=text, flush=True)
            results.append(result)
    if args.json is not None:
        _write_json(args.json, _header(args, num_threads) | {"results": results})
    return 0


def _header(args: argparse.Namespace, num_threads: int) -> dict[str, Any]:
    """What JSON says of the machine and the measurement."""
    from mxfp4moe import __version__, config

    return {
        "mxfp4moe": __version__,
        "config": config.show_config("dicts"),
        "threads": num_threads,
        "seconds": args.seconds,
        "seed": args.seed,
    }


def _run_layers(args: argparse.Namespace) -> int:
    from mxfp4moe import __version__, config
    from mxfp4moe.cli._bench import plot, report

    for option in ("layers", "dense", "context", "prefill"):
        if getattr(args, option) != args.parser.get_default(option):
            args.parser.error(f"argument {flag(option)}: needs --model")
    shapes, isas, peers = _shapes(args), _isas(args), _peers(args)
    _check_activation_formats(args, shapes)
    num_threads = config.resolve_num_threads(args.threads)
    _check_files(args)
    if args.plot is not None and (reason := plot.unusable(args.plot)):
        raise ValueError(f"--plot {args.plot}: {reason}")
    # The figures alone go where JSON goes.
    text = sys.stderr if args.json == "-" else sys.stdout
    print(f"mxfp4moe {__version__}, {num_threads} threads, {args.routing} routing", file=text, flush=True)
    results = []
    for plan in [_plan(shape, peers, max(args.tokens)) for shape in shapes]:
        result = _measure(args, plan, isas, num_threads)
        print(f"\n{report.format_table(result)}", file=text, flush=True)
        results.append(result)
    print(f"\n{report.format_legend(results)}", file=text)
    if args.json is not None:
        figures = {"routing": args.routing, "results": results}
        _write_json(args.json, _header(args, num_threads) | figures)
    if args.plot is not None:
        with atomic_file(Path(args.plot)) as file:
            title = plot.title(num_threads)
            plot.save(results, title, file, Path(args.plot).suffix[1:])
    problems = [line for result in results for line in report.different(result)]
    for line in problems:
        print(f"mxfp4moe: error: {line}", file=sys.stderr)
    return 1 if problems else 0


class _Plan(NamedTuple):
    """What is measured: a shape that fits into the memory, and the peers that know its format."""

    shape: Shape
    wanted_experts: int
    peers: list[type[Peer]]
    nbytes: int  # of all copies of the weights


def _plan(shape: Shape, peers: list[type[Peer]], num_tokens: int) -> _Plan:
    from mxfp4moe.cli._bench import memory

    for peer in peers:
        if shape.format not in peer.formats:
            print(f"{shape.title}: left out: {peer.name}, which does not know the format", file=sys.stderr)
    peers = [peer for peer in peers if shape.format in peer.formats]
    copies = 2 + sum(peer.copies for peer in peers)  # the checkpoint's arrays and the packed ones
    available = memory.available_memory()
    fitting = memory.fit(shape, copies, available, num_tokens)
    if fitting.num_experts < shape.num_experts:
        print(
            f"{shape.title}: {fitting.num_experts} experts instead of {shape.num_experts}, "
            f"for {available / 1e9:.1f} GB of memory are available",
            file=sys.stderr,
        )
    nbytes = int(copies * fitting.num_experts * fitting.expert_bytes)
    return _Plan(fitting, shape.num_experts, peers, nbytes)


def _measure(args: argparse.Namespace, plan: _Plan, isas: list[str], num_threads: int) -> Result:
    """Build the layer of one shape, time all numbers of tokens, and drop it again."""
    import numpy as np

    from mxfp4moe.cli._bench import problem, report
    from mxfp4moe.cli._bench.contenders import Contender, Ours
    from mxfp4moe.cli._bench.measure import Cell, Machine, Stopwatch

    shape = plan.shape
    print(f"preparing {shape.title}: {plan.nbytes / 1e9:.1f} GB", file=sys.stderr, flush=True)
    arrays = problem.random_arrays(shape, np.random.default_rng(args.seed))
    experts = problem.pack(shape, arrays)
    formats = _activation_formats(args)
    ours = [Ours(isa, shape, experts, num_threads, each) for isa in isas for each in formats]
    others = _build_peers(plan, arrays, num_threads)
    del arrays  # the peers keep them, if there are any
    contenders: list[Contender] = [*ours, *others]
    machine = Machine(ours, experts, num_threads)
    stopwatch = Stopwatch(shape, machine)
    progress = ProgressBar(
        f"measuring {shape.title}", len(args.tokens), f"{len(args.tokens)} numbers of tokens"
    )
    series = []
    for num_tokens in args.tokens:
        # The routing of a cell does not depend on what else is measured.
        router = problem.Router(shape, args.routing, np.random.default_rng([args.seed, num_tokens]))
        cell = Cell(num_tokens, contenders, args.seconds)
        series += stopwatch.measure(cell, router, progress.advance)
    result = report.summarize(shape, machine, series)
    result["contenders"] = [report.describe_contender(contender) for contender in contenders]
    result["wanted_experts"] = plan.wanted_experts
    return result


def _build_peers(plan: _Plan, arrays: ExpertArrays, num_threads: int) -> list[Peer]:
    """The peers that can compute the shape: what they cannot, they say when they are built."""
    built = []
    for peer in plan.peers:
        try:
            built.append(peer(plan.shape, arrays, num_threads))
        except (ImportError, ValueError) as error:
            print(f"{plan.shape.title}: left out: {peer.name}: {error}", file=sys.stderr)
    return built


# ---- arguments ----


def _names(text: str) -> list[str]:
    names = name(text).split(",")
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return list(dict.fromkeys(names))


def _numbers(text: str) -> list[int]:
    return list(dict.fromkeys(integer(1)(number) for number in text.split(",")))


def _numbers_from_zero(text: str) -> list[int]:
    return list(dict.fromkeys(integer(0)(number) for number in text.split(",")))


_numbers.__name__ = _numbers_from_zero.__name__ = "integer"  # in argparse's message about text that is none


def _seconds(text: str) -> float:
    seconds = float(text)
    if not _MIN_SECONDS <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least {_MIN_SECONDS}, got {text}")
    return seconds


_seconds.__name__ = "number"


def _shapes(args: argparse.Namespace) -> list[Shape]:
    from mxfp4moe.formats import FORMATS, Format

    models = [ALIASES.get(model, model) for model in args.shape]
    _check_names(args, "shape", models, SHAPES)
    formats = [] if args.format is None else list(FORMATS) if args.format == ["all"] else args.format
    _check_names(args, "format", formats, FORMATS)
    sizes = {size: getattr(args, size) for size in SIZES if getattr(args, size) is not None}
    groups = group_size_of(args.group_size)
    shapes = []
    for shape in (SHAPES[model] for model in dict.fromkeys(models)):
        # A layer with fewer experts is still that model's.
        title = "custom" if sizes.keys() - {"num_experts"} else shape.name
        shapes += [
            replace(shape, name=title, format=cast("Format", f), group_size=groups, **sizes)
            for f in formats or [shape.format]
        ]
    return shapes


def _isas(args: argparse.Namespace) -> list[str]:
    from mxfp4moe import config

    if args.isa is None:
        return [config.active_isa()]
    supported = config.supported_isas()
    if args.isa == ["all"]:
        return list(reversed(supported))
    _check_names(args, "isa", args.isa, supported)
    return list(args.isa)


def _activation_formats(args: argparse.Namespace) -> list[ActivationFormat | None]:
    return [None if each == "bfloat16" else each for each in args.activation_format]


def _check_activation_formats(args: argparse.Namespace, shapes: list[Shape]) -> None:
    from mxfp4moe.experts.activation_format import check_activation_format

    _check_names(args, "activation_format", args.activation_format, _ACTIVATION_FORMATS)
    for shape in shapes:
        for each in _activation_formats(args):
            try:
                check_activation_format(each, shape.format, "experts")
            except ValueError as error:
                message = str(error).partition(": ")[2].replace("expected None", "expected bfloat16")
                args.parser.error(f"argument --activation-format: {message}")


def _peers(args: argparse.Namespace) -> list[type[Peer]]:
    from mxfp4moe.cli._bench.contenders import PEERS

    if args.peers == ["all"]:
        missing = {name: peer.missing() for name, peer in PEERS.items() if peer.missing()}
        for name, reason in missing.items():
            print(f"left out: {name}: {reason}", file=sys.stderr)
        return [peer for name, peer in PEERS.items() if name not in missing]
    _check_names(args, "peers", args.peers, PEERS)
    for name in args.peers:
        if PEERS[name].missing():
            raise ValueError(f"--peers {name}: {PEERS[name].missing()}")
    return [PEERS[name] for name in args.peers]


def _check_names(args: argparse.Namespace, option: str, names: Sequence[str], known: Any) -> None:
    from mxfp4moe._arguments import join_choices

    for given in names:
        if given not in known:
            args.parser.error(f"argument {flag(option)}: expected {join_choices(known)}, got {given!r}")


def _check_files(args: argparse.Namespace) -> None:
    """Raise now for what could not be written after all is measured."""
    given = {"--json": None if args.json == "-" else args.json, "--plot": args.plot}
    paths = {option: path for option, path in given.items() if path is not None}
    for option, path in paths.items():
        folder = Path(path).resolve().parent
        is_file = not Path(path).exists() or Path(path).is_file()
        if not path or not is_file or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"{option}: expected a file in a folder that can be written to, got {path!r}")
    if len({Path(path).resolve() for path in paths.values()}) < len(paths):
        raise ValueError(f"--plot: expected another file than --json, got {args.plot!r}")


def _write_json(path: str, figures: dict[str, Any]) -> None:
    text = json.dumps(figures, indent=1)
    if path == "-":
        print(text)
        return
    with atomic_file(Path(path)) as file:
        file.write(f"{text}\n".encode())
