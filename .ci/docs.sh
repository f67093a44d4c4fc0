# The site, with warnings as errors, from the package that the README's commands installed; and its links. The result is
# build/docs/index.html. Examples of pages and docstrings run with the other tests.
set -euo pipefail
packages=$(.venv/bin/python -c 'import mxfp4moe; print(mxfp4moe.__path__[0])')/..
rm -rf build/docs
PYTHONPATH=$packages .venv-ci/bin/python -m sphinx -q -W --keep-going -j auto -c docs . build/docs
.venv-ci/bin/python .ci/check_links.py build/docs
