"""compressed-tensors: which format each module has, as its groups, their targets and `ignore` say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mxfp4moe._arguments import join_choices
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._patterns import compile_pattern
from mxfp4moe.checkpoint._unread import says_nothing
from mxfp4moe.checkpoint.schemes import integer_formats, mx_formats, plain
from mxfp4moe.checkpoint.schemes._scheme import BlockShape, Scheme, later, mixture

_MIXED = "mixed-precision"
_CLASS = "Linear"  # the class of every module that holds a matrix of an expert
_PATTERN = "re:"
_ORDERED = ("group", "dynamic", True)  # actorder where a tensor says which group each column belongs to


def _of_groups(scheme: Scheme, group_size: int, num_bits: int) -> Callable[[Config], Scheme]:
    """What checks that the weights of a group are as its format has them."""

    def read(weights: Config) -> Scheme:
        weights.choice("num_bits", (num_bits,), default=num_bits)
        weights.choice("type", ("float",), default="float")
        weights.choice("group_size", (group_size,), default=group_size)
        weights.choice("symmetric", (True,), default=True)
        return scheme

    return read


def _float_quantized(weights: Config) -> Scheme:
    """FP8 with a scale for each row, for a matrix, or for each block of rows and columns."""
    weights.choice("num_bits", (8,))
    weights.choice("type", ("float",))
    weights.choice("symmetric", (True,), default=True)
    weights.choice("group_size", (None, -1), default=None)
    strategy = weights.choice("strategy", ("channel", "tensor", "block"))
    shapes: dict[str, BlockShape] = {"channel": (1, None), "tensor": (None, None)}
    if strategy == "block":
        block = weights.list_of("block_structure", int, 2)
        if block is None or min(block) < 1 or block[1] % 32:
            expected = "[rows, columns] above 0, columns a multiple of 32"
            raise weights.error("block_structure", expected, shorten(block))
        shapes["block"] = (block[0], block[1])
    return mx_formats.fp8(f"compressed-tensors float-quantized, {strategy}", shapes[strategy])


def _group_size(weights: Config) -> int | None:
    """How many neighbours of a row share a scale; None: those of the whole row, or of the matrix."""
    strategy = weights.choice("strategy", ("group", "channel", "tensor", None), default=None)
    size = weights.integer("group_size", minimum=-1, maximum=1 << 20, default=-1)
    if (strategy == "group" and size == -1) or (size != -1 and (size < 1 or size % 32)):
        raise weights.error("group_size", "a multiple of 32", str(size))
    return size if size > 0 and strategy in ("group", None) else None


def _integers(weights: Config, *bits: int) -> tuple[int, int | None, bool, bool]:
    weights.choice("type", ("int",), default="int")
    symmetric = weights.boolean("symmetric", default=True)
    ordered = weights.get("actorder") in _ORDERED
    return weights.choice("num_bits", bits), _group_size(weights), symmetric, ordered


def _pack_quantized(weights: Config) -> Scheme:
    return integer_formats.packed(*_integers(weights, 4, 8))


def _int_quantized(weights: Config) -> Scheme:
    _, *others = _integers(weights, 4, 8)
    return integer_formats.plain(*others)


_MXFP4 = mx_formats.mxfp4("compressed-tensors mxfp4-pack-quantized", "weight_packed")
_MXFP8 = mx_formats.mxfp8("compressed-tensors mxfp8-quantized")
_NVFP4 = mx_formats.nvfp4("compressed-tensors nvfp4-pack-quantized", "weight_packed", mx_formats.reciprocal)
_FORMATS: dict[str, Callable[[Config], Scheme]] = {
    "mxfp4-pack-quantized": _of_groups(_MXFP4, 32, 4),
    "nvfp4-pack-quantized": _of_groups(_NVFP4, 16, 4),
    "mxfp8-quantized": _of_groups(_MXFP8, 32, 8),
    "float-quantized": _float_quantized,
    "pack-quantized": _pack_quantized,
    "int-quantized": _int_quantized,
}
"""What reads the `weights` of a group, by its format."""
FORMATS = tuple(_FORMATS)
"""The formats that are read."""
_ALONE = {"mxfp4-pack-quantized": _MXFP4, "nvfp4-pack-quantized": _NVFP4, "mxfp8-quantized": _MXFP8}
"""The formats that say everything, without a group."""


class _Group(NamedTuple):
    """A group of `config_groups`: its format, by name, and the scheme of that, if it is read here."""

    format: str
    scheme: Callable[[], Scheme] | None


def find(quantization: Config) -> Scheme | None:
    """The scheme of ``quant_method: compressed-tensors`` in formats that are known here."""
    if quantization.get("quant_method") not in (None, "compressed-tensors"):
        return None
    format = quantization.get("format")
    sparsity = quantization.get("sparsity_config")
    if not says_nothing(sparsity) and (not isinstance(sparsity, dict) or sparsity.get("format") != "dense"):
        raise quantization.error("sparsity_config", "none, or of format dense", shorten(sparsity))
    ignored = _matcher(quantization, "ignore")
    sections = quantization.section("config_groups")
    if not sections.fields:
        return _ALONE.get(format) if isinstance(format, str) else None
    groups: dict[str, _Group] = {}  # by target; of groups with the same target the last one counts
    for name in sections.fields:
        section = sections.detached(name)
        group = _read_group(section, None if format == _MIXED else format)
        groups |= dict.fromkeys(section.list_of("targets", str) or [_CLASS], group)
    known = list({group.scheme: None for group in groups.values() if group.scheme is not None})
    if not known:
        return None
    # What modules of other groups are, attention for example, need not be known.
    first = known[0]() if len(known) == 1 else plain.SCHEME
    find_target = _matcher_of(sections, list(groups))

    def choose(module: str) -> Scheme:
        if ignored(module) is not None:
            return plain.SCHEME
        target = find_target(module)
        group = None if target is None else groups[target]
        if group is None or group.scheme is None:
            expected = f"a group in {join_choices(_FORMATS)} that targets {module}"
            raise quantization.error("config_groups", expected, "none" if group is None else group.format)
        return group.scheme()

    return mixture("compressed-tensors", first, choose)


def _read_group(group: Config, format: object) -> _Group:
    """A group whose format is `format` unless it says otherwise; other formats are not looked into."""
    format = group.get("format") or format
    if not isinstance(format, str) or format not in _FORMATS:
        return _Group("no format" if format is None else shorten(format), None)
    read = _FORMATS[format]
    return _Group(format, later(group, lambda section: read(section.section("weights"))))


def _matcher(config: Config, name: str) -> Callable[[str], str | None]:
    """Which of the targets in the list `name` a module matches, or None."""
    return _matcher_of(config, config.list_of(name, str) or [], name)


def _matcher_of(config: Config, targets: Sequence[str], name: str = "targets") -> Callable[[str], str | None]:
    """The first that matches: names, then regular expressions, from the start of the name, then classes."""
    names, patterns = set(targets), {}
    for target in sorted(targets):
        if target.startswith(_PATTERN):
            try:
                patterns[target] = compile_pattern(target.removeprefix(_PATTERN))
            except ValueError as error:
                raise config.error(name, "regular expressions", f"{shorten(target)}: {error}") from None

    def find_target(module: str) -> str | None:
        if module in names:
            return module
        matching = (target for target, pattern in patterns.items() if pattern.match(module))
        return next(matching, _CLASS if _CLASS in names else None)

    return find_target
