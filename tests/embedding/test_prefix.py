"""Programs that are compiled with a C library that CMake has installed, shared and static."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from programs import EXAMPLES, compiler, needs_sources, numbers, run

PREFIX = Path(os.environ.get("MXFP4MOE_PREFIX", ""))
pytestmark = [
    pytest.mark.skipif(not PREFIX.name, reason="needs an installed C library in MXFP4MOE_PREFIX"),
    needs_sources,
]


@pytest.fixture
def library() -> Path:
    return next(PREFIX.glob("lib*/**/libmxfp4moe.so")).parent


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_c_with_pkg_config(saved: tuple[Path, list[float]], tmp_path: Path, library: Path, kind: str) -> None:
    environment = {"PKG_CONFIG_PATH": str(library / "pkgconfig")}
    options = run(
        compiler("pkg-config"), "--cflags", "--libs", *(["--static"] * (kind == "static")), "mxfp4moe",
        env=os.environ | environment,
    ).split()  # fmt: skip
    if kind == "static":
        options = [str(library / "libmxfp4moe.a") if each == "-lmxfp4moe" else each for each in options]
    source = EXAMPLES / "c" / "layer.c"
    run(
        compiler("cc"), source, *options, f"-Wl,-rpath,{library}", "-lstdc++", "-lm", "-o", tmp_path / "layer"
    )
    assert numbers(run(tmp_path / "layer", saved[0])) == saved[1]


def test_cpp_with_cmake(saved: tuple[Path, list[float]], tmp_path: Path, library: Path) -> None:
    build = tmp_path / "build"
    run(compiler("cmake"), "-S", EXAMPLES / "cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={PREFIX}")
    run(compiler("cmake"), "--build", build)
    assert numbers(run(build / "layer", saved[0])) == saved[1]


def test_rust(saved: tuple[Path, list[float]], tmp_path: Path, library: Path) -> None:
    source = EXAMPLES / "rust" / "layer.rs"
    folder = f"-Lnative={library}"
    run(compiler("rustc"), folder, f"-Clink-arg=-Wl,-rpath,{library}", source, "-o", tmp_path / "layer")
    assert numbers(run(tmp_path / "layer", saved[0])) == saved[1]


def test_what_is_exported(library: Path) -> None:
    for name, prefix in (
        ("libmxfp4moe.so", "mxfp4moe_"),
        ("libmxfp4moe_onnxruntime.so", "RegisterCustomOps"),
    ):
        if (library / name).is_file():
            listed = run(compiler("nm"), "-D", "--defined-only", library / name).splitlines()
            assert listed and all(line.split()[-1].startswith(prefix) for line in listed)


def test_nothing_of_it_is_python(library: Path) -> None:
    needed = subprocess.run(["ldd", library / "libmxfp4moe.so"], capture_output=True, text=True, check=True)
    assert "python" not in needed.stdout
    assert not list(PREFIX.rglob("*.py"))
