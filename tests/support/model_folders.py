"""Small checkpoints of every model type, with what transformers computes of one layer of each."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from paths import DATA

from mxfp4moe.checkpoint.safetensors import save_file

Arrays = dict[str, "np.ndarray[Any, Any]"]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {
    "BF16": _BFLOAT16,
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
}
NAMES = sorted(path.stem for path in (DATA / "models").glob("*.npz"))


class ModelFolder(NamedTuple):
    """The configuration and the tensors of a checkpoint, and the input and output of one of its layers."""

    config: dict[str, Any]
    tensors: Arrays
    golden: Arrays

    @property
    def layer(self) -> int:
        return int(self.golden["layer"].item())

    @property
    def is_latent(self) -> bool:
        """Whether hidden states are projected twice more."""
        return any("latent" in name or "routed_expert_down" in name for name in self.tensors)

    def write(self, path: Path) -> Path:
        """Write it into the folder at `path`."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.config))
        save_file(path / "model.safetensors", self.tensors)
        return path

    def inputs(self, dtype: Any) -> dict[str, Any]:
        """The arguments of a layer, hidden states in `dtype`."""
        arguments = {"hidden_states": self.golden["hidden_states"].astype(dtype)}
        if "router_input" in self.golden:
            arguments["router_hidden_states"] = self.golden["router_input"].astype(dtype)
        if "input_ids_moe" in self.golden:
            arguments["input_ids"] = self.golden["input_ids_moe"]
        return arguments


@cache
def load(name: str, group: str = "models") -> ModelFolder:
    """The folder of this name; callers change copies of its parts."""
    with np.load(DATA / group / f"{name}.npz") as file:
        data = dict(file)
    config = json.loads(data["config"].tobytes())
    if "same" in data:  # another configuration of the same tensors
        return load(data["same"].tobytes().decode())._replace(config=config)
    flat = {kind: data[kind] for kind in _DTYPES if kind in data}
    # The two bytes of bfloat16 numbers are apart, which compresses better.
    flat["BF16"] = np.ascontiguousarray(flat["BF16"].T).view(_BFLOAT16).reshape(-1)
    tensors, starts = {}, dict.fromkeys(flat, 0)
    for tensor, kind, shape in json.loads(data["index"].tobytes()):
        begin = starts[kind]
        starts[kind] += int(np.prod(shape))
        tensors[tensor] = flat[kind][begin : starts[kind]].reshape(shape)
    golden = {key.removeprefix("golden/"): a for key, a in data.items() if key.startswith("golden/")}
    for key in ("hidden_states", "router_input"):
        if key in golden:
            golden[key] = golden[key].view(_BFLOAT16).astype(np.float32)
    return ModelFolder(config, tensors, golden)
