# The suite on each instruction set alone, and the matrix of which kernel tables ran.
#
# In the stage `readme`, tests that take the `isa` fixture ran on the kernel tables, and all others on the instruction set
# that the package prefers. What is left are the others on the remaining instruction sets. Those of commands, readers of
# files, random inputs, texts, threads and signals wait for the nightly tier.
# Fails if this machine cannot run an instruction set that MXFP4MOE_REQUIRE_ISAS lists.
set -euo pipefail
mkdir -p build/ci
rm -f build/ci/isa-*.xml

python() { .venv/bin/python "$@"; }
supported=$(python -c 'import mxfp4moe; print(*mxfp4moe.supported_isas())')
preferred=$(python -c 'import mxfp4moe; print(mxfp4moe.active_isa())')
echo "supported: $supported; preferred: $preferred"

run() { # instruction set, arguments of pytest
  echo "+ MXFP4MOE_ISA=$1 pytest -n auto ${*:2}"
  MXFP4MOE_ISA=$1 python -m pytest -q -n auto -r fE --junitxml="build/ci/isa-$1.xml" "${@:2}"
}

left=(-m "not every_table")
if [ "${MXFP4MOE_CI_TIER:-merge}" = merge ]; then
  left=(-m "not every_table and not nightly")
  for folder in checkpoint cli fuzz interop project runtime; do left+=("--ignore=tests/$folder"); done
fi
status=0
for isa in portable avx2 avx512 amx; do
  if [[ " $supported " != *" $isa "* ]]; then
    [[ ",${MXFP4MOE_REQUIRE_ISAS:-}," == *",$isa,"* ]] || continue
    echo "$isa is required, and this machine cannot run it" >&2
    status=1
  elif [ ! -f build/ci/all.xml ]; then
    run "$isa" || status=1
  elif [ "$isa" != "$preferred" ]; then
    run "$isa" "${left[@]}" || status=1
  fi
done
python .ci/isa_matrix.py build/ci/*.xml | tee build/ci/isas.txt || status=1
exit "$status"
