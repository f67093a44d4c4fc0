"""Layers whose experts are spread over processes and machines, by MPI.

It needs mpi4py and an MPI: ``pip install 'mxfp4moe[mpi]'``. The functions that place experts need neither.
"""

from mxfp4moe.mpi._channel import RankError
from mxfp4moe.mpi.layer import ExpertParallelLayer
from mxfp4moe.mpi.placement import by_load, contiguous, round_robin

__all__ = ["ExpertParallelLayer", "RankError", "by_load", "contiguous", "round_robin"]
