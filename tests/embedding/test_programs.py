"""Programs that are compiled with the C library of this installation: C, C++ and Cython."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_library import STRUCTURES
from programs import EXAMPLES, compiler, needs_sources, numbers, run

import mxfp4moe as mx
from mxfp4moe._embedding import library_dir
from mxfp4moe.cli import main


def flags(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["config", *options]) == 0
    return capsys.readouterr().out.split()


@needs_sources
def test_c(saved: tuple[Path, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, expected = saved
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    options = flags(capsys, "--cflags"), flags(capsys, "--libs")
    run(
        compiler("cc"),
        *strict,
        *options[0],
        EXAMPLES / "c" / "layer.c",
        *options[1],
        "-o",
        tmp_path / "layer",
    )
    assert numbers(run(tmp_path / "layer", path)) == expected
    missing = subprocess.run([tmp_path / "layer", "missing"], capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (
        1,
        "missing: missing: expected a file, got nothing at that path\n",
    )


@needs_sources
def test_cpp(saved: tuple[Path, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, expected = saved
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    options = flags(capsys)
    run(compiler("c++"), *strict, EXAMPLES / "cpp" / "layer.cpp", *options, "-o", tmp_path / "layer")
    assert numbers(run(tmp_path / "layer", path)) == expected


@needs_sources
def test_rust(saved: tuple[Path, list[float]], tmp_path: Path) -> None:
    path, expected = saved
    folder = [f"-Lnative={library_dir()}", f"-Clink-arg=-Wl,-rpath,{library_dir()}"]
    run(compiler("rustc"), *folder, EXAMPLES / "rust" / "layer.rs", "-o", tmp_path / "layer")
    assert numbers(run(tmp_path / "layer", path)) == expected


MODULE = """
# cython: language_level=3
from libc.stdint cimport int32_t
from mxfp4moe cimport capi


def route(const float[:, ::1] logits, int top_k, float[:, ::1] weights, int32_t[:, ::1] ids):
    cdef capi.mxfp4moe_routing routing
    cdef capi.mxfp4moe_route_args args
    cdef int status
    routing.struct_size = sizeof(routing)
    capi.mxfp4moe_init_routing(&routing)
    args.struct_size = sizeof(args)
    args.router_logits = &logits[0, 0]
    args.topk_weights = &weights[0, 0]
    args.topk_ids = &ids[0, 0]
    args.num_tokens, args.num_logits, args.top_k = logits.shape[0], logits.shape[1], top_k
    with nogil:
        status = capi.mxfp4moe_route(&routing, &args, NULL)
    if status != capi.MXFP4MOE_OK:
        raise ValueError(capi.mxfp4moe_last_error().decode())
"""


def test_cython(rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that cimports the interface, built against this installation."""
    pytest.importorskip("Cython")
    import sysconfig

    (tmp_path / "embedded.pyx").write_text(MODULE)
    # The package is found where it is installed, and not in a folder of the tests.
    run(sys.executable, "-m", "cython", "-3", "embedded.pyx", cwd=str(tmp_path))
    python = f"-I{sysconfig.get_path('include')}"
    target = tmp_path / f"embedded{sysconfig.get_config_var('EXT_SUFFIX')}"
    options = ["-shared", "-fPIC", python, tmp_path / "embedded.c", *flags(capsys), "-o", target]
    run(compiler("cc"), *options)
    script = """
import numpy as np, embedded, mxfp4moe as mx
logits = np.random.default_rng(0).standard_normal((6, 8), np.float32)
weights, ids = np.empty((6, 2), np.float32), np.empty((6, 2), np.int32)
embedded.route(logits, 2, weights, ids)
expected = mx.select_experts(logits, 2)
assert (weights == expected[0]).all() and (ids == expected[1]).all()
try:
    embedded.route(logits, 9, weights, ids)
except ValueError as error:
    print(error)
"""
    assert (
        run(sys.executable, "-c", script, cwd=str(tmp_path))
        == "top_k: expected an integer in [1, 8], got 9\n"
    )


CLOSED = """
import _ctypes, ctypes, sys, time
library = ctypes.CDLL(sys.argv[1])
floats, ids = (ctypes.c_float * 320_000)(), (ctypes.c_int32 * 40_000)()
class Routing(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("rest", ctypes.c_char * int(sys.argv[2]))]
class Args(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), *((name, ctypes.c_void_p) for name in "lwi"),
                *((name, ctypes.c_int64) for name in "nek")]
class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("num_threads", ctypes.c_int32), ("isa", ctypes.c_int32),
                ("parallel_for", ctypes.c_void_p), ("parallel_context", ctypes.c_void_p)]
routing = Routing(ctypes.sizeof(Routing))
library.mxfp4moe_init_routing(ctypes.byref(routing))
weights = (ctypes.c_float * 40_000)()
args = Args(ctypes.sizeof(Args), *(ctypes.addressof(each) for each in (floats, weights, ids)), 20_000, 16, 2)
options = Options(ctypes.sizeof(Options), 3)
library.mxfp4moe_route(ctypes.byref(routing), ctypes.byref(args), ctypes.byref(options))
threads = library.mxfp4moe_num_pool_threads()
_ctypes.dlclose(library._handle)
time.sleep(0.05)  # in which the threads would look for work
print(threads)
"""


def test_a_library_that_is_closed_while_its_threads_wait() -> None:
    size = ctypes.sizeof(STRUCTURES["mxfp4moe_routing"]) - ctypes.sizeof(ctypes.c_size_t)
    path = f"{library_dir()}/libmxfp4moe.so"
    assert run(sys.executable, "-c", CLOSED, path, str(size)) == "2\n"


def test_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert (Path(mx.get_include()) / "mxfp4moe.hpp").is_file()
    assert (Path(flags(capsys, "--cmake-dir")[0]) / "mxfp4moeConfig.cmake").is_file()
    assert (Path(library_dir()) / "pkgconfig" / "mxfp4moe.pc").is_file()
    assert flags(capsys, "--libs")[-1] == "-lmxfp4moe"
