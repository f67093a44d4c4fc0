# The README's first command, word for word: it builds and installs the package and runs its demo.
set -euo pipefail
. .ci/readme_command.sh
run_readme_command demo
