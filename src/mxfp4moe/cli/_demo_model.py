"""``mxfp4moe demo --model``: a whole gpt-oss with random weights, generating and timed."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from mxfp4moe._progress import ProgressBar
from mxfp4moe.cli._bench.memory import USED_SHARE, available_memory
from mxfp4moe.cli._scratch import scratch_folder
from mxfp4moe.cli._synthetic import SyntheticCheckpoint
from mxfp4moe.cli._synthetic_model import GptOss
from mxfp4moe.cli._text import paragraph

if TYPE_CHECKING:
    from mxfp4moe.model.causal_lm import CausalLM

_CALL_BYTES = 600 << 20  # of a call: hidden states, logits, scratch
_CHECKED = 12  # tokens of the prompt whose bits are compared


def sized(args: argparse.Namespace) -> GptOss:
    """The model with the sizes of the options, and as many layers as fit."""
    names = {"hidden_size": "hidden_size", "intermediate_size": "moe_intermediate_size"}
    names |= {"num_experts": "num_experts", "top_k": "num_experts_per_tok", "vocab_size": "vocab_size"}
    given = {field: getattr(args, option) for option, field in names.items()}
    model = GptOss(**{field: value for field, value in given.items() if value is not None})
    limit = model.num_hidden_layers if args.layers is None else args.layers
    free = shutil.disk_usage(tempfile.gettempdir()).free
    memory = available_memory() - _CALL_BYTES
    room = min(free, memory / 2 if _is_in_memory(Path(tempfile.gettempdir())) else memory)
    fitting = model.fitting_layers(USED_SHARE * room)
    if fitting < 1:
        needed = (model.end_bytes + model.layer_bytes) / USED_SHARE
        expected = f"{needed / 1e9:.1f} GB for a model of one layer"
        raise ValueError(f"memory and disk: expected {expected}, got {room / 1e9:.1f} GB")
    return replace(model, num_hidden_layers=min(limit, fitting))


def run(args: argparse.Namespace) -> int:
    """Write the model, load it, generate; 1 if the bits of a token depend on how the prompt was cut."""
    from mxfp4moe.model.causal_lm import CausalLM

    model = sized(args)
    checkpoint = SyntheticCheckpoint(model, args.seed)
    with scratch_folder("demo", checkpoint.nbytes, keep=args.keep) as folder:
        count = model.num_hidden_layers
        layers = f"{count} of {GptOss.num_hidden_layers} layers" if count < 24 else "all its layers"
        what = f"Writing a model of the widths of {model.title}, {layers}"
        print(paragraph(f"{what}: {checkpoint.nbytes / 1e9:.1f} GB in {folder}"), flush=True)
        checkpoint.write(folder, ProgressBar("writing", checkpoint.nbytes).advance)
        begin = perf_counter()
        lm = CausalLM.from_checkpoint(folder, progress=True)
        print(paragraph(f"Loaded in {perf_counter() - begin:.1f} s: {lm}"), flush=True)
        return _generate(args, lm)


def _generate(args: argparse.Namespace, lm: CausalLM) -> int:
    from mxfp4moe.cli._generate.measure import Timing, describe

    prompt = np.random.default_rng(args.seed + 1).integers(0, lm.vocab_size, args.tokens)
    lm(prompt[:1])  # wakes threads
    timing = Timing(len(prompt))
    for _ in lm.generate(prompt, max_new_tokens=args.steps, stop=()):
        timing.tick()
    print(paragraph(f"Generated {len(timing.times)} tokens: {describe(timing.summary(lm))}."))
    few, cache = prompt[:_CHECKED], lm.new_cache()
    pieces = [lm(part, cache) for part in np.array_split(few, 3) if len(part)]
    correct = np.array_equal(np.concatenate(pieces).view(np.uint32), lm(few).view(np.uint32))
    same = "the same bits" if correct else "OTHER BITS"
    print(paragraph(f"Check: the logits of {len(few)} tokens in three pieces, and without a cache: {same}"))
    return 0 if correct else 1


def _is_in_memory(path: Path) -> bool:
    """Whether what is written at `path` takes memory, because its file system is in memory."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    resolved = path.resolve()
    found = [(len(mount[1]), mount[2]) for mount in mounts if resolved.is_relative_to(mount[1])]
    return max(found, default=(0, ""))[1] in ("tmpfs", "ramfs")
