"""One mixture-of-experts layer of a model: router and experts together."""

from __future__ import annotations

import os
from inspect import getdoc
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import as_rows, check_bool, check_choice, describe, type_error
from mxfp4moe._dlpack import SupportsDLPack
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.activation_format import ActivationFormat
from mxfp4moe.experts.cache import ExpertCache, cache_of
from mxfp4moe.experts.fused import as_slots, check_hidden_states, check_slots
from mxfp4moe.experts.out import check_out, given_array, returned, rows_view
from mxfp4moe.experts.packed_experts import PackedExperts
from mxfp4moe.experts.quantizing import QuantizeFormat, check_quantize, pack_weights
from mxfp4moe.experts.residence import check_residence
from mxfp4moe.experts.selection import ExpertIds
from mxfp4moe.layer_ahead import NextLayer
from mxfp4moe.layer_description import NONFINITE, LayerDescription, Nonfinite, sliced
from mxfp4moe.layer_file import open_layer, save_layer
from mxfp4moe.layer_load import LoadCounter, LoadStatistics
from mxfp4moe.layer_routing import LayerRouter
from mxfp4moe.layer_sum import Floats, LayerSum
from mxfp4moe.layer_texts import field_texts
from mxfp4moe.packed.weights import Resident

if TYPE_CHECKING:
    from mxfp4moe.checkpoint import AnyExperts

_Layer = TypeVar("_Layer", bound="MoELayer")
_Class = TypeVar("_Class")


def _with_constructor(cls: type[_Class]) -> type[_Class]:
    """Give the class the constructor of `LayerDescription` and its description as what is its own.

    Then errors about a call and ``help`` speak of the class that was called, and of packed experts alone.
    """
    shared = LayerDescription.__init__
    own = FunctionType(shared.__code__, shared.__globals__, "__init__", shared.__defaults__)
    own.__kwdefaults__, own.__qualname__ = shared.__kwdefaults__, f"{cls.__qualname__}.__init__"
    own.__annotations__ = {
        name: text.replace("_Experts", "PackedExperts") for name, text in shared.__annotations__.items()
    }
    setattr(cls, "__init__", own)  # noqa: B010, for type checkers it is that of the base
    source, text = getdoc(LayerDescription), getdoc(cls)
    if source and text and "Parameters\n" in source:  # an interpreter with -OO leaves docstrings out
        parameters = source[source.index("Parameters\n") : source.index("Examples\n")]
        parameters = parameters.replace("PackedExperts or ExpertWeights", "PackedExperts")
        cls.__doc__ = text.replace("Attributes\n", f"{parameters}Attributes\n", 1)
    return cls


@_with_constructor
class MoELayer(LayerDescription[PackedExperts]):
    """A mixture-of-experts layer: routes each token to its experts and computes them.

    `from_checkpoint` makes one from a model's files; the constructor, from arrays. The result of a token is
    ``routed_scaling_factor * (weighted sum of its experts) + shared expert``, and what else the layer has, in
    float32 and rounded once: `mxfp4moe.reference.moe_layer` lists all.

    Attributes
    ----------
    num_experts, hidden_size, intermediate_size : int
        `num_experts` counts those of the whole layer, also in a slice.
    num_choices : int
        `num_experts` + `num_zero_experts`: how many logits the router gives.

    Notes
    -----
    Each parameter is an attribute too. All attributes are read-only. Arrays are read-only copies: in float32,
    but those of the latent projections in the dtype that was given and `expert_map` in int32. `routing` is a
    name if it is a function of this package, and `routing_arguments` a mapping, with copies of arrays.

    Examples
    --------
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> rng = np.random.default_rng(0)
    >>> w13 = mx.quantize_mxfp4(rng.standard_normal((4, 2 * 32, 64), dtype=np.float32))
    >>> w2 = mx.quantize_mxfp4(rng.standard_normal((4, 64, 32), dtype=np.float32))
    >>> experts = mx.pack_experts(*w13, *w2, format="mxfp4")
    >>> layer = mx.MoELayer(experts, rng.standard_normal((4, 64), dtype=np.float32), top_k=2)
    >>> layer(np.ones((3, 64), np.float32)).shape
    (3, 64)
    """

    def __post_init__(self) -> None:
        for name in ("experts", "shared_experts"):
            value = getattr(self, name)
            if not isinstance(value, PackedExperts) and (name == "experts" or value is not None):
                raise type_error(name, "PackedExperts", describe(value))
        self._copy_floats()
        super().__post_init__()
        self._router = LayerRouter(self)
        self._sum = LayerSum(self)
        self._load = LoadCounter(self.num_experts)
        self._hidden_size = self.hidden_size
        self._path: str | None = None
        self._next: NextLayer | None = None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        layer: int = 0,
        *,
        experts: ExpertIds | None = None,
        quantize: QuantizeFormat | None = None,
        nonfinite: Nonfinite = "raise",
    ) -> Self:
        """Read and pack one layer of a model on disk.

        The files are memory-mapped, and only this layer's tensors are read; of the experts, only those that
        are asked for.

        Parameters
        ----------
        path : str or os.PathLike
            A Hugging Face model folder (config.json and one or several safetensors files), a GGUF file, or a
            packed folder, from which layers are mapped and not copied.
        layer : int
            Counted from 0 over all layers of the model, dense ones included.
        experts : range or iterable of int, optional
            Ids of the experts to read; the layer is then a slice, with an `expert_map`. All if not given.
        quantize : str, optional
            The format to quantize a checkpoint in bfloat16, float16 or float32 to while it is read, one
            expert at a time: "mxfp4", "mxfp8", "fp8_block" (128 x 128), "nvfp4", "int4" or "int8" (in groups
            of 32). Without it such weights are packed in bfloat16, as the shared expert, which every token
            uses, always is.
        nonfinite : {"raise", "propagate"}
            As for `MoELayer`.

        Returns
        -------
        MoELayer

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        TypeError, ValueError
            If the configuration, a file or a tensor is not as expected; the message names the file, what was
            expected and what came. Also if the layer has no experts, or if weights that are quantized already
            should be quantized.

        Examples
        --------
        >>> layer = mx.MoELayer.from_checkpoint("gpt-oss-20b", layer=3)  # doctest: +SKIP
        """
        check_quantize(quantize)
        check_choice("nonfinite", nonfinite, NONFINITE)
        from mxfp4moe import checkpoint  # which most uses of layers do without

        description = sliced(checkpoint.read_layer(path, layer), experts)
        return cls._of_description(description, quantize, os.fspath(path), nonfinite)

    @classmethod
    def _of_description(
        cls,
        description: LayerDescription[AnyExperts],
        quantize: QuantizeFormat | None = None,
        path: str | None = None,
        nonfinite: Nonfinite = "raise",
        quantize_shared: QuantizeFormat | None = None,
    ) -> Self:
        """The layer that `description` describes, its experts quantized if asked to, and packed."""
        arguments = description.arguments()
        for name, target in (("experts", quantize), ("shared_experts", quantize_shared)):
            if arguments[name] is not None:
                try:
                    arguments[name] = pack_weights(arguments[name], target)
                except (TypeError, ValueError) as error:
                    # It names an argument, and the file of a caller who gave none.
                    place = "" if path is None else f"{path}, layer {description.layer_number}, {name}: "
                    raise type(error)(f"{place}{error}") from error
        return _make(cls, arguments | {"nonfinite": nonfinite}, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to a packed file at `path`, from which `open` maps it.

        The file appears under its name when it is complete and on the disk, with the permissions of one that
        it replaces.

        Parameters
        ----------
        path : str or os.PathLike

        Raises
        ------
        TypeError
            The layer routes by a function that is not of this package.
        OSError
            It says why the file cannot be written.

        Examples
        --------
        >>> layer.save("layer-3.packed")  # doctest: +SKIP
        """
        save_layer(self, path)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        experts: ExpertIds | None = None,
        verify: bool = False,
        nonfinite: Nonfinite = "raise",
        memory_limit: int | None = None,
        resident: Resident = "mapped",
    ) -> Self:
        """Open a layer that `save` or ``mxfp4moe pack`` wrote.

        The weights are memory-mapped read-only: this takes milliseconds, they are read when they are used,
        and processes that open the same file share one copy. The file must not be shortened while in use.

        Parameters
        ----------
        path : str or os.PathLike
        experts : range or iterable of int, optional
            Ids of the experts to use, as for `from_checkpoint`; the pages of the others are not read.
        verify : bool, default False
            Read the whole file, but for experts that are not used, and compare its checksums.
        nonfinite : {"raise", "propagate"}
            As for `MoELayer`.
        memory_limit : int, optional
            The bytes that the experts may take in memory, as for `load_layers`.
        resident : {"mapped", "local"}
            "local": the weights are copied into memory of this process, on huge pages, each part by the
            threads that compute with it later, and so near them on machines with several NUMA nodes.

        Returns
        -------
        MoELayer

        Raises
        ------
        FileNotFoundError
            There is no such file.
        PackedFormatError
            It is no packed file of a layer, of another version, or damaged.

        Examples
        --------
        >>> layer = mx.MoELayer.open("layer-3.packed")  # doctest: +SKIP
        """
        check_choice("nonfinite", nonfinite, NONFINITE)
        residence = check_residence(resident, memory_limit)
        description = open_layer(path, check_bool("verify", verify), experts, residence)
        return cls._of_description(description, None, os.fspath(path), nonfinite)

    def _of(self, arguments: dict[str, Any]) -> Self:
        return _make(type(self), arguments | {"nonfinite": self.nonfinite}, self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = self.arguments() | {"routing_arguments": dict(self.routing_arguments)}
        arguments["nonfinite"] = self.nonfinite
        return _make, (type(self), arguments, self._path)

    def __repr__(self) -> str:
        texts = [] if self._path is None else [repr(self._path)]
        return f"MoELayer({', '.join([*texts, *field_texts(self)])}, {self.nbytes / 1e6:.1f} MB)"

    def route(
        self,
        hidden_states: ArrayLike,
        input_ids: ArrayLike | None = None,
        *,
        router_hidden_states: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Choose each token's experts, in float32 on the hidden states rounded to bfloat16.

        A token's logits are the same bits in any batch and for any number of threads. Shared experts, which
        every token goes to, are not among those chosen, also where the router weighs them.

        Parameters
        ----------
        hidden_states : ndarray of shape (..., hidden_size)
            bfloat16, float16 or float32.
        input_ids : integer ndarray of shape (...), optional
            Token ids. Layers that route by them (DeepSeek-V4's first ones) need them; others do not look at
            them.
        router_hidden_states : ndarray of shape (..., hidden_size), optional
            What the router reads. Layers with `separate_router_input` (Gemma-4's) need it; others refuse it.
        num_threads : int, optional

        Returns
        -------
        topk_weights : ndarray of shape (..., top_k), float32
        topk_ids : ndarray of shape (..., top_k), int32

        Raises
        ------
        TypeError, ValueError
            If `hidden_states` or `input_ids` has another dtype or shape, or a logit is NaN or infinite;
            with ``nonfinite="propagate"`` such a token has the ids -1 and the weights NaN.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> w13 = mx.quantize_mxfp4(np.ones((4, 2 * 32, 64), np.float32))
        >>> w2 = mx.quantize_mxfp4(np.ones((4, 64, 32), np.float32))
        >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.eye(4, 64, dtype=np.float32), top_k=2)
        >>> weights, ids = layer.route(np.arange(64, dtype=np.float32))
        >>> ids
        array([3, 2], dtype=int32)
        """
        hidden = check_hidden_states(hidden_states, self.hidden_size)
        read = self._router.input(hidden, router_hidden_states)
        weights, ids, _ = self._router.route(hidden, read, input_ids, num_threads)
        if isinstance(self.routing, str) and ids.shape[-1] > self.top_k:
            # Shared experts that the router weighs come after those that are chosen.
            return weights[..., : self.top_k].copy(), ids[..., : self.top_k].copy()
        return weights, ids

    def router_logits(
        self,
        hidden_states: ArrayLike,
        *,
        router_hidden_states: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the logits that `route` chooses by.

        Parameters
        ----------
        hidden_states, router_hidden_states, num_threads
            As for `route`.

        Returns
        -------
        ndarray of shape (..., num_choices), float32

        Raises
        ------
        TypeError, ValueError
            As `route` does, except about logits that cannot be routed.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> w13 = mx.quantize_mxfp4(np.ones((4, 2 * 32, 64), np.float32))
        >>> w2 = mx.quantize_mxfp4(np.ones((4, 64, 32), np.float32))
        >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.eye(4, 64, dtype=np.float32), top_k=2)
        >>> layer.router_logits(np.arange(64, dtype=np.float32))
        array([0., 1., 2., 3.], dtype=float32)
        """
        hidden = check_hidden_states(hidden_states, self.hidden_size)
        return self._router.logits(self._router.input(hidden, router_hidden_states), num_threads)

    def __call__(
        self,
        hidden_states: ArrayLike,
        input_ids: ArrayLike | None = None,
        *,
        router_hidden_states: ArrayLike | None = None,
        out: NDArray[Any] | SupportsDLPack | None = None,
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Compute the layer for every token.

        Parameters
        ----------
        hidden_states : ndarray of shape (..., hidden_size)
            bfloat16, float16 or float32.
        input_ids : integer ndarray of shape (...), optional
            As for `route`.
        router_hidden_states : ndarray of shape (..., hidden_size), optional
            As for `route`.
        out : ndarray of shape (..., hidden_size), optional
            Where to put the result; as for `fused_experts`.
        num_threads : int, optional

        Returns
        -------
        ndarray of shape (..., hidden_size)
            Of the dtype of `hidden_states`, or `out`.

        Raises
        ------
        TypeError, ValueError
            As `route` and `fused_experts`.
        """
        hidden = check_hidden_states(hidden_states, self._hidden_size)
        read = self._router.input(hidden, router_hidden_states)
        threads = resolve_num_threads(num_threads)
        if out is not None:
            inputs: dict[str, Any] = {"input_ids": input_ids}
            if router_hidden_states is not None:
                inputs["router_hidden_states"] = given_array(router_hidden_states, read)
            result = check_out(out, given_array(hidden_states, hidden), inputs)
        else:
            result = np.empty(hidden.shape, hidden.dtype)
        weights, ids, nonfinite = self._router.route(hidden, read, input_ids, threads)
        if isinstance(self.routing, str):
            slots = as_rows(weights), as_rows(ids)
        else:
            slots = check_slots(*as_slots(weights, ids), hidden.shape[:-1], self.num_choices)
        self._load.count(slots[1])
        rows = as_rows(hidden)
        if self._next is not None:
            self._next.expect(rows)
        target = rows_view(result)
        buffer = np.empty(rows.shape, result.dtype) if target is None else target
        self._sum.add_up(rows, slots, buffer, threads)
        if target is None:
            result[...] = buffer.reshape(result.shape)
        if nonfinite is not None:
            result[nonfinite] = np.nan
        return returned(out, result)

    def load_statistics(self) -> LoadStatistics:
        """Return how often each expert was chosen in calls of this layer so far.

        Returns
        -------
        LoadStatistics
            A tuple of `tokens` and `slots`, the counts of each expert, of which `mxfp4moe.mpi.by_load` makes
            a placement. Those of a slice count all experts of the layer. Its attribute `cache` is that of
            `ExpertCache.statistics` if there is a limit of memory, else None.

        Examples
        --------
        >>> import numpy as np
        >>> import mxfp4moe as mx
        >>> w13 = mx.quantize_mxfp4(np.ones((4, 2 * 32, 64), np.float32))
        >>> w2 = mx.quantize_mxfp4(np.ones((4, 64, 32), np.float32))
        >>> layer = mx.MoELayer(mx.pack_experts(*w13, *w2), np.eye(4, 64, dtype=np.float32), top_k=2)
        >>> result = layer(np.tile(np.arange(64, dtype=np.float32), (5, 1)))
        >>> layer.load_statistics()
        LoadStatistics(tokens=5, slots=array([0, 0, 5, 5]))
        """
        cache = self.expert_cache
        return self._load.statistics(None if cache is None else cache.statistics())

    @property
    def expert_cache(self) -> ExpertCache | None:
        """The experts that are in memory, of a layer that was opened with a `memory_limit`; None of others.

        Returns
        -------
        ExpertCache or None
        """
        return cache_of(self.experts, self.expert_map)

    def _precede(self, other: MoELayer) -> None:
        """Ask for the experts of the layer that is called after this one, if it has a limit of memory."""
        if (cache := other.expert_cache) is not None and other._router.reads_hidden_states:
            self._next = NextLayer(other._router, cache)

    def _with_activation_format(self, value: ActivationFormat | None) -> Self:
        """The same layer with another format of activations."""
        layer = self._of(self.arguments() | {"activation_format": value})
        layer._next = self._next  # whose routing does not depend on it
        return layer

    def _run_normalized(
        self, residual: Floats, norm: tuple[Floats, float], out: Floats, num_threads: int
    ) -> None:
        """Write to `out` what a layer of a whole model computes of the norm of its tokens."""
        slots, rows = self._router.route_normalized(residual, norm, num_threads)
        self._load.count(slots[1])
        if self._next is not None:
            self._next.expect(rows)
        self._sum.add_up(rows, slots, out, num_threads)


def _make(layer_class: type[_Layer], arguments: dict[str, Any], path: str | None) -> _Layer:
    """The layer of these arguments, which remembers where it was read from."""
    layer = layer_class(**arguments)
    layer._path = path
    return layer
