# The README's test command, word for word: all tests, with all threads and kernel tables. In the merge tier without
# those marked `nightly`, each of which takes seconds.
set -euo pipefail
. .ci/readme_command.sh
mkdir -p build/ci
rm -f build/ci/*.xml
export PYTEST_ADDOPTS="--junitxml=build/ci/all.xml"
[ "${MXFP4MOE_CI_TIER:-merge}" = nightly ] || PYTEST_ADDOPTS+=" -m 'not nightly'"
run_readme_command "pytest -n auto"
