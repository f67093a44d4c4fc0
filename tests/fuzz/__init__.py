"""Random inputs by the thousand, for `bash .ci/run setup fuzz`; CONTRIBUTING.md says how to run a part of it.

Each case is made from MXFP4MOE_SEED and its number alone, so that one that fails can be run again by itself.
"""
