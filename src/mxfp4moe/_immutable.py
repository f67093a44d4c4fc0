"""Objects that stay as they were made."""

from __future__ import annotations


class Immutable:
    """A base of classes whose attributes are set once, by the constructor.

    What the constructor has checked holds ever after, which kernels rely on.
    """

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")
