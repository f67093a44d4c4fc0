# Each wheel for x86-64 as its users have it: bash .ci/wheels/roots.sh FOLDER
#
# In clean roots of three Debian releases, with the newest and the oldest NumPy and ml_dtypes that are supported and have
# wheels for that Python: installed by root, used by another user, without HOME, from a place that he cannot write to.
set -euo pipefail
. .ci/tools.sh
debian_packages debootstrap debootstrap /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
wheels=$(realpath "$1")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/*$')
status=0

pip_wheel() { .venv-ci/bin/pip download --no-deps --dest "$1" pip >/dev/null; }

make_root() { # release, folder
  [ ! -d "$2" ] || return 0
  rm -rf "$2.new"
  # Every release since 2016 is laid out as `sid` is, also those that this debootstrap does not know by name.
  debootstrap --variant=minbase --include=python3 "$1" "$2.new" "$mirror" /usr/share/debootstrap/scripts/sid \
    >"$2.log" 2>&1 || { tail -n 5 "$2.log" >&2; return 1; }
  mv "$2.new" "$2"
}

inside() { # root, user, command...
  chroot --userspec="$2" "$1" env -i PATH=/usr/bin:/bin "${@:3}"
}

try() { # release, Python, which, requirements...
  local root=$PWD/build/wheels/roots/$1 python=$2 which=$3
  shift 3
  rm -rf "$root/wheels" "$root/opt/site"
  mkdir -p "$root/wheels"
  cp "$wheels"/*-cp311-abi3-*x86_64.whl "$root/wheels"
  pip_wheel "$root/wheels"
  .venv-ci/bin/pip download --dest "$root/wheels" --only-binary=:all: --implementation cp --python-version "$python" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 "$@" >/dev/null
  inside "$root" 0:0 python3 "/wheels/$(basename "$root"/wheels/pip-*.whl)/pip" install --no-index --no-cache-dir --no-compile \
    --root-user-action=ignore --find-links /wheels --target /opt/site mxfp4moe >/dev/null
  printf -- '--- %s, Python %s, %s: %s\n' "$(basename "$root")" "$python" "$which" "$*"
  inside "$root" 65534:65534 PYTHONPATH=/opt/site python3 -m mxfp4moe selftest
}

mkdir -p build/wheels/roots
for release in "bookworm 3.11 numpy==2.1.0 ml_dtypes==0.5.0" "trixie 3.13 numpy==2.1.0 ml_dtypes==0.5.0" \
  "testing 3.14 numpy==2.3.2 ml_dtypes==0.5.4"; do
  read -r name python numpy ml_dtypes <<<"$release"
  make_root "$name" "build/wheels/roots/$name" || { status=1; continue; }
  try "$name" "$python" newest numpy ml_dtypes || status=1
  try "$name" "$python" oldest "$numpy" "$ml_dtypes" || status=1
done
exit "$status"
