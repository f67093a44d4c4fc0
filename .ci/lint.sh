# Style, formatting and types.
set -euo pipefail
export PATH="$PWD/.venv-ci/bin:$PATH" # cython-lint looks for its helper there

status=0
check() {
  echo "+ $*" | cut -c 1-100
  "$@" || status=1
}

# Compiled, not run: the inner loops of every kernel table and weight format, by both compilers. The other checks run
# meanwhile.
inner_loops() {
  check env CXXFLAGS="-fsyntax-only -Wall -Wextra -Werror" bash bench/build.sh
  check env CXX=clang++ CXXFLAGS=-fsyntax-only bash bench/build.sh
  exit "$status"
}
mkdir -p build/ci
inner_loops >build/ci/inner_loops.txt 2>&1 &
in_background=$!

mapfile -t cpp < <(git ls-files 'src/cpp/*.h' 'src/cpp/*.cpp' 'tests/cpp/*.h' 'tests/cpp/*.cpp' 'bench/*.c' 'bench/*.cpp')
check ruff check .
check ruff format --check .
check mypy
check cython-lint src/mxfp4moe
check clang-format --dry-run -Werror --ferror-limit=5 "${cpp[@]}"
check actionlint
check bash -n .ci/run .ci/release .ci/*.sh .ci/wheels/*.sh bench/*.sh
wait "$in_background" || status=1
cat build/ci/inner_loops.txt
exit "$status"
