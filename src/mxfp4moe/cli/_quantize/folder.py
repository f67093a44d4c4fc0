"""Quantizing one model folder to another, shard by shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxfp4moe._json import read_object
from mxfp4moe.checkpoint._read_model import language_model
from mxfp4moe.checkpoint.huggingface import HuggingFaceCheckpoint
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.models import find_row, read_model
from mxfp4moe.checkpoint.safetensors import SafetensorsFile, SafetensorsWriter
from mxfp4moe.cli._quantize.experts import Conversion, Copy, block_conversions
from mxfp4moe.cli._quantize.options import GPT_OSS, Options, find_target

INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
# These modules of gpt-oss are not quantized; the patterns fit any number of layers.
_GPT_OSS_UNQUANTIZED = (
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
)


@dataclass(frozen=True)
class Shard:
    """One file of tensors and what becomes of each."""

    file: SafetensorsFile
    conversions: dict[str, Conversion]

    @property
    def source_bytes(self) -> int:
        return sum(self.file.infos[name].end - self.file.infos[name].begin for name in self.conversions)

    def writer(self, path: Path) -> SafetensorsWriter:
        """The writer of the new file."""
        specs = {name: spec for each in self.conversions.values() for name, spec in each.outputs.items()}
        if len(specs) < sum(len(each.outputs) for each in self.conversions.values()):
            raise ValueError(f"{self.file.path}: expected names that stay different, got tensors of one name")
        return SafetensorsWriter(path, specs, self.file.metadata)


class Quantization:
    """The plan: every header of the source is read and checked, nothing is written."""

    def __init__(self, source: Path, options: Options) -> None:
        self.folder, self.format = ModelFolder(source), options.format
        config = self.folder.config
        _, quantized = language_model(config, find_row(config).section)
        for name in ("quantization_config", "compression_config"):
            if quantized.section(name).fields:
                raise quantized.error(name, "none: a checkpoint in bfloat16", "one")
        self.model = read_model(config)
        is_stacked = self.model.is_stacked
        if self.model.read_experts is not None and not is_stacked:
            raise config.error("model_type", "one whose experts are written matrix by matrix",
                               f"{config.string('model_type')!r}, which has a layout of its own")  # fmt: skip
        self.layout, self.target = find_target(options, config, is_stacked)
        conversions = self._block_conversions()
        self.shards = {
            name: Shard(
                file,
                {t: conversions.get(t) or Copy(t, self.folder.spec(t)) for t in tensors},
            )
            for name, (file, tensors) in self.folder.shards().items()
        }
        self.num_quantized = sum(
            each.quantizes for shard in self.shards.values() for each in shard.conversions.values()
        )
        if not self.num_quantized:
            raise ValueError(f"{source}: expected layers that have experts, got none")
        self.source_bytes = sum(shard.source_bytes for shard in self.shards.values())
        self.nbytes = sum(shard.writer(Path(name)).nbytes for name, shard in self.shards.items())

    def _block_conversions(self) -> dict[str, Conversion]:
        """Find what to do with the tensors of all MoE blocks, those beyond the last layer included."""
        source = HuggingFaceCheckpoint(self.folder)
        for layer in source.moe_layers:
            source.describe_layer(layer)  # which checks every tensor
        result: dict[str, Conversion] = {}
        for layer in self.model.find_layers(self.folder):
            if not self.model.is_dense(layer):
                result |= block_conversions(
                    self.folder, self.model, layer, self.target, stays_fused=self.layout == GPT_OSS
                )
        for name, each in result.items():
            try:
                each.outputs  # noqa: B018  # raises if the shape does not fit the format
            except ValueError as error:
                raise ValueError(f"{self.folder.path}: tensor {name}: {error}") from None
        return result

    def write(self, folder: Path, advance: Callable[[int], None]) -> None:
        """Write the new model into the empty `folder`; `advance` is told how many source bytes are done."""
        weight_map: dict[str, str] = {}
        total_size = 0
        for file_name, shard in self.shards.items():
            with shard.writer(folder / file_name) as writer:
                for name, each in shard.conversions.items():
                    for output, piece in self._pieces(shard, name):
                        writer.write(output, piece)
                        weight_map[output] = file_name
                        total_size += piece.nbytes
                    weight_map |= dict.fromkeys(each.outputs, file_name)
                    advance(shard.file.infos[name].end - shard.file.infos[name].begin)
        if (self.folder.path / INDEX).exists():
            metadata = {"total_size": total_size}
            _write_json(
                folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
            )
        fields = read_object(self.folder.path / "config.json")
        config = {name: value for name, value in fields.items() if name not in self.model.storage_fields}
        _write_json(folder / "config.json", config | {"quantization_config": self.quantization_config()})
        _copy_others(self.folder.path, folder)
        self._check(folder)

    def _check(self, folder: Path) -> None:
        """Raise if what was written is not a model that this package reads."""
        written = HuggingFaceCheckpoint(ModelFolder(folder))
        for layer in written.moe_layers:
            info = written.describe_layer(layer)
            if info.format != self.format:
                raise ValueError(
                    f"{folder}: layer {layer}: expected experts in {self.format}, got {info.format}"
                )

    def quantization_config(self) -> dict[str, Any]:
        """What config.json says of the new weights."""
        if self.layout == GPT_OSS:
            return self.target.config(_GPT_OSS_UNQUANTIZED)
        unquantized = {"lm_head"}
        for shard in self.shards.values():
            for name, each in shard.conversions.items():
                if not each.quantizes:
                    matrices = {name for name, (_, shape) in each.outputs.items() if len(shape) == 2}
                    unquantized |= {
                        name.removesuffix(".weight") for name in matrices if name.endswith(".weight")
                    }
        return self.target.config(sorted(unquantized))

    def _pieces(self, shard: Shard, name: str) -> Any:
        try:
            yield from shard.conversions[name].run(shard.file[name])
        except ValueError as error:
            raise ValueError(f"{shard.file.path}: tensor {name}: {error}") from None


def _copy_others(source: Path, destination: Path) -> None:
    """Copy all files that are neither weights nor written already, and the folders of such files.

    A folder with weights somewhere in it is the model in another form, of which no part is copied.
    """
    for path in sorted(source.iterdir()):
        if path.is_file():
            if not path.name.endswith(_WEIGHT_FILES) and not (destination / path.name).exists():
                shutil.copyfile(path, destination / path.name)
        elif path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            _copy_folder(path, destination / path.name)


def _copy_folder(source: Path, destination: Path) -> None:
    found = [path for path in sorted(source.rglob("*")) if path.is_file()]
    if any(path.name.endswith(_WEIGHT_FILES) for path in found):
        return
    for path in found:
        copy = destination / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
