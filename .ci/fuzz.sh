# Random inputs by the hundred thousand: changed files, calls and routing against float64, activations of eight bits
# against their definition, kills, limits, races.
#
# About an hour on two cores: 25 minutes for files, 15 for calls and routing, 8 for the rest; and 15 to compile with
# AddressSanitizer, unless the stage sanitizers has done it.
# MXFP4MOE_FUZZ_PERCENT=1 runs a hundredth of the cases; another MXFP4MOE_SEED runs other ones. A case that fails
# prints the command that runs it alone, with the package installed and, after calls and routes, `.ci/sanitize.sh`
# sourced.
set -euo pipefail
. .ci/tools.sh
. .ci/sanitize.sh
export PYTHONPATH=tests:tests/support
seed=${MXFP4MOE_SEED:-0}

cases() { echo $((($1 * ${MXFP4MOE_FUZZ_PERCENT:-100} + 99) / 100)); }
status=0
fuzz() { # name and number of cases in a full run
  echo "+ fuzz $1, seed $seed"
  "${run[@]}" -m fuzz "$1" --cases "$(cases "$2")" || status=1
}

python3 -m venv .venv-fuzz
.venv-fuzz/bin/pip install --config-settings=build-dir=build/fuzz .
run=(.venv-fuzz/bin/python)
fuzz files 300000
fuzz kills 40 # of ten kills each
fuzz limits 600
fuzz activations 20000

# On every kernel table that the machine can run; the others need not be compiled.
left_out=$(unused_tables .venv-fuzz/bin/python)
# shellcheck disable=SC2086
build_asan $left_out
run=(with_asan .venv-asan/bin/python)
fuzz calls 6000
fuzz activations 2000
fuzz routes 10000
fuzz files 3000

cpp_test core_test thread "$seed" "$(cases 10)" || status=1

# The C interface: without Python, which only writes the files.
files=$PWD/build/fuzz-files
.venv-fuzz/bin/python -m fuzz.packed_files "$files"
compile_capi_fuzz .venv-asan/bin/python -fsanitize=address,undefined -fno-sanitize-recover=undefined
"${fixed_addresses[@]}" build/capi_fuzz "$files" "$(cases 200000)" "$seed" || status=1
cpp_test capi_fuzz thread "$files" "$(cases 20000)" "$seed" 3 || status=1
compile_capi_fuzz .venv-fuzz/bin/python
if debian_packages valgrind valgrind; then
  valgrind -q --error-exitcode=9 build/capi_fuzz "$files" "$(cases 10000)" "$seed" || status=1
else
  echo "no valgrind: the C interface was not run under it"
fi
exit "$status"
