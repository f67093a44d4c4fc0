# Other operating systems: the C++ library compiled, and neither linked nor run, for Windows and macOS, which have
# platform/portable in place of platform/linux. After the stage `setup`; by hand:
#   bash .ci/run setup platforms
# The compiler, Clang with the headers of both systems, is the package ziglang.
set -euo pipefail
. .ci/tools.sh
python_packages .ci/wheels/requirements.txt
tree=$PWD/build/platforms
zig=$PWD/.venv-ci/lib/$(ls .venv-ci/lib)/site-packages/ziglang/zig
export ZIG_GLOBAL_CACHE_DIR=$tree/cache ZIG_LOCAL_CACHE_DIR=$tree/cache
mkdir -p "$tree"
echo 'MXFP4MOE_KERNELS(portable, portable)' >"$tree/kernel_list.inc"
echo 'MXFP4MOE_INT8_KERNELS(portable)' >"$tree/int8_list.inc"

# What needs the headers of other software is left out.
mapfile -t sources < <(git ls-files 'src/cpp/*.cpp' | grep -v -e platform/linux/ -e kernels/ -e jax/ -e onnxruntime/)
sources+=(src/cpp/kernels/registry.cpp src/cpp/kernels/portable/*.cpp)

# compile TARGET SOURCE
compile() {
  "$zig" c++ -target "$1" -std=c++17 -O1 -Wall -Wextra -Werror -ffp-contract=off -Isrc/cpp -I"$tree" -DMXFP4MOE_VERSION='"0"' -c "$2" \
    -o "$tree/$1-$(echo "$2" | tr / _).o" || {
    echo "FAILED: $2 for $1"
    return 1
  }
}
export -f compile
export zig tree

for target in x86_64-windows-gnu aarch64-macos; do
  echo "+ ${#sources[@]} sources for $target"
  printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile "$1" "$2"' - "$target" {}
done
