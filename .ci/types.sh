# What strict type checkers say of users' scripts against the package that the README's commands installed.
set -euo pipefail
.venv-ci/bin/python .ci/check_types.py "$PWD/.venv/bin/python"
