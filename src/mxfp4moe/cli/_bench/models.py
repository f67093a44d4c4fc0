"""Whole models for ``mxfp4moe bench --model``: as many layers as fit, written, read and timed."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxfp4moe import config
from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._bench.llama_cpp_model import LlamaCppModel
from mxfp4moe.cli._bench.memory import USED_SHARE, available_memory
from mxfp4moe.cli._bench.model import DENSE, FIRST_TOKENS, Cell, Contender, Dense, Ours, Stopwatch, summarize
from mxfp4moe.cli._bench.model_gguf import write_gguf
from mxfp4moe.cli._scratch import scratch_folder
from mxfp4moe.cli._synthetic import SyntheticCheckpoint
from mxfp4moe.cli._synthetic_model import DECODERS, Decoder

_CALL_BYTES = 3 << 30  # of scratch, caches and what measures the bandwidth
_PEER_COPIES = 1.6  # llama.cpp rearranges experts beside those that it has mapped
_DECODE_ROOM = 1024  # tokens that are decoded after the longest context, at the most


def measure(title: str, args: argparse.Namespace, with_peer: bool) -> list[dict[str, Any]]:
    """Write, read and time a model: the figures for each kind of its dense matrices."""
    model = _fit(DECODERS[title](), args.layers, 1 + _PEER_COPIES * with_peer)
    checkpoint = SyntheticCheckpoint(model, args.seed)
    results = []
    with scratch_folder("bench", (1 + with_peer) * checkpoint.nbytes) as folder:
        checkpoint.write(folder, ProgressBar(f"writing {title}", checkpoint.nbytes).advance)
        for dense in args.dense:
            gguf = folder / "model.gguf" if with_peer else None
            if gguf is not None:
                print(f"writing {title} as GGUF, {DENSE[dense]}", file=sys.stderr, flush=True)
                write_gguf(folder, model, gguf, DENSE[dense])
            results.append(_time(model, args, dense, folder, gguf))
            if gguf is not None:
                gguf.unlink()
    return results


def _fit(model: Decoder, num_layers: int | None, copies: float) -> Decoder:
    """The model with `num_layers`, or as many as the memory allows."""
    available = available_memory()
    fitting = model.fitting_layers((USED_SHARE * available - _CALL_BYTES) / copies)
    if fitting < (num_layers or 1):
        raise ValueError(
            f"memory: expected room for {num_layers or 1} layers of {model.title}, "
            f"got {available / 1e9:.1f} GB, enough for {fitting}"
        )
    return replace(model, num_hidden_layers=num_layers or min(fitting, model.num_hidden_layers))


def _time(
    model: Decoder, args: argparse.Namespace, dense: Dense, folder: Path, gguf: Path | None
) -> dict[str, Any]:
    """The figures with one kind of dense matrices."""
    from mxfp4moe.model import CausalLM

    num_threads = config.resolve_num_threads(args.threads)
    cells = [Cell("prefill", count) for count in args.prefill]
    cells += [Cell("decode", count) for count in sorted(args.context)]
    longest = max(FIRST_TOKENS, *(cell.num_tokens for cell in cells)) + _DECODE_ROOM
    (activations,) = (None if each == "bfloat16" else each for each in args.activation_format)
    quantize = None if dense == "bf16" else dense
    lm = CausalLM.from_checkpoint(folder, quantize_dense=quantize, activation_format=activations)
    ours = Ours(lm, num_threads)
    contenders: list[Contender] = [ours]
    if gguf is not None:
        contenders.append(LlamaCppModel(gguf, longest, num_threads))
    stopwatch = Stopwatch(contenders, model.vocab_size, num_threads, args.seed)
    progress = ProgressBar(f"measuring {model.title}, {dense}", len(cells), f"{len(cells)} cells")
    series = [each for cell in cells for each in stopwatch.measure(cell, args.seconds, progress.advance)]
    return summarize(model, dense, series, stopwatch, ours)
