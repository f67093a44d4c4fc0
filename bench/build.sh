# Builds bench/panel_cycles.cpp for each kernel table, or for those that are named, into build/.
# The flags are those of src/cpp/CMakeLists.txt. Run it from the root of the repository; CXX is the compiler, CXXFLAGS
# are added: with -fsyntax-only it checks that all compile, in a few seconds.
set -euo pipefail

avx2="-mavx2 -mfma -mf16c"
avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl"
declare -A sources=(
  [portable]=portable/kernels_portable.cpp
  [avx2]=avx2/kernels_avx2.cpp
  [avx512]=avx512/kernels_avx512.cpp
  [avx512bf16]=avx512/kernels_avx512bf16.cpp
  [amx]=amx/kernels_amx.cpp
  [amx_model]=amx/kernels_amx_model.cpp
)
declare -A flags=(
  [portable]=""
  [avx2]="$avx2"
  [avx512]="$avx512"
  [avx512bf16]="$avx512 -mavx512vbmi -mavx512bf16"
  [amx]="$avx512 -mavx512vbmi -mamx-tile -mamx-bf16 -DTILES"
  [amx_model]="-DTILES"
)

cxx=${CXX:-g++}
registers=-fira-region=all
"$cxx" $registers -Werror -E -x c++ /dev/null >/dev/null 2>&1 || registers=""

mkdir -p build
[ $# -gt 0 ] || set -- portable avx2 avx512 avx512bf16 amx amx_model
for table; do
  echo "build/panel_cycles_$table"
  # shellcheck disable=SC2086
  "$cxx" -std=c++17 -O3 $registers -fno-math-errno -ffp-contract=off -Isrc/cpp ${flags[$table]} ${CXXFLAGS:-} \
    -DKERNELS="\"kernels/${sources[$table]}\"" bench/panel_cycles.cpp -o "build/panel_cycles_$table"
done
