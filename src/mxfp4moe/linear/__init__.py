"""Matrices of packed weights by hidden states."""
