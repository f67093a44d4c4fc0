# The README's test command, word for word: all tests, with all threads and kernel tables.
set -euo pipefail
. .ci/readme_command.sh
mkdir -p build/ci
rm -f build/ci/*.xml
PYTEST_ADDOPTS="--junitxml=build/ci/all.xml" run_readme_command "pytest -n auto"
