"""Packed files: the container, and folders of packed layers."""
