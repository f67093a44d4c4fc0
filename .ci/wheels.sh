# Wheels and the sdist: built twice, inspected, and used in clean roots, on older CPUs, without the interpreter's lock and on
# an emulated ARM CPU. After the stages `setup` and `aarch64`; root is needed, for debootstrap and chroot.
set -euo pipefail
if [ "$(uname -m)" != x86_64 ]; then
  echo "skipped: the recipe is for an x86-64"
  exit 0
fi
status=0
dist=build/wheels/dist
rm -rf "$dist" "$dist".again
bash .ci/wheels/free_threaded_python.sh
bash .ci/wheels/build.sh "$dist"
.venv-ci/bin/python .ci/wheels/check_wheels.py "$dist" || status=1

echo "+ built again: the same bytes"
bash .ci/wheels/build.sh "$dist.again" x86_64
for file in "$dist.again"/*; do cmp "$file" "$dist/$(basename "$file")" && sha256sum "$file" || status=1; done

echo "+ selftest in clean roots"
bash .ci/wheels/roots.sh "$dist" || status=1

install() { # wheel, interpreter, folder
  rm -rf "$3"
  .venv-ci/bin/pip --python "$2" install --no-deps --target "$3" "$1"
}

selftest() { PYTHONPATH=$site "$@" -m mxfp4moe selftest || status=1; }

site=$PWD/build/wheels/site
install "$dist"/*-abi3-*x86_64.whl .venv-ci/bin/python "$site"
for cpu in Nehalem Haswell; do
  echo "+ selftest on $cpu"
  selftest qemu-x86_64 -cpu "$cpu" .venv-ci/bin/python
done

echo "+ types, as users have them"
python3 -m venv build/wheels/types
.venv-ci/bin/pip --python build/wheels/types/bin/python install "$dist"/*-abi3-*x86_64.whl
.venv-ci/bin/python .ci/check_types.py "$PWD/build/wheels/types/bin/python" || status=1

echo "+ without the global interpreter lock"
python=build/wheels/python3.14t/venv/bin/python
install "$dist"/*-cp314t-*.whl "$python" "$site"
selftest "$python"
PYTHONPATH=$site "$python" -m pytest -q -p no:cacheprovider tests/runtime/test_python_threads.py || status=1

python=build/aarch64/venv/bin/python
if [ -x "$python" ]; then
  echo "+ selftest on an emulated ARM CPU"
  rm -rf "$site"
  .venv-ci/bin/python -m zipfile -e "$dist"/*aarch64.whl "$site"
  selftest "$python"
else
  echo "the wheel for aarch64 was not run: the stage aarch64 makes the interpreter"
fi
exit "$status"
