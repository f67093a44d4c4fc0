"""``mxfp4moe demo``: from a checkpoint on disk to checked and timed results."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from mxfp4moe._arguments import value_error
from mxfp4moe._files import temporary_folder
from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._arguments import (
    SIZES,
    add_layer,
    add_seed,
    add_sizes,
    add_threads,
    flag,
    integer,
)
from mxfp4moe.cli._synthetic import GptOssShape, SyntheticCheckpoint

if TYPE_CHECKING:
    from mxfp4moe.checkpoint import AnyExperts, LayerDescription
    from mxfp4moe.cli._roofline import Run, Speed

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
        help="Length of the prefill. Default: %(default)s tokens.",
    )
    parser.add_argument(
        "--steps",
        type=integer(1),
        default=64,
        metavar="N",
        help="Number of decode steps, of one token each. Default: %(default)s steps.",
    )
    add_seed(parser)
    add_threads(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if the results are wrong."""
    from mxfp4moe.config import resolve_num_threads

    args.threads = resolve_num_threads(args.threads)
    shape_options = {option: getattr(args, option) for option in SIZES}
    given = {option: size for option, size in shape_options.items() if size is not None}
    if args.checkpoint is not None:
        if given or args.keep:
            unused = flag(next(iter(given), "keep"))
            args.parser.error(f"{unused} applies to the checkpoint that is written, not to --checkpoint")
        return _run_layer(args, Path(args.checkpoint), args.layer or 0)
    if args.layer is not None:
        args.parser.error("--layer needs --checkpoint")
    checkpoint = SyntheticCheckpoint(GptOssShape(**given), args.seed)
    with _temporary_folder(checkpoint.nbytes, args.keep) as folder:
        size = f"{checkpoint.nbytes / 1e6:.1f} MB"
        print(f"Writing a one-layer gpt-oss checkpoint: {size} in {folder}", flush=True)
        progress = ProgressBar("writing", checkpoint.nbytes)
        checkpoint.write(folder, progress.advance)
        return _run_layer(args, folder, 0)


def _run_layer(args: argparse.Namespace, path: Path, number: int) -> int:
    from mxfp4moe import checkpoint, config
    from mxfp4moe.cli import _roofline
    from mxfp4moe.layer import MoELayer

    model = checkpoint.open(path)
    if model.model_type != "gpt_oss":
        raise value_error("--checkpoint", "a gpt-oss model folder", f"a {model.model_type} one")
    begin = perf_counter()
    layer = MoELayer.from_checkpoint(path, number)
    print(f"Loaded in {perf_counter() - begin:.2f} s: {layer}", flush=True)
    rng = np.random.default_rng(args.seed + 1)

    def hidden_states(num_tokens: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal((num_tokens, layer.hidden_size), np.float32).astype(ml_dtypes.bfloat16)

    roofline = _roofline.Roofline(layer.experts, args.threads)
    batches = {
        "prefill": [hidden_states(args.tokens) for _ in range(_PREFILLS)],
        "decode": [hidden_states(1) for _ in range(args.steps)],
    }
    runs = {name: _roofline.measure(layer, roofline, batch) for name, batch in batches.items()}
    best = _roofline.best_speed([speed for run in runs.values() for speed in run.speeds])
    print(
        f"Machine: {config.active_isa()}, {args.threads} threads, "
        f"reads up to {best.bandwidth / 1e9:.1f} GB/s, computes up to {best.peak / 1e12:.2f} TFLOP/s "
        "(measured between the calls)\n"
    )
    _print_table(runs, best)
    check = _check(model.read_layer(number), list(runs.values()))
    correct = check.error <= check.allowed  # False for NaN
    verdict = "correct" if correct else "WRONG"
    print(
        f"\nCheck of {check.num_tokens} tokens against the float64 reference: "
        f"relative L2 error {check.error:.2e}, at most {check.allowed:.1e} allowed: {verdict}"
    )
    return 0 if correct else 1


def _print_table(runs: dict[str, Run], best: Speed) -> None:
    print("          tokens  calls        ms  tokens/s    GB/s  TFLOP/s  of roofline  at best")
    for name, run in runs.items():
        call, num_tokens = run.typical, len(run.hidden_states[0])
        median_share, best_share = run.shares(best)
        print(
            f"{name:8} {num_tokens:7d} {len(run.calls):6d} {1e3 * call.seconds:9.3f} "
            f"{num_tokens / call.seconds:9.1f} {call.nbytes / call.seconds / 1e9:7.2f} "
            f"{call.flops / call.seconds / 1e12:8.3f} {100 * median_share:10.0f} % "
            f"{100 * best_share:6.0f} %"
        )
    print(
        "ms and rates are of the median call; shares of the roofline, of the median and of the best call,\n"
        "with the best speed that the machine showed in between."
    )


class _Check(NamedTuple):
    """How far sampled tokens of all runs are from the float64 reference, as relative L2 errors."""

    error: float
    allowed: float
    num_tokens: int


def _check(layer: LayerDescription[AnyExperts], runs: list[Run]) -> _Check:
    """Compare with the reference, computed from the checkpoint's own arrays."""
    from mxfp4moe import reference, topk_softmax

    hidden_states, results = [], []
    for run in runs:
        rows = np.concatenate(run.hidden_states)
        chosen = np.linspace(0, len(rows) - 1, min(_SAMPLES, len(rows))).astype(int)
        hidden_states.append(rows[chosen])
        results.append(np.concatenate(run.results)[chosen])
    tokens = np.concatenate(hidden_states)
    arrays = layer.experts.arguments()
    experts = {name: arrays[name] for name in reference.ExpertArrays._fields if name in arrays}
    for name in ("w13", "w2"):
        experts[name] = experts[name].reshape(*experts[name].shape[:2], -1)
    logits = reference.router_logits(tokens, layer.router_weight, layer.router_bias)
    arguments = tokens, reference.ExpertArrays(**experts), *topk_softmax(logits, layer.top_k)
    options: dict[str, Any] = {"activation": layer.activation, "alpha": layer.alpha, "limit": layer.limit}
    expected = reference.fused_experts_float64(*arguments, **options)

    def relative_error(result: np.ndarray[Any, Any]) -> float:
        return float(np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected))

    error, allowed = relative_error(np.concatenate(results)), ERROR_BOUND
    if error > allowed:
        # That is for large layers; over few numbers the roundings of the contract do not average out.
        allowed = max(allowed, 1.1 * relative_error(reference.fused_experts(*arguments, **options)))
    return _Check(error, allowed, len(tokens))


@contextmanager
def _temporary_folder(num_bytes: int, keep: bool) -> Iterator[Path]:
    """Make a folder with room for `num_bytes`; remove it in the end, however that comes, or `keep` it."""
    parent = tempfile.gettempdir()
    free = shutil.disk_usage(parent).free
    if num_bytes + (1 << 20) > free:
        raise ValueError(
            f"{parent}: expected {num_bytes / 1e6:.1f} MB of free space, got {free / 1e6:.1f} MB "
            "(the environment variable TMPDIR names another folder)"
        )
    if not keep:
        with temporary_folder(Path(parent, "mxfp4moe-demo")) as folder:
            yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="mxfp4moe-demo-"))
    try:
        yield folder
    finally:
        print(f"Kept {folder}")
