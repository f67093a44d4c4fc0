"""A call of the kernels in a traced function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import jax
import numpy as np

from mxfp4moe import _core, config
from mxfp4moe.jax import _ffi
from mxfp4moe.jax._handles import Handle, find


@dataclass(frozen=True)
class Settings:
    """How a call is computed: what holds where it is traced, for it runs on threads of XLA."""

    kernels: int
    num_threads: int

    @classmethod
    def here(cls, num_threads: int | None) -> Settings:
        """The settings of a call that is traced here and now."""
        return cls(config.active_kernels(), config.resolve_num_threads(num_threads))


class Run(Protocol):
    """The computation of a call in Python; two that are equal are one for the compiler."""

    def __call__(
        self, weights: Any, arrays: list[np.ndarray], dtype: np.dtype[Any], num_threads: int
    ) -> np.ndarray:
        """The result, of that dtype."""


@dataclass(frozen=True)
class Call:
    """A call of the kernels with the experts, or the layer, of a handle; `argument` names them in errors.

    `options` are those that the library of foreign functions reads; it has no such call if they are None.
    """

    argument: str
    handle: Handle
    settings: Settings
    dtype: np.dtype[Any]
    run: Run
    options: dict[str, Any] | None = field(default=None, compare=False)

    def __call__(self, *arrays: Any) -> np.ndarray:
        """Compute it in Python, on a thread of XLA."""
        weights = find(self.argument, self.handle.number)
        given = [np.asarray(array) for array in arrays]

        def compute() -> np.ndarray:
            with config._override(config._kernels, self.settings.kernels):
                return self.run(weights, given, self.dtype, self.settings.num_threads)

        # XLA's threads take subnormal numbers for zero, and so would the arithmetic of NumPy there.
        result: np.ndarray = _core.in_default_float_environment(compute)
        return result


def emit(name: str, call: Call, shape: tuple[int, ...], arrays: Sequence[jax.Array]) -> jax.Array:
    """The result, of that shape, of a traced call of the function `name` of mxfp4moe.jax.

    Axes of `vmap` come before those of all arrays and of the result: they are tokens, too.
    """
    result = jax.ShapeDtypeStruct(shape, call.dtype)

    def compute(*arrays: jax.Array) -> jax.Array:
        if call.options is None or not call.handle.in_library or _ffi.foreign_functions() is None:
            return jax.pure_callback(call, result, *arrays, vmap_method="broadcast_all")
        numbers = {"number": call.handle.number, "num_threads": call.settings.num_threads, **call.options}
        return _ffi.call(name, result, arrays, numbers)

    def jvp(primals: Any, tangents: Any) -> NoReturn:
        raise TypeError(
            f"mxfp4moe.jax.{name}: expected a call that is not differentiated, for packed weights have no "
            "gradient, got one that is; pass jax.lax.stop_gradient of its arrays where none is wanted"
        )

    traced = jax.custom_jvp(compute)
    traced.defjvp(jvp)
    return traced(*arrays)
