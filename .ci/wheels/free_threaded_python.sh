# A free-threaded CPython 3.14 with the build tools, in build/wheels/python3.14t: no package of Debian or PyPI has one.
# MXFP4MOE_PYTHON_314T names an interpreter that is used instead; otherwise the source that Debian publishes is
# compiled, which takes ten minutes on two cores.
set -euo pipefail
version=3.14.7
sha256=3b48dac8fb59f62eaa67ac83c1eb12bda1b7a08406dd286e252c11a66be27f81
tree=$PWD/build/wheels/python3.14t
python=${MXFP4MOE_PYTHON_314T:-$tree/bin/python3.14t}
mkdir -p "$tree"

if [ ! -x "$python" ]; then
  echo "+ CPython $version without the global interpreter lock"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/*$')
  archive=$tree/python.tar.xz
  . .ci/tools.sh
  debian_packages curl curl
  curl -sSfL --retry 3 -o "$archive" "${mirror%/}/pool/main/p/python3.14/python3.14_$version.orig.tar.xz"
  echo "$sha256  $archive" | sha256sum --check --quiet
  mkdir -p "$tree/source"
  tar -xf "$archive" -C "$tree/source" --strip-components=1
  (
    cd "$tree/source"
    ./configure --quiet --disable-gil --without-ensurepip --disable-test-modules --prefix="$tree"
    make -s -j "$(nproc)"
    make -s install
  ) >"$tree/build.log" 2>&1 || { tail -n 30 "$tree/build.log" >&2; exit 1; }
  rm -r "$archive" "$tree/source"
fi

"$python" -m venv --without-pip --clear "$tree/venv"
.venv-ci/bin/pip --python "$tree/venv/bin/python" install -c .ci/requirements.txt \
  scikit-build-core cython cython-cmake numpy ml_dtypes pytest pytest-xdist hypothesis
"$tree/venv/bin/python" -c 'import sys; assert not sys._is_gil_enabled(); print(sys.version)'
