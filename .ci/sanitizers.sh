# ThreadSanitizer and AddressSanitizer on the thread pool; AddressSanitizer and UndefinedBehaviorSanitizer on the
# extension, in the nightly tier on every kernel table that this machine runs. In the merge tier that is left out
# unless C++ or the binding changed, and done on the preferred table alone.
set -euo pipefail
. .ci/sanitize.sh

# Prints what a change is compared with: the commit that MXFP4MOE_CI_BASE names; else the place where a branch left
# the main branch; else, on the main branch, the last tag. Prints nothing if there is none of them.
base_commit() {
  local head base
  head=$(git rev-parse --verify -q 'HEAD^{commit}') || return 0
  if [ -n "${MXFP4MOE_CI_BASE:-}" ]; then
    git rev-parse --verify "$MXFP4MOE_CI_BASE^{commit}"
    return
  fi
  base=$(git merge-base HEAD origin/HEAD 2>/dev/null) || base=$head
  [ "$base" != "$head" ] || base=$(git describe --tags --abbrev=0 2>/dev/null) || base=
  echo "$base"
}

extension=all
if [ "${MXFP4MOE_CI_TIER:-merge}" = merge ]; then
  base=$(base_commit)
  extension=none
  if [ -z "$base" ]; then
    echo "what changed is not known: the thread pool alone"
  elif git diff --quiet "$base" -- src/cpp tests/cpp 'src/mxfp4moe/*.p[yx][xd]' 'src/mxfp4moe/*.pxi' CMakeLists.txt .ci/sanitizers.sh; then
    echo "no C++ changed since $base: the thread pool alone"
  else
    extension=$(.venv/bin/python -c 'import mxfp4moe; print(mxfp4moe.active_isa())')
    echo "C++ changed since $base: the extension, its $extension kernels"
  fi
fi

for sanitizer in thread address,undefined; do
  cpp_test pool_test "$sanitizer"
done
[ "$extension" != none ] || exit 0

isas=()
if [ "$extension" != all ]; then
  export MXFP4MOE_ISA=$extension
  isas=("$extension")
fi
left_out=$(unused_tables .venv/bin/python "${isas[@]}")
# shellcheck disable=SC2086
build_asan $left_out
tests=(
  tests/checkpoint/test_checkpoint.py tests/checkpoint/test_safetensors.py tests/kernels/test_call_forms.py
  tests/kernels/test_formats.py tests/kernels/test_fused_experts.py tests/kernels/test_integers.py
  tests/kernels/test_offsets.py tests/kernels/test_special_values.py
  tests/kernels/test_work_split.py tests/kernels/test_wrong_calls.py tests/layer/test_layer.py
  tests/packed/test_packing.py tests/packed/test_wrong_packing.py tests/quantize/test_quantize_calls.py
)
echo "+ pytest with AddressSanitizer and UndefinedBehaviorSanitizer"
with_asan .venv-asan/bin/python -m pytest -q -n auto -r fE -p no:cacheprovider "${tests[@]}" -k 'not needs_32_mib'
