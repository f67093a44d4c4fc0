"""Selection of the instruction set and of the number of threads; environment variables in subprocesses."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import mxfp4moe as mx
from mxfp4moe import _core, config

VARIABLES = ("MXFP4MOE_ISA", "MXFP4MOE_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def unset_process_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_process_threads", None)


def run_python(expression: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Print `expression` in a new interpreter that has of our environment variables only these."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | variables
    command = [sys.executable, "-c", f"import mxfp4moe as mx; print({expression})"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def evaluate(expression: str, **variables: str) -> str:
    result = run_python(expression, **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# ---- instruction sets ----


@pytest.mark.emulation
def test_isas_are_listed_in_order() -> None:
    available, supported = mx.available_isas(), mx.supported_isas()
    assert available[0] == supported[0] == "portable"
    assert [isa for isa in config.ISAS if isa in available] == list(available)
    assert [isa for isa in available if isa in supported] == list(supported)


@pytest.mark.emulation
def test_default_isa_is_the_last_supported() -> None:
    assert evaluate("mx.active_isa() == mx.supported_isas()[-1]") == "True"


@pytest.mark.emulation
def test_use_isa_nests_and_restores() -> None:
    before = mx.active_isa()
    for outer in mx.supported_isas():
        with mx.use_isa(outer):
            for inner in mx.supported_isas():
                with mx.use_isa(inner):
                    assert mx.active_isa() == inner
                assert mx.active_isa() == outer
    with pytest.raises(ZeroDivisionError), mx.use_isa("portable"):
        raise ZeroDivisionError
    assert mx.active_isa() == before


def test_use_isa_chooses_only_automatic_supported_kernels() -> None:
    for isa in mx.supported_isas():
        with mx.use_isa(isa):
            table = config._TABLES[config.active_kernels()]
        assert table.isa == isa and table.automatic and table.supported


@pytest.mark.parametrize("name", ["", "AVX2", "avx", "avx512bf16", "amx_model", " portable", "portable\n"])
def test_use_isa_refuses_unknown_names(name: str) -> None:
    listed = ".*".join(re.escape(repr(isa)) for isa in mx.supported_isas())
    with pytest.raises(mx.IsaError, match=f"^name: expected .*{listed}.*, got {re.escape(repr(name))}"):
        mx.use_isa(name)


@pytest.mark.emulation
def test_use_isa_refuses_what_the_machine_lacks() -> None:
    lacking = [isa for isa in config.ISAS if isa not in mx.supported_isas()]
    if not lacking:
        pytest.skip("this machine can run everything")
    for isa in lacking:
        with pytest.raises(mx.IsaError, match=rf"got '{isa}' \(.+\)"):
            mx.use_isa(isa)


@pytest.mark.parametrize("name", [None, 3, b"avx2", ["avx2"]])
def test_use_isa_refuses_other_kinds(name: Any) -> None:
    with pytest.raises(TypeError, match="^name: expected .*'portable'.*, got "):
        mx.use_isa(name)


def test_isa_error_is_a_value_error() -> None:
    assert issubclass(mx.IsaError, ValueError)


@pytest.mark.emulation
@pytest.mark.parametrize("table", [table.name for table in config._TABLES])
def test_use_kernels_by_table_name(table: str) -> None:
    entry = next(entry for entry in config._TABLES if entry.name == table)
    if not entry.supported:
        with pytest.raises(mx.IsaError, match=f"got {table!r}"):
            config._use_kernels(table)
        return
    with config._use_kernels(table):
        assert config._TABLES[config.active_kernels()].name == table
        assert mx.active_isa() == entry.isa


@pytest.mark.parametrize("table", config._TABLES, ids=lambda table: table.name)
def test_tests_run_on_each_table_of_this_machine(table: config._Table) -> None:
    if not table.supported:
        pytest.skip(f"no tests on the {table.name} kernels: {config._why_unsupported(table.isa)}")
    with config._use_kernels(table.name):
        assert config._TABLES[config.active_kernels()] == table


def test_environment_forces_each_supported_isa() -> None:
    for isa in mx.supported_isas():
        expression = "mx.active_isa(), mx.show_config('dicts')['isas']['reason']"
        for given in (isa, isa.upper(), isa.title()):
            assert evaluate(expression, MXFP4MOE_ISA=given) == f"{isa} forced by MXFP4MOE_ISA"


@pytest.mark.parametrize("isa", ["SSE2", "sse2", "portable ", "avx512bf16"])
def test_bad_isa_in_the_environment_is_an_import_error(isa: str) -> None:
    result = run_python("1", MXFP4MOE_ISA=isa)
    last_line = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0
    assert last_line.startswith("ImportError: MXFP4MOE_ISA: expected ")
    assert all(repr(supported) in last_line for supported in mx.supported_isas())
    assert repr(isa) in last_line


def test_empty_variables_count_as_unset() -> None:
    empty = dict.fromkeys(VARIABLES, "")
    expression = "mx.active_isa(), mx.get_num_threads()"
    assert evaluate(expression, **empty) == evaluate(expression)


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPUINFO.exists(), reason="compares with Linux's own list"
)
def test_cpu_features_are_those_that_linux_lists() -> None:
    line = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    assert line is not None
    flags = set(line[1].split())
    features = _core.cpu_features()
    assert features["avx2"] == (flags >= {"avx2", "fma", "f16c"})
    avx512 = flags >= {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert features["avx512"] == avx512
    assert features["avx512_bf16"] == (avx512 and "avx512_bf16" in flags)
    assert features["avx512_vbmi"] == (avx512 and "avx512vbmi" in flags)
    # Linux may refuse the permission to use what it lists.
    has_tiles = flags >= {"amx_tile", "amx_bf16"}
    assert features["amx_bf16"] == (has_tiles and _core.amx_status() == "")
    assert has_tiles or _core.amx_status() != ""


# ---- threads ----


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MXFP4MOE_NUM_THREADS": "7"}, 7),
        ({"MXFP4MOE_NUM_THREADS": " 7 "}, 7),
        ({"MXFP4MOE_NUM_THREADS": "7", "OMP_NUM_THREADS": "5"}, 7),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"OMP_NUM_THREADS": "100000"}, config.MAX_THREADS),
    ],
)
def test_environment_sets_the_number_of_threads(variables: dict[str, str], expected: int) -> None:
    assert evaluate("mx.get_num_threads()", **variables) == str(expected)


@pytest.mark.parametrize("text", ["0", "-1", "many", "2.0", "1025", "4,2", "9" * 30])
def test_bad_number_of_threads_in_the_environment_is_an_import_error(text: str) -> None:
    result = run_python("1", MXFP4MOE_NUM_THREADS=text)
    last_line = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0
    assert last_line == f"ImportError: MXFP4MOE_NUM_THREADS: expected an integer in [1, 1024], got {text!r}"


@pytest.mark.parametrize("text", ["0", "-3", "many", ",2", "9" * 30])
def test_nonsense_for_openmp_is_ignored(text: str) -> None:
    assert evaluate("mx.get_num_threads()", OMP_NUM_THREADS=text) == evaluate("mx.get_num_threads()")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_default_follows_the_affinity_mask() -> None:
    expression = "__import__('os').sched_setaffinity(0, [min(__import__('os').sched_getaffinity(0))]), "
    assert evaluate(expression + "mx.get_num_threads()") == "None 1"


@pytest.mark.emulation
def test_precedence_of_numbers_of_threads() -> None:
    mx.set_num_threads(5)
    assert mx.get_num_threads() == 5
    with mx.num_threads(3):
        assert mx.get_num_threads() == 3
        mx.set_num_threads(6)
        with mx.num_threads(4):
            assert mx.get_num_threads() == 4
            assert config.resolve_num_threads(2) == 2
            assert config.resolve_num_threads(None) == 4
        assert mx.get_num_threads() == 3
    assert mx.get_num_threads() == 6


@pytest.mark.parametrize("value", [True, 2.0, "2", None, [2]])
def test_number_of_threads_must_be_an_integer(value: Any) -> None:
    for function in (mx.num_threads, mx.set_num_threads):
        with pytest.raises(TypeError, match="^n: expected an integer, got "):
            function(value)
    if value is not None:
        with pytest.raises(TypeError, match="^num_threads: expected an integer, got "):
            config.resolve_num_threads(value)


@pytest.mark.parametrize("value", [0, -1, 1025, 10**30])
def test_number_of_threads_must_be_in_range(value: int) -> None:
    for function in (mx.num_threads, mx.set_num_threads):
        with pytest.raises(ValueError, match=rf"^n: expected an integer in \[1, 1024\], got {value}$"):
            function(value)
    with pytest.raises(ValueError, match=rf"^num_threads: expected .*, got {value}$"):
        config.resolve_num_threads(value)


# ---- contexts ----


def test_choices_hold_for_one_thread() -> None:
    seen: list[tuple[str, int]] = []
    outside = mx.active_isa(), mx.get_num_threads()
    with mx.use_isa("portable"), mx.num_threads(outside[1] + 1):
        thread = threading.Thread(target=lambda: seen.append((mx.active_isa(), mx.get_num_threads())))
        thread.start()
        thread.join()
    # Free-threaded interpreters hand the context of the starter on to a new thread.
    inherits = getattr(sys.flags, "thread_inherit_context", 0)
    assert seen == [("portable", outside[1] + 1) if inherits else outside]


def test_choices_hold_for_one_asyncio_task() -> None:
    async def observe(n: int) -> list[int]:
        with mx.num_threads(n):
            seen = []
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(mx.get_num_threads())
            return seen

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(observe(n) for n in (1, 2, 3)))

    assert asyncio.run(main()) == [[1] * 3, [2] * 3, [3] * 3]


# ---- show_config ----


@pytest.mark.emulation
def test_show_config_dicts() -> None:
    with mx.use_isa("portable"), mx.num_threads(3):
        shown = mx.show_config(mode="dicts")
    assert shown is not None
    isas = shown["isas"]
    assert isas["compiled"] == list(mx.available_isas())
    assert isas["supported"] == list(mx.supported_isas())
    assert set(isas["compiled"]) | set(isas["left_out"]) == set(config.ISAS)
    assert set(isas["unsupported"]) == set(isas["compiled"]) - set(isas["supported"])
    assert isas["active"] == isas["kernels"] == "portable"
    assert isas["reason"] == "forced by use_isa()"
    assert (shown["threads"]["number"], shown["threads"]["source"]) == (3, "num_threads()")
    assert shown["build"]["mxfp4moe"] == mx.__version__


def test_show_config_prints_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    shown = mx.show_config(mode="dicts")
    assert mx.show_config() is None
    printed = capsys.readouterr().out
    assert shown is not None
    for section, entries in shown.items():
        assert f"{section}:\n" in printed
        for key in entries:
            assert f"  {key.replace('_', ' ')}: " in printed


def test_show_config_refuses_other_modes() -> None:
    with pytest.raises(ValueError, match="^mode: expected 'stdout' or 'dicts', got 'json'$"):
        mx.show_config(mode="json")
    with pytest.raises(TypeError, match="^mode: expected 'stdout' or 'dicts', got None$"):
        mx.show_config(mode=None)  # type: ignore[arg-type]
