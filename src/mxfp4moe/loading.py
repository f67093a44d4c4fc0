"""All mixture-of-experts layers of a model on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import pairwise

from mxfp4moe._arguments import check_bool, check_choice
from mxfp4moe._progress import ProgressBar
from mxfp4moe.experts.quantizing import QuantizeFormat, check_quantize
from mxfp4moe.experts.residence import MAPPED, check_residence
from mxfp4moe.experts.selection import ExpertIds, check_expert_ids
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_description import NONFINITE, Nonfinite, sliced
from mxfp4moe.packed.weights import Resident

__all__ = ["load_layers"]


def load_layers(
    path: str | os.PathLike[str],
    layers: Iterable[int] | None = None,
    *,
    experts: ExpertIds | None = None,
    quantize: QuantizeFormat | None = None,
    progress: bool | None = None,
    nonfinite: Nonfinite = "raise",
    memory_limit: int | None = None,
    resident: Resident = "mapped",
) -> list[MoELayer]:
    """Load the mixture-of-experts layers of a model, one after the other.

    Files are memory-mapped, and what a layer was made of is let go before the next one is read.

    Parameters
    ----------
    path : str or os.PathLike
        As for `MoELayer.from_checkpoint`.
    layers : iterable of int, optional
        Numbers of the layers to load, counted from 0, dense ones included. All that have experts, if not
        given.
    experts : range or iterable of int, optional
        As for `MoELayer.from_checkpoint`, of each layer.
    quantize : str, optional
        As for `MoELayer.from_checkpoint`.
    progress : bool, optional
        Whether to show a progress bar on stderr; if not given, only on a terminal.
    nonfinite : {"raise", "propagate"}
        As for `MoELayer`.
    memory_limit : int, optional
        The bytes that the experts of all these layers may take in memory, of a model that is packed. Those
        that were not used for the longest time make room for others; while a layer computes a few tokens,
        the experts that they will probably need in the next layer of the list are read. Results are the same.
        Each layer has an `expert_cache`, and `MoELayer.load_statistics` counts what was read.
    resident : {"mapped", "local"}
        As for `MoELayer.open`.

    Returns
    -------
    list of MoELayer
        Each has the number of its layer as `layer_number`.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        As `MoELayer.from_checkpoint`; also if `memory_limit` is less than the experts of a token, or is given
        for a model that is not packed.

    Examples
    --------
    >>> import tempfile, json, numpy as np
    >>> import mxfp4moe as mx
    >>> from mxfp4moe.checkpoint.safetensors import save_file
    >>> rng, block = np.random.default_rng(0), "model.layers.0.block_sparse_moe"
    >>> def weight(rows, columns):
    ...     return rng.standard_normal((rows, columns), np.float32)
    >>> tensors = {f"{block}.gate.weight": weight(2, 64)}
    >>> for expert in ("experts.0", "experts.1"):
    ...     for name, rows, columns in (("w1", 32, 64), ("w3", 32, 64), ("w2", 64, 32)):
    ...         tensors[f"{block}.{expert}.{name}.weight"] = weight(rows, columns)
    >>> config = {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
    ...           "num_local_experts": 2, "num_experts_per_tok": 1}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(f"{folder}/model.safetensors", tensors)
    ...     with open(f"{folder}/config.json", "w") as file:
    ...         json.dump(config, file)
    ...     layers = mx.load_layers(folder, quantize="mxfp4")
    >>> [layer(weight(3, 64)).shape for layer in layers]
    [(3, 64)]
    """
    from mxfp4moe import checkpoint  # for which importing the package should not wait
    from mxfp4moe.checkpoint.packed import kept_packed

    check_quantize(quantize)
    check_choice("nonfinite", nonfinite, NONFINITE)
    model = checkpoint.open(path)
    if experts is not None:
        experts = check_expert_ids("experts", experts, model.num_experts)
    residence = check_residence(resident, memory_limit)
    if residence != MAPPED:
        model = kept_packed(model, residence, experts)
    numbers = model.moe_layers if layers is None else [model.check_layer(layer) for layer in layers]
    shown = sys.stderr.isatty() if progress is None else check_bool("progress", progress)
    bar = ProgressBar("loading", len(numbers), f"{len(numbers)} layers") if shown and numbers else None
    result = []
    for number in numbers:
        description = sliced(model.read_layer(number), experts)
        result.append(MoELayer._of_description(description, quantize, os.fspath(path), nonfinite))
        if bar is not None:
            bar.advance(1)
    for layer, following in pairwise(result):
        layer._precede(following)
    return result
