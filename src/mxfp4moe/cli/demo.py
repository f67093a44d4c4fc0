"""``mxfp4moe demo``: from a checkpoint on disk to checked and timed results."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._arguments import (
    SIZES,
    add_layer,
    add_seed,
    add_sizes,
    add_threads,
    chosen_layer,
    flag,
    integer,
)
from mxfp4moe.cli._scratch import scratch_folder
from mxfp4moe.cli._synthetic import GptOssShape, SyntheticCheckpoint
from mxfp4moe.cli._text import WIDTH, paragraph

if TYPE_CHECKING:
    from mxfp4moe.checkpoint import AnyExperts, LayerDescription
    from mxfp4moe.cli._roofline import Run, Speed
    from mxfp4moe.layer import MoELayer

_Array = np.ndarray[Any, Any]

ERROR_BOUND = 2.6e-3  # of bfloat16 results, relative L2 against float64
_PREFILLS = 3  # calls; the median is shown
_SAMPLES = 2  # tokens of the prefill, and of the decode steps, that are checked


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="compute, check and time one layer of a checkpoint",
        description="Writes a one-layer checkpoint shaped like gpt-oss-20b into a temporary folder (or takes "
        "a checkpoint of yours), loads it, runs a prefill and decode steps, checks tokens against the NumPy "
        "reference and shows how close to the limits of this machine the calls came.",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="A model folder, a GGUF file, a packed file or a packed folder of your own; nothing is written. "
        "Default: a checkpoint that is written for the demo.",
    )
    add_layer(parser, "in --checkpoint")
    parser.add_argument(
        "--model",
        action="store_true",
        help="Generate tokens with a whole model of the widths of gpt-oss-20b, and as many of its layers as "
        "memory and disk allow. Default: compute one layer.",
    )
    parser.add_argument(
        "--layers",
        type=integer(1),
        metavar="N",
        help="Number of layers of --model at the most. Default: 24.",
    )
    parser.add_argument(
        "--vocab-size",
        type=integer(1),
        metavar="N",
        help="Number of tokens of the vocabulary of --model. Default: 201088.",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="Keep the checkpoint that is written, and print where. Default: remove it.",
    )
    add_sizes(parser, " of the checkpoint that is written", asdict(GptOssShape()))
    parser.add_argument(
        "--tokens",
        type=integer(1),
        default=256,
        metavar="N",
        help="Length of the prefill, or of the prompt. Default: %(default)s tokens.",
    )
    parser.add_argument(
        "--steps",
        type=integer(1),
        default=64,
        metavar="N",
        help="Number of decode steps, of one token each, or of tokens that are generated. Default: "
        "%(default)s steps.",
    )
    add_seed(parser)
    add_threads(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if the results are wrong."""
    if args.model:
        return _run_model(args)
    for option in ("layers", "vocab_size"):
        if getattr(args, option) is not None:
            args.parser.error(f"{flag(option)} needs --model")
    shape_options = {option: getattr(args, option) for option in SIZES}
    given = {option: size for option, size in shape_options.items() if size is not None}
    if args.checkpoint is not None:
        if given or args.keep:
            unused = flag(next(iter(given), "keep"))
            args.parser.error(f"{unused} applies to the checkpoint that is written, not to --checkpoint")
        return _run_layer(args, args.checkpoint)
    if args.layer is not None:
        args.parser.error("--layer needs --checkpoint")
    checkpoint = SyntheticCheckpoint(GptOssShape(**given), args.seed)
    with scratch_folder("demo", checkpoint.nbytes, keep=args.keep) as folder:
        size = f"{checkpoint.nbytes / 1e6:.1f} MB"
        print(paragraph(f"Writing a one-layer gpt-oss checkpoint: {size} in {folder}"), flush=True)
        progress = ProgressBar("writing", checkpoint.nbytes)
        checkpoint.write(folder, progress.advance)
        return _run_layer(args, folder)


def _run_model(args: argparse.Namespace) -> int:
    from mxfp4moe.cli import _demo_model

    for option in ("checkpoint", "layer"):
        if getattr(args, option) is not None:
            args.parser.error(f"{flag(option)} applies to one layer, not to --model")
    return _demo_model.run(args)


def _run_layer(args: argparse.Namespace, path: Path) -> int:
    from mxfp4moe import checkpoint, config
    from mxfp4moe.cli import _roofline
    from mxfp4moe.layer import MoELayer

    begin = perf_counter()
    model = checkpoint.open(path)
    description = model.read_layer(chosen_layer(args, model))
    layer = MoELayer._of_description(description, None, str(path))
    print(paragraph(f"Loaded in {perf_counter() - begin:.2f} s: {layer}"), flush=True)
    rng = np.random.default_rng(args.seed + 1)
    threads = config.get_num_threads()
    roofline = _roofline.Roofline(layer.experts, threads)
    runs = {}
    for name, num_tokens, num_calls in (("prefill", args.tokens, _PREFILLS), ("decode", 1, args.steps)):
        batches = [_draw_tokens(rng, layer, num_tokens) for _ in range(num_calls)]
        runs[name] = _roofline.measure(layer, roofline, *map(list, zip(*batches, strict=True)))
    best = _roofline.best_speed([speed for run in runs.values() for speed in run.speeds])
    machine = (
        f"Machine: {config.active_isa()}, {threads} threads, "
        f"reads up to {best.bandwidth / 1e9:.1f} GB/s, computes up to {best.peak / 1e12:.2f} TFLOP/s "
        "(measured between the calls)"
    )
    print(f"{paragraph(machine)}\n")
    _print_table(runs, best)
    check = _check(description, list(runs.values()))
    correct = check.error <= check.allowed  # False for NaN
    verdict = (
        f"Check of {check.num_tokens} tokens against the float64 reference: relative L2 error "
        f"{check.error:.2e}, at most {check.allowed:.1e} allowed: {'correct' if correct else 'WRONG'}"
    )
    print(f"\n{paragraph(verdict)}")
    return 0 if correct else 1


def _draw_tokens(
    rng: np.random.Generator, layer: MoELayer, num_tokens: int
) -> tuple[_Array, dict[str, _Array]]:
    """Hidden states in bfloat16, and what else the layer needs, by the name of the argument."""

    def draw() -> _Array:
        shape = num_tokens, layer.hidden_size
        return rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    hidden_states, others = draw(), {}
    if layer.routing == "hash_topk":
        others["input_ids"] = rng.integers(len(layer.routing_arguments["tid2eid"]), size=num_tokens)
    if layer.separate_router_input:
        others["router_hidden_states"] = draw()
    return hidden_states, others


def _print_table(runs: dict[str, Run], best: Speed) -> None:
    from mxfp4moe.cli._roofline import explain_shares

    print("         tokens calls        ms  tokens/s    GB/s TFLOP/s of roofline  at best")
    shares: list[float] = []
    for name, run in runs.items():
        call, num_tokens = run.typical, len(run.hidden_states[0])
        median_share, best_share = run.shares(best)
        shares += median_share, best_share
        print(
            f"{name:8} {num_tokens:6d} {len(run.calls):5d} {1e3 * call.seconds:9.3f} "
            f"{num_tokens / call.seconds:9.1f} {call.nbytes / call.seconds / 1e9:7.2f} "
            f"{call.flops / call.seconds / 1e12:7.3f} {100 * median_share:9.0f} % "
            f"{100 * best_share:6.0f} %"
        )
    legend = (
        "ms and rates are those of the median call; shares of the roofline are those of the median and of "
        "the best call, with the best speed that the machine showed in between. "
    )
    print(textwrap.fill(legend + explain_shares(shares), WIDTH))


class _Check(NamedTuple):
    """How far sampled tokens of all runs are from the float64 reference, as relative L2 errors."""

    error: float
    allowed: float
    num_tokens: int


def _check(layer: LayerDescription[AnyExperts], runs: list[Run]) -> _Check:
    """Compare with the reference, computed from the checkpoint's own arrays."""
    from mxfp4moe import reference

    samples = [_sample(run) for run in runs]
    tokens, results = (
        np.concatenate([getattr(one, name) for one in samples]) for name in _Sample._fields[:2]
    )
    others = {name: np.concatenate([one.others[name] for one in samples]) for name in samples[0].others}
    expected = reference.moe_layer_float64(tokens, layer, **others)

    def relative_error(result: _Array) -> float:
        size = float(np.linalg.norm(expected)) or 1.0
        return float(np.linalg.norm(result.astype(np.float64) - expected)) / size

    error, allowed = relative_error(results), ERROR_BOUND
    if error > allowed:
        # That is for large layers; over few numbers the roundings of the contract do not average out.
        allowed = max(allowed, 1.1 * relative_error(reference.moe_layer(tokens, layer, **others)))
    return _Check(error, allowed, len(tokens))


class _Sample(NamedTuple):
    """Some tokens of a run."""

    hidden_states: _Array
    result: _Array
    others: dict[str, _Array]


def _sample(run: Run) -> _Sample:
    rows = np.concatenate(run.hidden_states)
    chosen = np.linspace(0, len(rows) - 1, min(_SAMPLES, len(rows))).astype(int)
    others = {name: np.concatenate([each[name] for each in run.others])[chosen] for name in run.others[0]}
    return _Sample(rows[chosen], np.concatenate(run.results)[chosen], others)
