# What the compiled objects of the README's installation export, which instructions they hold, how the extension is
# hardened.
set -euo pipefail

# The newest build tree: pip leaves one for each Python.
build=$(ls -td build/cp*-*/src/cpp 2>/dev/null | head -n 1)
if [ -z "$build" ]; then
  echo "no build tree under build/: run .ci/readme.sh first" >&2
  exit 1
fi
python3 .ci/check_objects.py "$(dirname "$(dirname "$build")")"
