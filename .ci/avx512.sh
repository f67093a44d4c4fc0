# The AVX-512 kernels on a machine without AVX-512: compiled for AVX2 with the definitions that SIMDe has of their
# intrinsics, and the tests of every kernel table on them. No speed and nothing of the compiler's AVX-512 is tested by it,
# but every look-up, mask and order of lanes is. By hand: bash .ci/run nightly setup avx512
set -euo pipefail
. .ci/tools.sh
if [ "$(uname -m)" != x86_64 ] || grep -qw avx512vl /proc/cpuinfo; then
  echo "skipped: no x86-64, or one with AVX-512, on which the other stages ran these kernels"
  exit 0
fi
tree=$PWD/build/avx512
mkdir -p "$tree" build/ci
unpack_trixie "$tree/simde" libsimde-dev
python3 -m venv "$tree/venv"
echo "+ the package, its AVX-512 kernels by SIMDe"
"$tree/venv/bin/pip" install --config-settings=build-dir="$tree/build" \
  --config-settings=cmake.define.MXFP4MOE_SIMDE="$tree/simde/usr/include" '.[test]'

python=$tree/venv/bin/python
echo "+ pytest -m every_table -k avx512"
# No instruction set is named, for amx_model_avx512 is a table of another one.
"$python" -m pytest -q -n auto -r fE --junitxml="$tree/every_table.xml" -m "every_table and not nightly" -k avx512
"$python" .ci/isa_matrix.py -k avx512 "$tree/every_table.xml"

echo "+ activations of eight bits: 2,000 random calls have the bits that they have on the CPU's own instructions"
export PYTHONPATH=tests:tests/support
MXFP4MOE_ISA=avx2 "$python" -m fuzz.activations 2000 >"$tree/expected.txt"
MXFP4MOE_ISA=avx512 "$python" -m fuzz.activations 2000 | diff - "$tree/expected.txt" >"$tree/different.txt" || {
  head "$tree/different.txt"
  exit 1
}
