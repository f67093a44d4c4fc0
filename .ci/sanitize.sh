# What the stages with sanitizers share; to be sourced.
cxx=${CXX:-g++}

# unused_tables PYTHON [ISA]: the kernel tables that this machine cannot run; with an instruction set, all but its and
# the portable ones. PYTHON has the package.
unused_tables() {
  "$1" -c "
import sys
from mxfp4moe import config
isas = sys.argv[1:] and ['portable', *sys.argv[1:]]
print(*(table.name for table in config._TABLES if not (table.isa in isas if isas else table.supported)))
" "${@:2}"
}

# build_asan [TABLE...]: the package with AddressSanitizer and UndefinedBehaviorSanitizer, in .venv-asan, without the
# kernel tables that are named. -U forgets what an earlier build left out.
build_asan() {
  local cmake_args="-UMXFP4MOE_CAN_BUILD_*" table
  for table; do cmake_args+=" -DMXFP4MOE_CAN_BUILD_$table=OFF"; done
  python3 -m venv .venv-asan
  CMAKE_ARGS=$cmake_args .venv-asan/bin/pip install --config-settings=build-dir=build/asan \
    --config-settings=cmake.define.MXFP4MOE_SANITIZE=ON --config-settings=cmake.define.MXFP4MOE_WERROR=ON \
    --config-settings=install.strip=false '.[test]'
}

# with_asan COMMAND...: the interpreter is not instrumented: the run-time library must come first, and what Python
# keeps is no leak. Where memory is short an allocation returns null, as it does without the sanitizer. Freed memory
# is kept for a while, so peaks of memory are not the library's own.
with_asan() {
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$($cxx -print-file-name=libasan.so) $($cxx -print-file-name=libstdc++.so)" "$@"
}

# With much address space randomization the run-time library of older compilers finds no room for its shadow.
fixed_addresses=()
if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi

# cpp_test TARGET SANITIZER [ARGUMENT...]: builds and runs a program of tests/cpp.
cpp_test() {
  local target=$1 sanitizer=$2 tree=build/cpp-${2%,*} table tables=()
  shift 2
  echo "+ $target $* with -fsanitize=$sanitizer"
  # Those that every machine of the last ten years can run; the others take minutes to compile.
  for table in amx amx_model amx_model_avx512 avx512 avx512bf16; do
    tables+=("-DMXFP4MOE_CAN_BUILD_$table=OFF")
  done
  .venv-ci/bin/cmake -S tests/cpp -B "$tree" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv-ci/bin/ninja" \
    -DCMAKE_CXX_FLAGS="-fsanitize=$sanitizer -g -O1 -Werror" "${tables[@]}" >/dev/null
  # The result is asked for here, since `set -e` does not hold where a caller asks for that of the function.
  local output
  output=$(.venv-ci/bin/cmake --build "$tree" --target "$target") || { echo "$output" && return 1; }
  "${fixed_addresses[@]}" "$tree/$target" "$@"
}

# compile_capi_fuzz PYTHON OPTION...: tests/cpp/capi_fuzz.cpp with the library of the package that PYTHON has, as
# build/capi_fuzz.
compile_capi_fuzz() {
  local flags
  flags=$(with_asan "$1" -m mxfp4moe config --cflags --libs)
  # shellcheck disable=SC2086
  $cxx -std=c++17 -g -O1 -Wall -Wextra -Werror "${@:2}" tests/cpp/capi_fuzz.cpp $flags -pthread -o build/capi_fuzz
}
