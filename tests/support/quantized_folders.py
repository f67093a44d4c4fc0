"""Small checkpoints in the layouts of other software, with what an independent decoder makes of a layer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from paths import DATA

NAMES = sorted(path.stem for path in (DATA / "quantized").glob("*.npz"))


class QuantizedFolder(NamedTuple):
    """The files of a checkpoint, and the input and output of one of its layers."""

    files: dict[str, bytes]
    golden: dict[str, np.ndarray]

    @property
    def layer(self) -> int:
        return int(self.golden["layer"].item())

    def write(self, folder: Path) -> Path:
        """Write the files; return what is opened: the GGUF file, or the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        gguf = next((name for name in self.files if name.endswith(".gguf")), "")
        return folder / gguf

    def inputs(self, dtype: Any) -> np.ndarray:
        """Hidden states, bfloat16 numbers, in `dtype`."""
        return self.golden["hidden_states"].astype(dtype)


@cache
def load(name: str) -> QuantizedFolder:
    """The checkpoint of this name."""
    with np.load(DATA / "quantized" / f"{name}.npz") as file:
        data = dict(file)
    files = {key.removeprefix("file/"): a.tobytes() for key, a in data.items() if key.startswith("file/")}
    golden = {key.removeprefix("golden/"): a for key, a in data.items() if key.startswith("golden/")}
    return QuantizedFolder(files, golden)
