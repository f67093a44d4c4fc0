# Inside other programs: the C library built and installed with no Python in reach, programs in C, C++, Rust and Cython that
# use it, the operators for ONNX Runtime, and JAX. After the stages `setup`, and `demo` or `readme`; by hand:
#   bash .ci/run nightly setup demo embedding
# In the nightly tier JAX and ONNX Runtime call a library with AddressSanitizer too, which the stage sanitizers has compiled.
# The headers of ONNX Runtime are Debian 13's, unpacked under build/embedding once; without them the operators are skipped.
set -euo pipefail
. .ci/tools.sh
tree=$PWD/build/embedding
headers=$tree/headers
prefix=$tree/prefix
python=$tree/venv/bin/python
cmake=$(.venv-ci/bin/python -c 'import cmake; print(cmake.CMAKE_BIN_DIR)')/cmake

# All commands but Python.
make_path() {
  rm -rf "$tree/bin"
  mkdir -p "$tree/bin"
  find /usr/bin /usr/local/bin -maxdepth 1 ! -type d ! -name '*python*' ! -name 'pip*' -exec ln -sf -t "$tree/bin" {} +
}

# take_package VENV: the package that is installed there, for JAX and ONNX Runtime.
take_package() {
  rm -rf "$site"/mxfp4moe*
  cp -r "$1"/lib/python*/site-packages/mxfp4moe "$1"/lib/python*/site-packages/mxfp4moe-*.dist-info "$site"
}

# build_operators [OPTION...]: the operators for ONNX Runtime, into the package that is taken, with options for CMake.
build_operators() {
  [ ${#operators[@]} -gt 0 ] || return 0
  rm -rf "$tree/operators"
  "$cmake" -S src/cpp/onnxruntime -B "$tree/operators" -G "Unix Makefiles" "${operators[@]}" "$@" \
    "-Dmxfp4moe_DIR=$site/mxfp4moe/lib/cmake/mxfp4moe" >/dev/null
  "$cmake" --build "$tree/operators" --parallel 2 >/dev/null
  cp "$tree/operators/libmxfp4moe_onnxruntime.so" "$site/mxfp4moe/lib"
}

mkdir -p "$tree"
operators=()
if unpack_trixie "$headers" libonnxruntime-dev; then
  operators=("-DMXFP4MOE_ONNXRUNTIME=$headers/usr/include/onnxruntime")
else
  echo "skipped: the operators for ONNX Runtime, whose headers (libonnxruntime-dev) could not be had"
fi
debian_packages pkg-config pkgconf
debian_packages rustc rustc || echo "skipped: the program in Rust, for there is no rustc"

echo "+ the C library, without Python"
make_path
rm -rf "$prefix"
# Two kernel tables are enough here, and soon compiled; other stages have them all.
left_out=()
for table in amx_model avx512 avx512bf16 amx amx_model_avx512; do left_out+=("-DMXFP4MOE_CAN_BUILD_$table=OFF"); done
PATH=$tree/bin "$cmake" -S . -B "$tree/c" -G "Unix Makefiles" "${operators[@]}" "${left_out[@]}" >"$tree/configure.txt"
if grep -i python "$tree/configure.txt"; then
  echo "expected a configuration that looks for no Python" >&2
  exit 1
fi
PATH=$tree/bin "$cmake" --build "$tree/c" --parallel 2 >"$tree/build.txt" || { tail -n 30 "$tree/build.txt" >&2; exit 1; }
PATH=$tree/bin "$cmake" --install "$tree/c" --prefix "$prefix" >/dev/null
find "$prefix" -type f -printf '%P\n' | sort

echo "+ the operators for ONNX Runtime and the foreign functions for JAX, with the installed package"
rm -rf "$tree/venv"
python3 -m venv "$tree/venv"
"$python" -m pip install 'numpy>=2.1' 'ml_dtypes>=0.5' 'onnx>=1.19' 'onnxruntime>=1.25' 'jax>=0.6' cython \
  pytest pytest-xdist hypothesis
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
take_package .venv
build_operators
jaxlib=$("$python" -c 'import jaxlib; print(jaxlib.__path__[0])')
g++ -std=c++17 -fsyntax-only -Wall -Wextra -Werror -Isrc/cpp -isystem "$jaxlib/include" tests/cpp/xla_layout.cpp
"$python" -c 'import mxfp4moe.jax; assert mxfp4moe.jax.backend() == "ffi", mxfp4moe.jax.backend()'
"$python" examples/jax_decode.py
PATH=$(dirname "$cmake"):$PATH MXFP4MOE_PREFIX=$prefix "$python" -m pytest -q -n auto tests/embedding

[ "${MXFP4MOE_CI_TIER:-merge}" = nightly ] || exit 0
echo "+ JAX and ONNX Runtime with AddressSanitizer and UndefinedBehaviorSanitizer"
. .ci/sanitize.sh
left_out=$(unused_tables .venv/bin/python)
# shellcheck disable=SC2086
build_asan $left_out
take_package .venv-asan
build_operators "-DCMAKE_CXX_FLAGS=-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"
with_asan "$python" -m pytest -q -n auto -p no:cacheprovider tests/embedding/test_jax.py tests/embedding/test_onnxruntime.py
