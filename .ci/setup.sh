# The tools of most stages: Debian packages, and a virtual environment with what requirements.txt pins. What one stage alone
# needs it installs itself.
set -euo pipefail
. .ci/tools.sh
debian_packages qemu-x86_64 qemu-user clang++ clang objdump binutils
python3 -m venv .venv-ci
python_packages .ci/requirements.txt
