"""``mxfp4moe inspect``: what is in a checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxfp4moe._arguments import printable
from mxfp4moe.cli._arguments import add_json, add_threads
from mxfp4moe.cli._text import table

if TYPE_CHECKING:
    from mxfp4moe.checkpoint import Checkpoint

_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "shared_intermediate_size",
    "num_experts",
    "top_k",
    "num_layers",
    "activation",
    "alpha",
    "limit",
)


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what is in a checkpoint: layers, formats, bytes, routing",
        description="Shows what is in a checkpoint. The headers of all its files are checked; data is read "
        "only for --verify.",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="A model folder, a GGUF file, a packed file or a packed folder.",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Read packed files as a whole and compare their checksums. Default: read their headers alone.",
    )
    add_json(parser, "what is shown")
    add_threads(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show what is in the checkpoint."""
    from mxfp4moe import checkpoint
    from mxfp4moe.experts.packed_experts import is_experts_file

    if is_experts_file(args.path):
        fields, rows = _describe_experts(args.path)
    else:
        model = checkpoint.open(args.path)
        fields, rows = _describe(model)
    if args.verify:
        fields["verified_bytes"] = _verify(args.path)
    if args.json:
        print(json.dumps({"path": str(args.path)} | fields | ({"layers": rows} if rows else {})))
    else:
        _print(args.path, fields, rows)
    return 0


def _describe(model: Checkpoint) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    fields = {name: getattr(model, name) for name in _FIELDS}
    fields["limit"] = "inf" if fields["limit"] == float("inf") else fields["limit"]
    rows = [asdict(model.describe_layer(layer)) for layer in model.moe_layers]
    fields["bytes"] = sum(row["nbytes"] for row in rows)
    return fields, rows


def _describe_experts(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from mxfp4moe.experts import PackedExperts

    experts = PackedExperts.open(path)
    names = ["format", "num_experts", "hidden_size", "intermediate_size", "gate_up_layout", "block_shape"]
    fields = {name: getattr(experts, name) for name in names + ([] if experts.gated else ["gated"])}
    return {"model_type": "packed experts", **fields, "bytes": experts.nbytes}, []


def _verify(path: Path) -> int:
    """Compare all checksums; the number of bytes that were read."""
    from mxfp4moe import checkpoint
    from mxfp4moe._progress import ProgressBar
    from mxfp4moe.checkpoint.packed import PackedCheckpoint
    from mxfp4moe.packed.container import PackedFile, is_packed_file

    if is_packed_file(path):
        paths: Sequence[Path] = [path]
    else:
        model = checkpoint.open(path)
        if not isinstance(model, PackedCheckpoint):
            raise ValueError(f"{path}: expected packed files for --verify, got {model.model_type}")
        paths = model.paths
    files = [PackedFile(path) for path in paths]
    total = sum(file.nbytes for file in files)
    progress = ProgressBar("verifying", sum(p.end - p.begin for file in files for p in file.parts.values()))
    for file in files:
        file.verify(progress.advance)
    return total


def _print(path: Path, fields: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(path)
    for name, value in fields.items():
        if value is not None and value != 0:
            text = f"{value / 1e6:.1f} MB" if name.endswith("bytes") else printable(str(value))
            print(f"  {name.replace('_', ' '):24} {text}")
    if not rows:
        return
    columns = {
        "layer": [str(row["layer"]) for row in rows],
        "format": [row["format"] for row in rows],
        "MB": [f"{row['nbytes'] / 1e6:.1f}" for row in rows],
        "stored as": [row["source"] for row in rows],
        "shared": [row["shared_source"] or "" for row in rows],
        "routing": [row["routing"] for row in rows],
    }
    if not any(columns["shared"]):
        del columns["shared"]
    print(f"\n{table(columns, numbers=('layer', 'MB'))}")
    for special in dict.fromkeys(row["special"] for row in rows if row["special"]):
        layers = [str(row["layer"]) for row in rows if row["special"] == special]
        which = "All layers" if len(layers) == len(rows) else f"Layers {', '.join(layers)}"
        print(f"{which}: {printable(special)}")
