# The whole suite on each instruction set alone, and the matrix of which kernel tables ran.
# Fails if this machine cannot run one that MXFP4MOE_REQUIRE_ISAS lists.
set -euo pipefail
mkdir -p build/ci
rm -f build/ci/isa-*.xml

supported=$(.venv/bin/python -c 'import mxfp4moe; print(*mxfp4moe.supported_isas())')
echo "supported: $supported"
status=0
for isa in portable avx2 avx512 amx; do
  if [[ " $supported " == *" $isa "* ]]; then
    echo "+ MXFP4MOE_ISA=$isa pytest -n auto"
    MXFP4MOE_ISA=$isa .venv/bin/python -m pytest -q -n auto -r fE --junitxml="build/ci/isa-$isa.xml" || status=1
  elif [[ ",${MXFP4MOE_REQUIRE_ISAS:-}," == *",$isa,"* ]]; then
    echo "$isa is required, and this machine cannot run it" >&2
    status=1
  fi
done
.venv/bin/python .ci/isa_matrix.py build/ci/*.xml | tee build/ci/isas.txt || status=1
exit "$status"
