#!/usr/bin/env bash
# Layers whose experts are spread over ranks, on MPICH: random cases on 1 to 7 ranks, errors and time-outs.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/tools.sh
debian_packages mpiexec.mpich mpich
python=$PWD/.venv/bin/python
"$python" -m pip install 'mpi4py>=4.1'
# The wheels of mpi4py look for MPICH under the name that its own builds have; Debian's has another one.
library=$PWD/build/ci/mpich
mkdir -p "$library"
ln -sf "$(ldconfig -p | awk '/libmpich\.so\.12/ {print $NF; exit}')" "$library/libmpi.so.12"
export MPI4PY_MPIABI=mpich LD_LIBRARY_PATH=$library
MXFP4MOE_MPIEXEC=mpiexec.mpich MXFP4MOE_MPI_CASES=${MXFP4MOE_MPI_CASES:-400} "$python" -m pytest -q tests/mpi
