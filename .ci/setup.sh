# The tools of the other stages: Debian packages, and a virtual environment with what requirements.txt pins.
set -euo pipefail

missing=()
command -v qemu-x86_64 >/dev/null || missing+=(qemu-user)
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
command -v clang++ >/dev/null || missing+=(clang)
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v curl >/dev/null || missing+=(curl)
command -v objdump >/dev/null || missing+=(binutils)
[ "${MXFP4MOE_CI_TIER:-merge}" = merge ] || command -v valgrind >/dev/null || missing+=(valgrind)

retry() {
  local attempt
  for attempt in 1 2 3; do
    if "$@"; then return; fi
    echo "attempt $attempt of: $*: failed" >&2
    sleep "$((5 * attempt))"
  done
  return 1
}

if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  retry apt-get -qq -o Acquire::Retries=3 update
  retry apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

python3 -m venv .venv-ci
retry .venv-ci/bin/pip install -r .ci/requirements.txt
