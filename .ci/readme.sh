# The two commands of the README, word for word, with all threads and kernel tables.
set -euo pipefail
unset PIP_QUIET # as a reader sees them

# The command in a ```bash block that ends as the first argument says.
command_ending_in() {
  local found
  found=$(sed -n '/^```bash$/,/^```$/p' README.md | grep -E "^python3 -m venv \.venv && .*$1\$") || true
  if [ "$(grep -c . <<<"$found")" != 1 ]; then
    echo "README.md: expected one command that ends in $1, got: $found" >&2
    return 1
  fi
  echo "$found"
}

mkdir -p build/ci
for name in "pytest -n auto" demo; do
  command=$(command_ending_in "$name")
  echo "+ $command"
  PYTEST_ADDOPTS="--junitxml=build/ci/all.xml" bash -euo pipefail -c "$command"
done
