"""Graphs whose mixture-of-experts nodes become those of this package."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mxfp4moe._arguments import value_error
from mxfp4moe._files import atomic_file, check_target, errors_name
from mxfp4moe.experts.packing import pack_experts
from mxfp4moe.onnxruntime._moe_nodes import KINDS, MoENode, Router, read_node

_DOMAIN = "mxfp4moe"
_OPSET = 13  # the first with axes of ReduceSum as an input
_IN_THE_MODEL = 2**30  # bytes of weights; a protobuf holds less than twice as many
_INPUTS = (
    "w13", "w13_scales", "w2", "w2_scales", "w13_bias", "w2_bias", "w13_zero_points", "w2_zero_points",
    "w13_tensor_scale", "w2_tensor_scale",
)  # fmt: skip
_OF_CALL = ("activation", "alpha", "limit")  # attributes that do not belong to the weights
_Constants = Mapping[str, Callable[[], np.ndarray]]


def convert(
    model_in: str | os.PathLike[str],
    model_out: str | os.PathLike[str],
    *,
    packed_folder: str | os.PathLike[str] | None = None,
) -> int:
    """Replace the nodes `QMoE` and `MoE` of an ONNX model by `FusedExperts`.

    They are those of the domain `com.microsoft` that ONNX Runtime documents. Routing becomes nodes of ONNX
    that do what the kernels for CPUs do: the softmax is over the chosen experts for `QMoE` with integers,
    whether or not weights are normalized, and otherwise over all experts. The codes and scales of `QMoE` are
    used exactly; the floats of `MoE` are rounded to bfloat16.

    Parameters
    ----------
    model_in, model_out : path
        Files; the second may be the first. A model with more than 1 GiB of weights has them in a file beside
        it, ``<model_out>.data``.
    packed_folder : path, optional
        A folder that exists. Experts become packed files there, which the model names by their absolute
        paths: they are mapped when it runs. Otherwise they are initializers, which are packed whenever a
        session is made.

    Returns
    -------
    int
        The number of nodes that were replaced.

    Raises
    ------
    ImportError
        The package onnx is not installed.
    OSError
        A file cannot be read or written.
    ValueError
        `model_in` is no ONNX model, has no such node, or one with something that is not computed here, which
        the message names: weights of 2 bits, of fp8 or of a layout that is not documented, blocks that are no
        multiple of 32, activations without a gate, the sparse mixer, scales of activations.

    Examples
    --------
    >>> import mxfp4moe as mx
    >>> mx.onnxruntime.convert("model.onnx", "converted.onnx")  # doctest: +SKIP
    24
    >>> try:
    ...     mx.onnxruntime.convert("no such model", "converted.onnx")
    ... except (FileNotFoundError, ImportError) as error:
    ...     print("no such model" in str(error) or "pip install 'mxfp4moe[onnxruntime]'" in str(error))
    True
    """
    onnx = _import_onnx()
    source = Path(model_in)
    folder = None if packed_folder is None else Path(packed_folder).absolute()
    if folder is not None and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder that exists")
    target = check_target(Path(model_out))
    model = _load(onnx, source)
    conversion = _Conversion(onnx, source, folder)
    conversion.graph(model.graph, {})
    if not conversion.count:
        raise value_error(str(source), f"a node {' or '.join(KINDS)} of com.microsoft", "none")
    _check_opset(model, source)
    _drop_unused(model.graph, conversion.replaced)
    if not any(each.domain == _DOMAIN for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    _save(onnx, model, target)
    return conversion.count


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError(
            "the package onnx is not installed (pip install 'mxfp4moe[onnxruntime]')"
        ) from error


def _load(onnx: Any, path: Path) -> Any:
    try:
        with errors_name(path):
            return onnx.load(str(path))
    except OSError:
        raise
    except Exception as error:  # of protobuf, and of the checks of external data
        raise value_error(str(path), "an ONNX model", str(error)) from error


def _check_opset(model: Any, path: Path) -> None:
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if not versions or max(versions) < _OPSET:
        got = str(max(versions)) if versions else "none"
        raise value_error(str(path), f"version {_OPSET} of ONNX's operators or newer", got)


def _graphs_of(node: Any) -> Iterator[Any]:
    """The graphs that are attributes of a node, as of If and Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


class _Conversion:
    """The nodes of a model and of the graphs in it, one after the other."""

    def __init__(self, onnx: Any, source: Path, folder: Path | None) -> None:
        self._onnx, self._source, self._folder = onnx, source, folder
        self.count = 0
        self.replaced: set[str] = set()  # constants that were inputs of replaced nodes

    def graph(self, graph: Any, outer: _Constants) -> None:
        constants = {**outer, **self._constants_of(graph)}
        nodes = []
        for node in graph.node:
            for inner in _graphs_of(node):
                self.graph(inner, constants)
            if node.domain == "com.microsoft" and node.op_type in KINDS:
                nodes += self._replacement(graph, node, constants)
            else:
                nodes.append(node)
        del graph.node[:]
        graph.node.extend(nodes)

    def _constants_of(self, graph: Any) -> dict[str, Callable[[], np.ndarray]]:
        """Initializers and constants; not those that a caller may replace, being inputs too."""
        to_array = self._onnx.numpy_helper.to_array
        tensors = {each.name: each for each in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensors.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
        inputs = {each.name for each in graph.input}
        return {name: partial(to_array, each) for name, each in tensors.items() if name not in inputs}

    def _replacement(self, graph: Any, node: Any, constants: _Constants) -> list[Any]:
        where = f"{self._source}: node {node.name or node.output[0]}"
        read = read_node(node, self._onnx.helper.get_attribute_value, constants, where)
        prefix = f"{_DOMAIN}/{self.count}/{node.output[0]}"
        self.count += 1
        self.replaced |= set(node.input) & constants.keys()
        weights, ids = f"{prefix}/topk_weights", f"{prefix}/topk_ids"
        nodes = _Nodes(self._onnx, prefix)
        nodes.route(read.router, weights, ids)
        inputs, attributes = self._weights(graph, read, prefix)
        nodes.add(
            "FusedExperts",
            [node.input[0], weights, ids, *inputs],
            [node.output[0]],
            domain=_DOMAIN,
            **attributes,
        )
        graph.initializer.extend(nodes.initializers)
        return nodes.nodes

    def _weights(self, graph: Any, read: MoENode, prefix: str) -> tuple[list[str], dict[str, Any]]:
        """The inputs of a node and its attributes."""
        if self._folder is None:
            for name, array in read.arrays.items():
                graph.initializer.append(self._onnx.numpy_helper.from_array(array, f"{prefix}/{name}"))
            inputs = [f"{prefix}/{name}" if name in read.arrays else "" for name in _INPUTS]
            while not inputs[-1]:
                inputs.pop()
            return inputs, read.attributes
        path = self._folder / f"experts-{self.count - 1}"
        of_call = {name: value for name, value in read.attributes.items() if name in _OF_CALL}
        packing: dict[str, Any] = {name: read.arrays.get(name) for name in ("w13_scales", "w2_scales")}
        packing |= read.arrays
        packing |= {name: value for name, value in read.attributes.items() if name not in _OF_CALL}
        pack_experts(**packing).save(path)
        return [], {**of_call, "path": str(path)}


class _Nodes:
    """New nodes of a graph, whose values have a prefix."""

    def __init__(self, onnx: Any, prefix: str) -> None:
        self._onnx, self._prefix = onnx, prefix
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        name = f"{self._prefix}/{kind} {len(self.nodes)}"
        self.nodes.append(
            self._onnx.helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return outputs[0]

    def _new(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.add(kind, list(inputs), [f"{self._prefix}/{len(self.nodes)}"], **attributes)

    def _constant(self, name: str, value: np.ndarray) -> str:
        name = f"{self._prefix}/{name}"
        self.initializers.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _float32(self, name: str) -> str:
        return self._new("Cast", name, to=self._onnx.TensorProto.FLOAT)

    def route(self, router: Router, weights: str, ids: str) -> None:
        """Nodes whose results are the weights and the ids of the chosen experts."""
        scores = self._float32(router.probabilities)
        if router.over_all and not router.weights:
            scores = self._new("Softmax", scores, axis=-1)
        top_k = self._constant("k", np.array([router.top_k], np.int64))
        chosen = f"{self._prefix}/chosen"
        self.add("TopK", [scores, top_k], [chosen, ids], axis=-1)
        if router.weights:
            chosen = self._new("GatherElements", self._float32(router.weights), ids, axis=1)
        if not (router.over_all or router.weights):
            self.add("Softmax", [chosen], [weights], axis=-1)
        elif router.renormalize:
            axis = self._constant("last axis", np.array([-1], np.int64))
            total = self._new("ReduceSum", chosen, axis)
            zero = self._constant("zero", np.zeros((), np.float32))
            # Weights whose sum is zero all count as zero.
            inverse = self._new(
                "Where", self._new("Equal", total, zero), zero, self._new("Reciprocal", total)
            )
            self.add("Mul", [chosen, inverse], [weights])
        else:
            self.add("Identity", [chosen], [weights])


def _names_used(graph: Any) -> set[str]:
    used = {each.name for each in graph.output}
    for node in graph.node:
        used.update(node.input)
        for inner in _graphs_of(node):
            used |= _names_used(inner)
    return used


def _drop_unused(graph: Any, replaced: set[str]) -> None:
    """Remove the weights of replaced nodes that no other node uses."""
    unused = replaced - _names_used(graph)
    kept = [each for each in graph.initializer if each.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for inner in _graphs_of(node):
            _drop_unused(inner, replaced)


def _save(onnx: Any, model: Any, path: Path) -> None:
    if sum(len(each.raw_data) for each in model.graph.initializer) <= _IN_THE_MODEL:
        with errors_name(path), atomic_file(path) as file:
            file.write(model.SerializeToString())
        return
    beside = path.with_name(f"{path.name}.data")
    if beside.exists():
        raise FileExistsError(f"{beside}: expected no file, for the weights are to be written there")
    onnx.save_model(model, str(path), save_as_external_data=True, location=beside.name)
