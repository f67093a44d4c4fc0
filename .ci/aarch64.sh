# Another architecture: the package cross-compiled for aarch64, with the portable kernels and the AMX kernels on
# their scalar model, and the marked tests under qemu-user. After the stages `setup`, and `demo` or `readme`; by hand:
#   bash .ci/run setup demo aarch64
# Python and the C library for aarch64 are packages from the host's own sources (Debian 12), unpacked under
# build/aarch64 once; nothing is installed beside those of the host.
set -euo pipefail
. .ci/tools.sh
if [ "$(uname -m)" = aarch64 ]; then
  echo "skipped: the other stages ran on an aarch64"
  exit 0
fi

debian_packages aarch64-linux-gnu-g++ g++-aarch64-linux-gnu qemu-aarch64 qemu-user
tree=$PWD/build/aarch64
sysroot=$tree/sysroot
python=$tree/venv/bin/python
packages=$tree/venv/lib/python3.11/site-packages
pip=.venv-ci/bin/pip

unpack_sysroot() {
  local apt=$tree/apt
  separate_apt "$apt" 'APT::Architecture "arm64";' 'APT::Architectures { "arm64"; };' 'APT::Install-Recommends "false";'
  APT_CONFIG=$apt/apt.conf apt-get -qq -y --download-only install python3.11-minimal libpython3.11-dev libstdc++6 >/dev/null
  rm -rf "$sysroot.new"
  for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$sysroot.new"; done
  rm -rf "$apt"
  mv "$sysroot.new" "$sysroot"
}

# A virtual environment whose interpreter is the emulated one: what starts sys.executable stays on aarch64.
# The oldest 64-bit ARM instruction set, so that one of a later CPU ends the tests.
make_venv() {
  mkdir -p "$(dirname "$python")" "$packages"
  echo "home = $sysroot/usr/bin" >"$tree/venv/pyvenv.cfg"
  cat >"$python" <<WRAPPER
#!/bin/sh
exec qemu-aarch64 -cpu cortex-a53 -L '$sysroot' -0 "\$0" '$sysroot/usr/bin/python3.11' "\$@"
WRAPPER
  chmod +x "$python"
  "$pip" install -c .ci/requirements.txt --target "$packages" --only-binary=:all: --implementation cp \
    --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 numpy ml_dtypes pytest hypothesis
}

rm -rf "$tree"/{cmake,dist,pool,venv}
[ -d "$sysroot" ] || unpack_sysroot
make_venv

echo "+ the package"
_PYTHON_HOST_PLATFORM=linux-aarch64 "$pip" wheel --no-deps --wheel-dir "$tree/dist" \
  --config-settings=build-dir="$tree/cmake" --config-settings=cmake.define.MXFP4MOE_WERROR=ON \
  --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE="$PWD/.ci/aarch64.cmake" .
# The tag of the wheel names the host's Python.
.venv-ci/bin/python -m zipfile -e "$tree"/dist/*.whl "$packages"
"$python" -c "
import platform, mxfp4moe as mx
mx.show_config()
assert (platform.machine(), mx.supported_isas()) == ('aarch64', ('portable',))
"

echo "+ pool_test"
.venv-ci/bin/cmake -S tests/cpp -B "$tree/pool" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv-ci/bin/ninja" \
  -DCMAKE_TOOLCHAIN_FILE="$PWD/.ci/aarch64.cmake" -DCMAKE_CXX_FLAGS="-O2 -Werror" >/dev/null
.venv-ci/bin/cmake --build "$tree/pool" >/dev/null
qemu-aarch64 -L "$sysroot" "$tree/pool/pool_test" emulated

echo "+ pytest -m emulation"
"$python" -m pytest -q -r fE -m emulation -p no:cacheprovider

echo "+ activations of eight bits: 2,000 random calls have the bits that they have on this machine"
export PYTHONPATH=tests:tests/support
.venv/bin/python -m fuzz.activations 2000 >"$tree/expected.txt"
"$python" -m fuzz.activations 2000 | diff - "$tree/expected.txt" >"$tree/different.txt" || {
  head "$tree/different.txt"
  exit 1
}
