#!/usr/bin/env bash
# Layers whose experts are spread over ranks: random cases on 1 to 7 ranks, errors and time-outs. MXFP4MOE_CI_MPI says on
# which MPI: mpich, openmpi, or both with a space between.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/tools.sh
python=$PWD/.venv/bin/python
"$python" -m pip install 'mpi4py>=4.1'

# with_mpi NAME COMMAND...: runs a command whose variables lead to that MPI.
with_mpi() {
  local name=$1 library=$PWD/build/ci/$1
  shift
  case $name in
    mpich)
      debian_packages mpiexec.mpich mpich
      # The wheels of mpi4py look for MPICH under the name that its own builds have; Debian's has another one.
      mkdir -p "$library"
      ln -sf "$(ldconfig -p | awk '/libmpich\.so\.12/ {print $NF; exit}')" "$library/libmpi.so.12"
      env MPI4PY_MPIABI=mpich LD_LIBRARY_PATH="$library" MXFP4MOE_MPIEXEC=mpiexec.mpich "$@"
      ;;
    openmpi)
      debian_packages mpiexec.openmpi openmpi-bin
      # It refuses root, and more ranks than processors, which it would bind each to one of. In containers that may not
      # copy between processes it would say so for each message.
      env MPI4PY_MPIABI=openmpi OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        OMPI_MCA_btl_vader_single_copy_mechanism=none \
        MXFP4MOE_MPIEXEC="mpiexec.openmpi --oversubscribe --bind-to none" "$@"
      ;;
    *)
      echo "MXFP4MOE_CI_MPI: expected mpich or openmpi, got $name" >&2
      return 1
      ;;
  esac
}

for mpi in ${MXFP4MOE_CI_MPI:-mpich}; do
  with_mpi "$mpi" env MXFP4MOE_MPI_CASES="${MXFP4MOE_MPI_CASES:-400}" "$python" -m pytest -q tests/mpi
done
