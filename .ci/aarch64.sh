# The library for another architecture: the portable kernels alone, compiled, and the pool's test linked.
set -euo pipefail
cmake_modules=$(.venv-ci/bin/python -c 'import cython_cmake, pathlib; print(pathlib.Path(cython_cmake.__file__).parent / "cmake")')
cross=(
  -G Ninja "-DCMAKE_MAKE_PROGRAM=$PWD/.venv-ci/bin/ninja" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_BUILD_TYPE=Release
)
export PATH="$PWD/.venv-ci/bin:$PATH"
cmake -S . -B build/aarch64 "${cross[@]}" "-DCMAKE_MODULE_PATH=$cmake_modules" -DMXFP4MOE_WERROR=ON \
  "-DPython_EXECUTABLE=$PWD/.venv-ci/bin/python" >/dev/null
cmake --build build/aarch64 --target mxfp4moe_cpp
cmake -S tests/cpp -B build/aarch64-tests "${cross[@]}" >/dev/null
cmake --build build/aarch64-tests
