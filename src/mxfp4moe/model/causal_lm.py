"""A causal language model: from token ids to logits and generated tokens."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from mxfp4moe._arguments import check_bool, check_choice, check_int, value_error
from mxfp4moe.config import resolve_num_threads
from mxfp4moe.experts.activation_format import ActivationFormat, check_name
from mxfp4moe.experts.quantizing import QuantizeFormat, check_quantize
from mxfp4moe.experts.residence import check_residence
from mxfp4moe.layer import MoELayer
from mxfp4moe.layer_load import LoadStatistics
from mxfp4moe.model.cache import ModelCache, restored_on_error
from mxfp4moe.model.decoder import Decoder, Step
from mxfp4moe.model.description import DecoderDescription
from mxfp4moe.model.files import save_decoder
from mxfp4moe.model.inputs import GivenBatch, GivenIds, Inputs, Logits, cut_steps, read_caches, read_inputs
from mxfp4moe.model.loading import load_decoder, open_packed_decoder
from mxfp4moe.model.sampling import Batch, Sampling, SamplingOptions, check_seeds, check_stop
from mxfp4moe.packed.weights import Resident

_STEP_TOKENS = 1024  # that are computed together at the most, so that memory is bounded
_CACHE_DTYPES = ("float32", "bfloat16")


class CausalLM:
    """A causal language model whose blocks are mixtures of experts.

    `from_checkpoint` makes one from a model folder, `open` from a packed folder. On one instruction set the
    logits of a token have the same bits whatever else is in the batch, however the prompt is cut, with or
    without a cache, and for any number of threads.

    Attributes
    ----------
    model_type : str
    num_layers, hidden_size, vocab_size : int
    max_positions : int
        How many tokens a sequence may have.
    end_ids : tuple of int
        The tokens that end a text.
    nbytes : int
        The bytes of all weights in memory.
    activation_format : str or None
        What activations are rounded to; None is bfloat16.

    Examples
    --------
    A model of one layer with random weights:

    >>> import json, tempfile
    >>> import numpy as np
    >>> import mxfp4moe as mx
    >>> from mxfp4moe.checkpoint.safetensors import save_file
    >>> rng = np.random.default_rng(0)
    >>> def weights(names, *shape):
    ...     return {f"{name}.weight": rng.standard_normal(shape, np.float32) / 8 for name in names.split()}
    >>> layer = {
    ...     **weights("input_layernorm post_attention_layernorm", 64),
    ...     **weights("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj", 64, 64),
    ...     **weights("block_sparse_moe.gate", 2, 64),
    ...     **weights("block_sparse_moe.experts.0.w1 block_sparse_moe.experts.1.w1", 32, 64),
    ...     **weights("block_sparse_moe.experts.0.w3 block_sparse_moe.experts.1.w3", 32, 64),
    ...     **weights("block_sparse_moe.experts.0.w2 block_sparse_moe.experts.1.w2", 64, 32),
    ... }
    >>> tensors = {f"model.layers.0.{name}": array for name, array in layer.items()}
    >>> tensors |= {**weights("model.embed_tokens lm_head", 10, 64), **weights("model.norm", 64)}
    >>> config = {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 32, "vocab_size": 10,
    ...           "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    ...           "num_local_experts": 2, "num_experts_per_tok": 1, "max_position_embeddings": 100}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(f"{folder}/model.safetensors", tensors)
    ...     with open(f"{folder}/config.json", "w") as file:
    ...         json.dump(config, file)
    ...     lm = mx.CausalLM.from_checkpoint(folder)
    >>> logits = lm([3, 1, 4])
    >>> logits.shape
    (3, 10)

    With a cache a prompt may come in pieces. The bits are the same:

    >>> cache = lm.new_cache()
    >>> np.array_equal([*lm([3], cache), *lm([1, 4], cache)], logits)
    True
    >>> len(list(lm.generate([3, 1, 4], max_new_tokens=5, temperature=0.8, seed=1)))
    5
    """

    __slots__ = ("_decoder", "_path")

    _decoder: Decoder
    _path: str | None

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError("CausalLM: expected to be made by from_checkpoint() or open(), got a direct call")

    @classmethod
    def _make(cls, decoder: Decoder, path: str | None = None) -> Self:
        self = object.__new__(cls)
        self._decoder, self._path = decoder, path
        return self

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        quantize: QuantizeFormat | None = None,
        quantize_dense: QuantizeFormat | None = None,
        activation_format: ActivationFormat | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Read and pack a model, one layer after the other.

        Files are memory-mapped, and what a layer was made of is let go before the next one is read.

        Parameters
        ----------
        path : str or os.PathLike
            A Hugging Face model folder (config.json and safetensors files), or a packed folder that `save` or
            ``mxfp4moe pack`` wrote, which is mapped as `open` does.
        quantize : str, optional
            The format to quantize experts in bfloat16, float16 or float32 to, as for
            `MoELayer.from_checkpoint`.
        quantize_dense : str, optional
            The same for attention, layers without experts, shared experts and the head; never for routers,
            norms and the embedding.
        activation_format : {None, "int8"}
            As for `fused_experts`, of the experts of all layers, whose weights must be in one of its formats;
            and of shared experts, layers without experts, the matrices of attention and the head, as far as
            they are in one of these. What these read has been rounded to bfloat16 before, by a norm or by the
            attention. Routers, norms and the attention itself are computed as without it. `save` does not
            keep it.
        progress : bool, optional
            Whether to show a progress bar on stderr; if not given, only on a terminal.

        Returns
        -------
        CausalLM

        Raises
        ------
        FileNotFoundError, TypeError, ValueError
            As `MoELayer.from_checkpoint`; also for a model type, a field of the configuration or a tensor
            whose meaning is not computed here: the message names it.

        Examples
        --------
        >>> lm = mx.CausalLM.from_checkpoint("gpt-oss-20b", quantize_dense="mxfp8")  # doctest: +SKIP
        """
        check_quantize(quantize)
        check_quantize(quantize_dense, "quantize_dense")
        shown = None if progress is None else check_bool("progress", progress)
        name = check_name(activation_format)
        decoder = load_decoder(path, quantize, quantize_dense, shown)
        return cls._make(_with_format(decoder, name), os.fspath(path))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        activation_format: ActivationFormat | None = None,
        verify: bool = False,
        memory_limit: int | None = None,
        resident: Resident = "mapped",
    ) -> Self:
        """Open a packed folder that `save` or ``mxfp4moe pack`` wrote.

        The weights are memory-mapped read-only: this takes milliseconds for each layer at the most, they are
        read when they are used, and processes that open the same folder share one copy.

        Parameters
        ----------
        path : str or os.PathLike
        activation_format : {None, "int8"}
            As for `from_checkpoint`.
        verify : bool, default False
            Read all files and compare their checksums.
        memory_limit : int, optional
            The bytes that the experts of all layers may take in memory, as for `load_layers`; attention,
            routers, shared experts and head come on top of it.
        resident : {"mapped", "local"}
            As for `MoELayer.open`.

        Returns
        -------
        CausalLM

        Raises
        ------
        FileNotFoundError
            There is no such folder.
        PackedFormatError
            It is no packed folder of a whole model, of another version, or damaged.
        ValueError
            There is no such format of activations, or none for the weights of the experts; `memory_limit` is
            less than the experts of a token.

        Examples
        --------
        >>> lm = mx.CausalLM.open("gpt-oss-20b-packed")  # doctest: +SKIP
        """
        name, residence = check_name(activation_format), check_residence(resident, memory_limit)
        decoder = open_packed_decoder(path, check_bool("verify", verify), residence)
        return cls._make(_with_format(decoder, name), os.fspath(path))

    def save(self, path: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Write the model to a packed folder at `path`, from which `open` maps it.

        The folder appears under its name when it is complete and on the disk. It also gets copies of the
        tokenizer and configuration of the folder that the model was read from, as far as they are there.

        Parameters
        ----------
        path : str or os.PathLike
        replace : bool, default False
            Whether a packed folder that is there may be replaced.

        Raises
        ------
        ValueError
            There is something at that path already.
        OSError
            It says why the folder cannot be written.

        Examples
        --------
        >>> lm.save("gpt-oss-20b-packed")  # doctest: +SKIP
        """
        save_decoder(self._decoder, path, self._path, check_bool("replace", replace))

    @property
    def _description(self) -> DecoderDescription:
        return self._decoder.description

    @property
    def model_type(self) -> str:
        """``model_type`` of the configuration.

        Returns
        -------
        str
        """
        return self._description.model_type

    @property
    def num_layers(self) -> int:
        """How many layers there are, those without experts included.

        Returns
        -------
        int
        """
        return self._description.num_layers

    @property
    def hidden_size(self) -> int:
        """The length of a hidden state.

        Returns
        -------
        int
        """
        return self._description.hidden_size

    @property
    def vocab_size(self) -> int:
        """How many tokens there are.

        Returns
        -------
        int
        """
        return self._description.vocab_size

    @property
    def max_positions(self) -> int:
        """How many tokens a sequence may have.

        Returns
        -------
        int
        """
        return self._description.max_positions

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text.

        Returns
        -------
        tuple of int
        """
        return self._description.end_ids

    @property
    def nbytes(self) -> int:
        """The bytes of all weights in memory.

        Returns
        -------
        int
        """
        return self._decoder.nbytes

    def load_statistics(self) -> dict[int, LoadStatistics]:
        """Return `MoELayer.load_statistics` of each layer that has experts.

        Returns
        -------
        dict of int to LoadStatistics
            By the number of the layer, from 0.

        Examples
        --------
        >>> lm.load_statistics()[0].cache  # doctest: +SKIP
        CacheStatistics(hits=412, misses=100, prefetched=60, bytes_read=1347420160, resident_bytes=269484032)
        """
        blocks = enumerate(layer.block for layer in self._decoder.layers)
        return {i: block.load_statistics() for i, block in blocks if isinstance(block, MoELayer)}

    @property
    def activation_format(self) -> ActivationFormat | None:
        """What activations are rounded to; None is bfloat16.

        Returns
        -------
        str or None
        """
        return self._decoder.activation_format

    def __repr__(self) -> str:
        path = "" if self._path is None else f"{self._path!r}, "
        sizes = f"{self.num_layers} layers, hidden_size={self.hidden_size}, vocab_size={self.vocab_size}"
        return f"CausalLM({path}{self.model_type}, {sizes}, {self.nbytes / 1e6:.1f} MB)"

    def new_cache(self, *, dtype: Literal["float32", "bfloat16"] = "float32") -> ModelCache:
        """Return an empty cache for a sequence.

        Parameters
        ----------
        dtype : {"float32", "bfloat16"}
            Of keys and values. bfloat16 takes half the memory, and rounds them; calls without a cache compute
            as with float32.

        Returns
        -------
        ModelCache

        Raises
        ------
        TypeError, ValueError
            There is no such dtype.

        Examples
        --------
        >>> cache = lm.new_cache()  # doctest: +SKIP
        """
        check_choice("dtype", dtype, _CACHE_DTYPES)
        return ModelCache(self._decoder.new_caches(dtype))

    @overload
    def __call__(
        self,
        input_ids: GivenIds,
        cache: ModelCache | Sequence[ModelCache] | None = None,
        *,
        last_only: bool = False,
        num_threads: int | None = None,
    ) -> Logits: ...

    @overload
    def __call__(
        self,
        input_ids: GivenBatch,
        cache: Sequence[ModelCache] | None = None,
        *,
        last_only: bool = False,
        num_threads: int | None = None,
    ) -> list[Logits]: ...

    def __call__(
        self,
        input_ids: GivenIds | GivenBatch,
        cache: ModelCache | Sequence[ModelCache] | None = None,
        *,
        last_only: bool = False,
        num_threads: int | None = None,
    ) -> Logits | list[Logits]:
        """Compute the logits of the token after each of `input_ids`.

        Parameters
        ----------
        input_ids : integer ndarray of shape (T,) or (B, T), or a list of sequences of ids
            Sequences of different lengths are a list of arrays with one axis.
        cache : ModelCache, or a list of them with one for each sequence, optional
            The tokens before; those of `input_ids` are appended. None: there are none before.
        last_only : bool
            Compute the logits of the last token of each sequence alone, which saves time and memory.
        num_threads : int, optional

        Returns
        -------
        float32 ndarray of shape (..., T, vocab_size), or a list of them
            With `last_only`, T is 1.

        Raises
        ------
        TypeError, ValueError
            If an id is none of the vocabulary, a sequence is empty, or it is longer than the model can take.
            Whatever is raised, Ctrl-C included, caches stay as they were.
        """
        inputs = read_inputs(input_ids, self._description)
        caches = read_caches(cache, inputs, self._description)
        check_bool("last_only", last_only)
        results = self._compute(inputs, caches, last_only, resolve_num_threads(num_threads))
        return inputs.returned(results)

    def _compute(
        self, inputs: Inputs, caches: list[ModelCache] | None, last_only: bool, threads: int
    ) -> list[NDArray[np.float32]]:
        """The logits of each sequence, step by step."""
        sequences = inputs.sequences
        lengths = [len(ids) for ids in sequences]
        # Allocated first: where memory does not suffice, nothing has been computed in vain.
        shapes = [(1 if last_only else length, self.vocab_size) for length in lengths]
        results = [np.empty(shape, np.float32) for shape in shapes]
        caches = [self.new_cache() for _ in sequences] if caches is None else caches
        with restored_on_error(caches):
            for parts in cut_steps(lengths, _STEP_TOKENS):
                step = Step(
                    np.concatenate([sequences[i][begin:end] for i, begin, end in parts]),
                    tuple(end - begin for _, begin, end in parts),
                    [caches[i].layers for i, _, _ in parts],
                    threads,
                )
                for (i, begin, end), rows in zip(
                    parts, step.split(self._decoder.hidden_states(step)), strict=True
                ):
                    if not last_only:
                        self._decoder.logits(rows, threads, results[i][begin:end])
                    elif end == lengths[i]:
                        self._decoder.logits(rows[-1:], threads, results[i])
        return results

    @overload
    def generate(
        self,
        input_ids: GivenIds,
        *,
        seed: int = 0,
        cache: ModelCache | None = None,
        num_threads: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[int]: ...

    @overload
    def generate(
        self,
        input_ids: GivenBatch,
        *,
        seed: int | Sequence[int] = 0,
        cache: Sequence[ModelCache] | None = None,
        num_threads: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[list[int | None]]: ...

    def generate(
        self,
        input_ids: GivenIds | GivenBatch,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop: Collection[int] | None = None,
        cache: ModelCache | Sequence[ModelCache] | None = None,
        num_threads: int | None = None,
    ) -> Iterator[int] | Iterator[list[int | None]]:
        """Continue a text, token by token.

        The random number of a token depends on `seed` and on its position alone. So the same seed gives the
        same tokens in any batch and for any number of threads.

        Parameters
        ----------
        input_ids : integer ndarray of shape (T,), or a list of sequences of ids
            The prompt, or the prompts of a batch.
        max_new_tokens : int
        temperature : float
            What divides the logits; 0 stands for the likeliest token each time, of equal ones that with the
            lower id.
        top_p : float
            Draw from the likeliest tokens that together have at least this probability.
        top_k : int, optional
            Draw from so many likeliest tokens.
        min_p : float
            Draw from tokens that are at least so likely, relative to the likeliest one.
        seed : int, or a list of them with one for each prompt
        stop : set of int, optional
            Ids that end a text; they are yielded themselves. If not given, those of the model (`end_ids`).
        cache : ModelCache, or a list of them, optional
            The tokens before the prompt. Afterwards it holds the prompt, and all that was generated but the
            last token.
        num_threads : int, optional

        Returns
        -------
        iterator of int
            The id of each next token, as soon as it is known; for a batch, lists with the next id of each
            sequence, None where it has ended.

        Raises
        ------
        TypeError, ValueError
            As calling the model does; also if prompt and `max_new_tokens` are longer than the model can take.

        Examples
        --------
        >>> ids = list(lm.generate(prompt_ids, max_new_tokens=20, temperature=0.8, seed=1))  # doctest: +SKIP
        """
        inputs = read_inputs(input_ids, self._description)
        is_batch = inputs.shape is None or len(inputs.shape) > 1
        given = read_caches(cache, inputs, self._description)
        caches = [self.new_cache() for _ in inputs.sequences] if given is None else given
        count = check_int("max_new_tokens", max_new_tokens, 1)
        longest = max(len(c) + len(ids) for c, ids in zip(caches, inputs.sequences, strict=True))
        if longest + count > self.max_positions:
            expected = f"at most {self.max_positions - longest} after {longest} tokens (the model takes "
            raise value_error("max_new_tokens", f"{expected}{self.max_positions})", str(count))
        batch = Batch(
            Sampling(temperature, top_p, top_k, min_p),
            check_seeds(seed, len(caches)),
            self.end_ids if stop is None else check_stop(stop),
            resolve_num_threads(num_threads),
        )
        tokens = self._generate(inputs.sequences, caches, batch, count)
        return tokens if is_batch else (each[0] for each in tokens if each[0] is not None)

    def _generate(
        self, prompts: list[NDArray[np.int64]], caches: list[ModelCache], batch: Batch, count: int
    ) -> Iterator[list[int | None]]:
        running, ids = list(range(len(prompts))), list(prompts)
        for _ in range(count):
            inputs = Inputs([ids[i] for i in running], None)
            logits = self._compute(inputs, [caches[i] for i in running], True, batch.num_threads)
            result: list[int | None] = [None] * len(prompts)
            for i, row in zip(running, logits, strict=True):
                token = batch.sampling.choose(row[0], batch.seeds[i], len(caches[i]))
                result[i], ids[i] = token, np.array([token], np.int64)
            running = [i for i in running if result[i] not in batch.stop]
            yield result
            if not running:
                return


def _with_format(decoder: Decoder, activation_format: ActivationFormat | None) -> Decoder:
    return decoder if activation_format is None else decoder.with_activation_format(activation_format)
