"""The tensors of a decoder outside of its mixture-of-experts blocks, read from a model folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import cast, value_error
from mxfp4moe.checkpoint._experts import read_dense, read_floats, read_matrix
from mxfp4moe.checkpoint._fused import ExpertSizes
from mxfp4moe.checkpoint.huggingface import HuggingFaceCheckpoint
from mxfp4moe.checkpoint.model_folder import ModelFolder
from mxfp4moe.checkpoint.schemes import FLOATS
from mxfp4moe.experts.weights import ExpertWeights
from mxfp4moe.model.configuration import TensorOptions
from mxfp4moe.model.description import DecoderDescription

Floats = NDArray[np.float32]

_LAYER = "model.layers.{layer}."
_EMBEDDING, _FINAL_NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_INPUT_NORM, _POST_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
_HARMLESS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Buffers that old versions of transformers saved; the configuration says how positions are rotated."""


MatrixWeights = dict[str, Any]
"""A matrix as it stands in the files: the arguments of `mxfp4moe.pack_linear`."""


def is_whole(folder: ModelFolder) -> bool:
    """Whether a folder has more than the blocks of experts, which some have alone."""
    first = _LAYER.format(layer=0)
    has_queries = any(True for _ in folder.names_with(f"{first}self_attn.q_proj."))
    return has_queries and all(name in folder for name in (_EMBEDDING, _FINAL_NORM, f"{first}{_INPUT_NORM}"))


class DecoderReader:
    """Reads the tensors of a decoder; each must be used, or is refused by name."""

    def __init__(
        self, checkpoint: HuggingFaceCheckpoint, decoder: DecoderDescription, options: TensorOptions
    ) -> None:
        self._checkpoint, self._decoder, self._options = checkpoint, decoder, options
        self._ends = checkpoint.folder.recording()

    def embedding(self) -> NDArray[Any]:
        """The embedding of each token."""
        shape = (self._decoder.vocab_size, self._decoder.hidden_size)
        return read_floats(self._ends, _EMBEDDING, shape, self._checkpoint.scheme)

    def final_norm(self) -> Floats:
        """The weight of the norm before the head."""
        return self._vector(self._ends, _FINAL_NORM, self._decoder.hidden_size)

    def head(self) -> MatrixWeights:
        """The matrix that makes logits."""
        rows, columns = self._decoder.vocab_size, self._decoder.hidden_size
        name = _EMBEDDING if self._options.is_tied else _HEAD
        matrix = self._matrices(self._ends, [name], [rows], columns)[0]
        if self._options.is_tied and _HEAD in self._ends:
            other = self._matrices(self._ends, [_HEAD], [rows], columns)[0]
            if not np.array_equal(other["weight"], matrix["weight"]):
                expected = f"no tensor {_HEAD} but {_EMBEDDING}, as tie_word_embeddings says"
                raise value_error(str(self._ends.path), expected, "one that differs")
        return matrix

    def check_ends(self) -> None:
        """Raise if what stands before and after the layers is not as expected, or if there is more."""
        self.embedding(), self.final_norm(), self.head()
        layers = _LAYER.format(layer="")[:-1]
        for name in self._ends:
            is_used = name in self._ends.read or name.startswith(layers) or _HARMLESS.fullmatch(name)
            if not is_used:
                expected = "no tensors but those that are used"
                raise value_error(str(self._checkpoint.path), expected, f"{name[:200]!r}")

    def attention(self, layer: int) -> tuple[dict[str, Floats], list[MatrixWeights], MatrixWeights]:
        """The vectors of a layer by name, the projections to queries, keys and values, and that back."""
        decoder, folder = self._decoder, self._checkpoint.folder.recording()
        hidden, prefix = decoder.hidden_size, _LAYER.format(layer=layer)
        names = {"input_norm": _INPUT_NORM, "post_norm": _POST_NORM}
        sizes = dict.fromkeys(names, hidden)
        if decoder.qk_norm != "none":
            names |= {"q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight"}
            whole = decoder.projections[:2]
            each = whole if decoder.qk_norm == "whole" else (decoder.head_dim,) * 2
            sizes |= {"q_norm": each[0], "k_norm": each[1]}
        if decoder.has_sinks:
            names["sinks"], sizes["sinks"] = "self_attn.sinks", decoder.num_heads
        vectors = {key: self._vector(folder, prefix + name, sizes[key]) for key, name in names.items()}
        projections = [f"{prefix}self_attn.{letter}_proj" for letter in "qkv"]
        qkv = self._matrices(folder, projections, decoder.projections, hidden, self._options.has_qkv_bias)
        out = self._matrices(
            folder,
            [f"{prefix}self_attn.o_proj"],
            [hidden],
            decoder.projections[0],
            self._options.has_output_bias,
        )
        self._check_all_read(folder, layer)
        return vectors, qkv, out[0]

    def dense(self, layer: int) -> ExpertWeights:
        """The dense block of a layer without experts."""
        folder, prefix = self._checkpoint.folder.recording(), f"{_LAYER.format(layer=layer)}mlp."
        names = tuple(f"{prefix}{name}_proj" for name in ("gate", "up", "down"))
        sizes = ExpertSizes(1, self._decoder.hidden_size, self._options.dense_size)
        weights = read_dense(folder, names, sizes, self._checkpoint.scheme)
        folder.check_all_read([prefix])
        return weights

    def _check_all_read(self, folder: ModelFolder, layer: int) -> None:
        """Raise for a tensor of a layer, outside of its block, that was not asked for."""
        prefix = _LAYER.format(layer=layer)
        blocks = self._checkpoint.block_prefixes(layer)
        folder.read.update(
            name for name in folder.names_with(prefix) if name.startswith(blocks) or _HARMLESS.fullmatch(name)
        )
        folder.check_all_read([prefix])

    @staticmethod
    def _vector(folder: ModelFolder, name: str, size: int) -> Floats:
        # A copy: a view would keep the whole file mapped.
        return np.array(cast(folder.tensor(name, FLOATS, (size,)), np.float32))

    def _matrices(
        self,
        folder: ModelFolder,
        names: Sequence[str],
        rows: Sequence[int],
        columns: int,
        has_bias: bool = False,
    ) -> list[MatrixWeights]:
        """Matrices that read the same numbers."""
        result = []
        for name, count in zip(names, rows, strict=True):
            name = name.removesuffix(".weight")
            arguments = read_matrix(folder, name, (count, columns), self._checkpoint.scheme)
            if has_bias:
                arguments["bias"] = self._vector(folder, f"{name}.bias", count)
            result.append(arguments)
        return result
