"""A layer whose experts are spread over the ranks of an MPI communicator."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxfp4moe._arguments import (
    check_choice,
    check_positive_int,
    describe,
    format_ranges,
    type_error,
    value_error,
)
from mxfp4moe._dlpack import SupportsDLPack
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.selection import held_ids
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_sum import Floats, LayerSum, routed_options, shared_options
from mxfp4moe.mpi._channel import Channel
from mxfp4moe.mpi._collective import Collective
from mxfp4moe.mpi._exchange import Exchange
from mxfp4moe.mpi._tensor_parallel import TensorParallel

Combine = Literal["exact", "rounded"]
Cut = Literal["shared", "all"]


class ExpertParallelLayer(MoELayer):
    """A layer of which each rank of a communicator holds some experts; all ranks make and call it together.

    Each rank calls it with its own tokens, any number of them, and gets their results: bit for bit those of
    the whole layer in one process, for any number of ranks and wherever experts are held. Tokens are sent in
    16 bits, each once to a rank that has one of its experts or more, and come back as float32 terms. Calls of
    several threads of one process must not overlap.

    Parameters
    ----------
    layer_slice : MoELayer
        The part of this rank, as `MoELayer.from_checkpoint` reads it with `experts`; or the whole layer. All
        ranks have the same router, shared expert and options; every expert is held by a rank at least, and
        one that several hold is computed by all of them, in turns.
    comm : mpi4py.MPI.Intracomm
        It is duplicated.
    combine : {"exact", "rounded"}
        "rounded" sends one sum for each token and rank instead of terms, rounded to bfloat16: fewer bytes,
        and results that differ in their last bits.
    chunk_tokens : int
        A rank's tokens are computed in pieces of so many; the next piece is on its way meanwhile.
    timeout : float or None
        After so many seconds without an answer of the other ranks, a call is a TimeoutError.
    tensor_parallel : {None, "shared", "all"}
        "shared": each rank computes some rows of the shared expert, for the tokens of all ranks, instead of
        all of it for its own. "all": so of every expert, for layers of few and large ones, which are given
        whole to each rank. Results have the same bits, and each expert costs two exchanges. A rank copies its
        rows; open packed files, so that the other ones take no memory.

    Raises
    ------
    ImportError
        mpi4py is not installed; ``pip install 'mxfp4moe[mpi]'`` brings it.
    TypeError, ValueError
        An argument is wrong, or an expert is held by no rank.
    RankError
        On all ranks but those that could not do their part, whose own error is theirs.

    Examples
    --------
    >>> import mxfp4moe.mpi
    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> ids = mxfp4moe.mpi.contiguous(32, MPI.COMM_WORLD.size)[MPI.COMM_WORLD.rank]  # doctest: +SKIP
    >>> part = mxfp4moe.MoELayer.from_checkpoint("gpt-oss-20b", 3, experts=ids)  # doctest: +SKIP
    >>> layer = mxfp4moe.mpi.ExpertParallelLayer(part, MPI.COMM_WORLD)  # doctest: +SKIP
    >>> result = layer(hidden_states)  # doctest: +SKIP
    """

    def __init__(
        self,
        layer_slice: MoELayer,
        comm: Any,
        *,
        combine: Combine = "exact",
        chunk_tokens: int = 1024,
        timeout: float | None = 300.0,
        tensor_parallel: Cut | None = None,
    ) -> None:
        channel = Channel.of(comm, timeout)
        error: Exception | None = None
        held, digest = np.zeros(0, bool), np.zeros(32, np.uint8)
        try:
            if not isinstance(layer_slice, MoELayer):
                raise type_error("layer_slice", "a MoELayer", describe(layer_slice))
            check_choice("combine", combine, ("exact", "rounded"))
            check_positive_int("chunk_tokens", chunk_tokens)
            _check_cut(tensor_parallel, layer_slice)
            arguments = layer_slice.arguments() | {"routing_arguments": dict(layer_slice.routing_arguments)}
            super().__init__(**arguments, nonfinite=layer_slice.nonfinite)
            self._path, self._next = layer_slice._path, layer_slice._next
            held = np.zeros(self.num_experts, bool)
            held[held_ids(self.expert_map, self.num_experts)] = True
            digest = _digest(arguments, (combine, chunk_tokens, self.nonfinite, tensor_parallel))
        except Exception as wrong:
            error = wrong
        channel.check_all(error)
        same = (channel.gather(digest) == digest).all(axis=1)
        if not same.all():
            other = int(np.flatnonzero(~same)[0])
            expected = f"the same layer and options on all ranks, as on rank {channel.rank}"
            raise value_error("layer_slice", expected, f"others on rank {other}")
        holders = channel.gather(held)
        if not (found := holders.any(axis=0)).all():
            nobody = format_ranges(np.flatnonzero(~found).tolist())
            raise value_error("layer_slice", "each expert on some rank", f"none with {nobody}")
        shared: Collective | None = None
        try:
            if tensor_parallel is not None and self.shared_experts is not None:
                options = shared_options(self, self.shared_experts)
                shared = TensorParallel(self.shared_experts, options, channel, chunk_tokens)
            if tensor_parallel == "all":
                options = routed_options(self)
                self._exchange: Collective = TensorParallel(self.experts, options, channel, chunk_tokens)
            else:
                exchange = Exchange(self, channel, holders, chunk_tokens, combine == "exact")
                # The next router reads what is sent, unless experts work in another width.
                exchange.ahead = self._next if self.latent_down is None else None
                self._exchange = exchange
        except Exception as wrong:  # for example of memory
            error = wrong
        channel.check_all(error)
        self._sum = LayerSum(self, self._exchange, shared)

    def __call__(
        self,
        hidden_states: ArrayLike,
        input_ids: ArrayLike | None = None,
        *,
        router_hidden_states: ArrayLike | None = None,
        out: NDArray[Any] | SupportsDLPack | None = None,
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Compute the layer for the tokens of this rank; all ranks call it, if need be with no tokens.

        Parameters
        ----------
        hidden_states, input_ids, router_hidden_states, out, num_threads
            As for `MoELayer`.

        Returns
        -------
        ndarray of shape (..., hidden_size)
            Of the dtype of `hidden_states`, or `out`.

        Raises
        ------
        TypeError, ValueError
            As `MoELayer`, on the rank whose arguments are wrong.
        RankError
            On all other ranks.
        TimeoutError
            The other ranks did not answer. The layer cannot be called any more, and when the process ends, it
            aborts all ranks, for whom MPI would wait for ever.

        Examples
        --------
        >>> result = layer(hidden_states)  # doctest: +SKIP
        """
        with self._exchange.call():
            return super().__call__(
                hidden_states,
                input_ids,
                router_hidden_states=router_hidden_states,
                out=out,
                num_threads=num_threads,
            )

    def _run_normalized(
        self, residual: Floats, norm: tuple[Floats, float], out: Floats, num_threads: int
    ) -> None:
        with self._exchange.call():
            super()._run_normalized(residual, norm, out, num_threads)

    def _serve(self, num_threads: int | None = None) -> None:
        """Compute for other ranks, with no tokens of this one."""
        rows, nothing = np.empty((0, self.hidden_size), np.float32), (0, 1)
        slots = np.empty(nothing, np.float32), np.empty(nothing, np.int32)
        with self._exchange.call():
            self._sum.add_up(rows, slots, rows, resolve_num_threads(num_threads))

    def _of(self, arguments: dict[str, Any]) -> Any:
        return MoELayer(**arguments, nonfinite=self.nonfinite)

    @classmethod
    def _of_description(cls, *_: object) -> NoReturn:
        raise TypeError("ExpertParallelLayer: expected to be made of a slice and a communicator, got a path")

    def __reduce__(self) -> NoReturn:
        raise TypeError("ExpertParallelLayer: expected to stay in its process, got a pickle")


def _check_cut(value: str | None, layer: MoELayer) -> None:
    """Raise unless the experts that are to be cut are there, as a whole."""
    if value is None:
        return
    check_choice("tensor_parallel", value, ("shared", "all"))
    if value == "shared" and layer.shared_experts is None:
        raise value_error("layer_slice", "a layer with a shared expert, to be cut", "one without")
    if value == "all" and layer.expert_map is not None:
        raise value_error("layer_slice", "the whole layer, with tensor_parallel='all'", "a slice")
    if value == "all" and layer.expert_cache is not None:
        expected = "a layer without a limit of memory, with tensor_parallel='all', which copies rows"
        raise value_error("layer_slice", expected, "one with memory_limit")


def _digest(arguments: dict[str, Any], options: tuple[Any, ...]) -> NDArray[np.uint8]:
    """A digest of what must be the same on all ranks."""
    parts: list[Any] = [options]
    for name, value in sorted(arguments.items()):
        if name == "experts":
            value = value.spec.to_json() | {"num_experts": len(arguments["router_weight"])}
        elif name == "shared_experts":
            value = None if value is None else (value.spec.to_json(), value.data.tobytes())
        elif name == "routing" and callable(value):
            value = getattr(value, "__qualname__", "function")
        if name != "expert_map":
            parts.append((name, value))
    return np.frombuffer(hashlib.sha256(pickle.dumps(parts)).digest(), np.uint8)
