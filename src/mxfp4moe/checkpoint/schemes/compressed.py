"""compressed-tensors: which format each module has, as its groups, their targets and `ignore` say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mxfp4moe._arguments import join_choices
from mxfp4moe._json import shorten
from mxfp4moe.checkpoint._config import Config
from mxfp4moe.checkpoint._patterns import compile_pattern
from mxfp4moe.checkpoint._unread import says_nothing
from mxfp4moe.checkpoint.schemes import compressed_mxfp4, compressed_nvfp4, plain
from mxfp4moe.checkpoint.schemes._scheme import Scheme

_FORMATS = {module.FORMAT: module for module in (compressed_mxfp4, compressed_nvfp4)}
_MIXED = "mixed-precision"
_CLASS = "Linear"  # of the modules of all matrices of experts
_PATTERN = "re:"


class _Group(NamedTuple):
    """A group of `config_groups`: its format, by name, and the scheme of that, if it is read here."""

    format: str
    scheme: Scheme | None


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
        return _FORMATS[format].SCHEME if isinstance(format, str) and format in _FORMATS else None
    groups: dict[str, _Group] = {}  # by target; of groups with the same target the last one counts
    for name in sections.fields:
        section = sections.section(name)
        group = _read_group(section, None if format == _MIXED else format)
        groups |= dict.fromkeys(section.list_of("targets", str) or [_CLASS], group)
    schemes = [group.scheme for group in groups.values() if group.scheme is not None]
    if not schemes:
        return None
    find_target = _matcher_of(sections, list(groups))

    def choose(module: str) -> Scheme:
        if ignored(module) is not None:
            return plain.SCHEME
        target = find_target(module)
        group = None if target is None else groups[target]
        if group is None or group.scheme is None:
            expected = f"a group in {join_choices(_FORMATS)} that targets {module}"
            raise quantization.error("config_groups", expected, "none" if group is None else group.format)
        return group.scheme

    return Scheme(
        "compressed-tensors", schemes[0].format, schemes[0].read,
        multiple_of=math.gcd(*(scheme.multiple_of for scheme in schemes)), choose=choose,
    )  # fmt: skip


def _read_group(group: Config, format: object) -> _Group:
    """A group whose format is `format` unless it says otherwise; other formats are not looked into."""
    format = group.get("format") or format
    if not isinstance(format, str) or format not in _FORMATS:
        group.get("weights")
        return _Group("no format" if format is None else shorten(format), None)
    weights = group.section("weights")
    weights.choice("num_bits", (4,), default=4)
    weights.choice("type", ("float",), default="float")
    weights.choice("group_size", (_FORMATS[format].GROUP_SIZE,), default=_FORMATS[format].GROUP_SIZE)
    weights.choice("symmetric", (True,), default=True)
    return _Group(format, _FORMATS[format].SCHEME)


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
