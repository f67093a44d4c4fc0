# AddressSanitizer and UndefinedBehaviorSanitizer on the extension, ThreadSanitizer on the thread pool.
set -euo pipefail
cxx=${CXX:-g++}

python3 -m venv .venv-asan
.venv-asan/bin/pip install --config-settings=build-dir=build/asan \
  --config-settings=cmake.define.MXFP4MOE_SANITIZE=ON --config-settings=cmake.define.MXFP4MOE_WERROR=ON \
  --config-settings=install.strip=false '.[test]'

# The interpreter is not instrumented: the run-time library must come first, and what Python keeps is no leak.
# Where memory is short an allocation returns null, as it does without the sanitizer. Freed memory is kept for a
# while, so peaks of memory are not the library's own.
runtime="$($cxx -print-file-name=libasan.so) $($cxx -print-file-name=libstdc++.so)"
tests=(
  tests/checkpoint/test_checkpoint.py tests/checkpoint/test_safetensors.py tests/kernels/test_call_forms.py
  tests/kernels/test_formats.py tests/kernels/test_fused_experts.py tests/kernels/test_special_values.py
  tests/kernels/test_work_split.py tests/kernels/test_wrong_calls.py tests/layer/test_layer.py
  tests/packed/test_packing.py tests/packed/test_wrong_packing.py tests/quantize/test_quantize_calls.py
)
echo "+ pytest with AddressSanitizer and UndefinedBehaviorSanitizer"
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 LD_PRELOAD=$runtime \
  .venv-asan/bin/python -m pytest -q -n auto -r fE -p no:cacheprovider "${tests[@]}" -k 'not needs_32_mib'

# With much address space randomization the run-time library of older compilers finds no room for its shadow.
fixed_addresses=()
if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi
for sanitizer in thread address,undefined; do
  echo "+ pool_test with -fsanitize=$sanitizer"
  tree=build/pool-${sanitizer%,*}
  .venv-ci/bin/cmake -S tests/cpp -B "$tree" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv-ci/bin/ninja" \
    -DCMAKE_CXX_FLAGS="-fsanitize=$sanitizer -g -O1 -Werror" >/dev/null
  .venv-ci/bin/cmake --build "$tree" >/dev/null
  "${fixed_addresses[@]}" "$tree/pool_test"
done
