# Tools that a stage needs and the machine may lack; to be sourced.

# retry COMMAND...: up to three times, for servers that fail now and then.
retry() {
  local attempt
  for attempt in 1 2 3; do
    if "$@"; then return; fi
    echo "attempt $attempt of: $*: failed" >&2
    sleep "$((5 * attempt))"
  done
  return 1
}

# debian_packages COMMAND PACKAGE...: installs each package whose command, or file, is not there.
debian_packages() {
  local missing=()
  while [ $# -gt 0 ]; do
    command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("$2")
    shift 2
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  retry apt-get -qq -o Acquire::Retries=3 update || return
  retry apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# python_packages FILE...: installs what the files of requirements list in .venv-ci.
python_packages() {
  local file
  for file; do retry .venv-ci/bin/pip install -r "$file" || return; done
}
