"""Fused mixture-of-experts from 4-bit and 8-bit weights on CPUs, for NumPy."""

__version__ = "0.1.0"
