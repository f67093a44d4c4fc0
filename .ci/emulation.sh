# Marked tests on emulated older CPUs: an instruction that such a CPU lacks ends them.
# In the merge tier they are those that reach every kernel, on the kernel table that the CPU prefers; in the nightly
# tier all that are marked for emulation, each table on the oldest CPU that runs it.
set -euo pipefail
if [ "$(uname -m)" != x86_64 ]; then
  echo "skipped: not an x86-64"
  exit 0
fi
mkdir -p build/ci

if [ "${MXFP4MOE_CI_TIER:-merge}" = nightly ]; then
  tests=(-m emulation)
else
  # Folders, because importing all test files takes the emulated CPU a minute.
  tests=(-m smoke tests/kernels tests/quantize tests/routing)
fi

emulate() { # CPU and the instruction set that is the best it has
  local run=(qemu-x86_64 -cpu "$1" .venv/bin/python) isa=(env "MXFP4MOE_ISA=$2")
  "${run[@]}" -c "import mxfp4moe as mx; mx.show_config(); assert mx.active_isa() == '$2', mx.active_isa()"
  # With no instruction set named, the tests run on the models of tiles too.
  if [ "${tests[1]} $2" = "emulation portable" ]; then isa=(); fi
  "${isa[@]}" "${run[@]}" -m pytest -q -r fE -p no:cacheprovider "${tests[@]}"
}

# Both at once, each into a file, so that their lines do not mix.
emulate Nehalem portable >build/ci/Nehalem.txt 2>&1 &
nehalem=$!
emulate Haswell avx2 >build/ci/Haswell.txt 2>&1 &
haswell=$!
status=0
wait "$nehalem" || status=1
wait "$haswell" || status=1
for cpu in Nehalem Haswell; do
  printf -- '--- %s ---\n' "$cpu"
  if [ "$status" = 0 ]; then tail -n 2 "build/ci/$cpu.txt"; else cat "build/ci/$cpu.txt"; fi
done
exit "$status"
