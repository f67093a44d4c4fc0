"""Regular expressions of files: those of real recipes compile, those that may take very long are refused."""

from __future__ import annotations

import pytest

from mxfp4moe.checkpoint._patterns import compile_pattern

NAME = "model.layers.11.mlp.experts.103.gate_proj"

MATCHING = [
    r".*experts.*",
    r".*mlp\.experts\.\d+\.(gate|up|down)_proj$",
    r"model\.layers\.\d+\.mlp\.experts\.\d+\..*",
    r"(?!.*self_attn).*gate_proj",
    r"model\.layers\.(1[01]|[2-9])\.mlp(\.shared)?\.experts.*",
    r"[^q]*gate_proj",
    r".{10,}proj",
    r"(?i:MODEL)\.layers\.(" + "|".join(map(str, range(60))) + r")\..*\.(q|k|v|o|gate|up|down)_proj$",
    r".*?\.(?:experts|mlp)?\.?.*",
]
REFUSED = {
    r"(a+)+$": "expected no repeated group",
    r"(a|a)*$": "expected no repeated group",
    r"(.*a){20}": "expected no repeated group",
    r".*.*.*.*x": r"expected at most 3 repetitions of other than digits, and 16 in all, got 4 and 4",
    r"[a-z]*\w+\S+.*": r"got 4 and 4",
    r"\d*" * 17: r"got 0 and 17",
    r".?" * 40 + "Z": "expected at most 1000 ways",
    r"[a-z.]??" * 40 + "Z": "expected at most 1000 ways",
    r"(?:\w|.)" * 40 + "Z": "expected at most 1000 ways",
    r"(?:(|.)(.|..))" * 8 + "Z": "expected at most 1000 ways",
    r"(?x)(.|.) {40}Z": "expected no verbose expression",
    r"(?ix:(.|.) {40}Z)": "expected no verbose expression",
    "x" * 1001: r"expected at most 1000 characters, got 1001",
    r"(": "missing \\)",
    r"[": "unterminated character set",
    r"*": "nothing to repeat",
    r"a{99999999999999999999}": ".",
}


@pytest.mark.parametrize("text", MATCHING)
def test_real_ones_match(text: str) -> None:
    assert compile_pattern(text).match(NAME)


@pytest.mark.parametrize("text", REFUSED)
def test_costly_or_wrong_ones_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]):
        compile_pattern(text)


@pytest.mark.parametrize("text", [r".*a.*b.*c", r"\d*" * 16 + "b", r"\w*x\w*x[^y]*z", r"(?!.*q.*q)(.*)z"])
def test_the_costliest_that_compile_end(text: str) -> None:
    pattern = compile_pattern(text)
    assert pattern.match("a" * 100 + "0123456789" + "x" * 9) is None  # it is not the time that is measured
