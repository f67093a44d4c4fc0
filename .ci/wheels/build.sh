# The sdist and the wheels: bash .ci/wheels/build.sh FOLDER [x86_64|aarch64|free-threaded...]
#
# Wheels are made from the unpacked sdist, without git, against the C library that sysroot.sh lays out, by the compiler
# of this machine. Two runs give the same bytes. `free-threaded` needs the interpreter of free_threaded_python.sh.
# After the stage `setup`.
set -euo pipefail
out=$(realpath -m "$1")
shift
. .ci/tools.sh
[ $# -gt 0 ] || set -- x86_64 aarch64 free-threaded
root=$PWD
mkdir -p "$out" build/wheels
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
PATH=$PWD/.venv-ci/bin:$PATH

hook() { # interpreter, name and arguments of a hook of the build backend, in this folder
  local log=$root/build/wheels/build.log
  "$1" -c "from scikit_build_core import build; print('made', build.$2(${*:3}))" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
  grep '^made ' "$log"
}

debian_packages aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
python_packages .ci/wheels/requirements.txt

echo "+ sdist"
hook .venv-ci/bin/python build_sdist "'$out'"
sdist=$(ls "$out"/*.tar.gz)
tree=$root/build/wheels/tree
rm -rf "$tree"
mkdir -p "$tree"
trap 'rm -rf "$tree"' EXIT
tar -xf "$sdist" -C "$tree" --strip-components=1

wheel() { # interpreter, architecture
  local made=$tree/made
  bash .ci/wheels/sysroot.sh "$2" "$root/build/wheels/sysroot-$2"
  rm -rf "$made"
  (
    cd "$tree"
    export MXFP4MOE_SYSROOT=$root/build/wheels/sysroot-$2 MXFP4MOE_ARCH=$2 _PYTHON_HOST_PLATFORM=linux-$2
    export CMAKE_TOOLCHAIN_FILE=$root/.ci/wheels/toolchain.cmake
    hook "$1" build_wheel "'$made', {'build-dir': '$tree/build'}"
  )
  rm -rf "$tree/build"
  # Names the oldest glibc that has all symbols, whose architecture need not be that of this machine.
  .venv-ci/bin/auditwheel repair --plat auto --only-plat --wheel-dir "$out" "$made"/*.whl
}

for what; do
  echo "+ wheel: $what"
  case $what in
    free-threaded) wheel "$root/build/wheels/python3.14t/venv/bin/python" x86_64 ;;
    *) wheel "$root/.venv-ci/bin/python" "$what" ;;
  esac
done
ls -l "$out"
