# What the stages that follow the README share; to be sourced.

# run_readme_command ENDING: runs, word for word, the command in a ```bash block that ends so.
run_readme_command() {
  local command
  command=$(sed -n '/^```bash$/,/^```$/p' README.md | grep -E "^python3 -m venv \.venv && .*$1\$") || true
  if [ "$(grep -c . <<<"$command")" != 1 ]; then
    echo "README.md: expected one command that ends in $1, got: $command" >&2
    return 1
  fi
  echo "+ $command"
  env -u PIP_QUIET bash -euo pipefail -c "$command" # pip speaks as it does to a reader
}
