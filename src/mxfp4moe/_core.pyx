# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The binding to the C++ library: typed memoryviews in, plain numbers out. Private; arguments are checked by the callers."""
