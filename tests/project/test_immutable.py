"""What kernels rely on cannot be changed after it was checked: attributes of public objects are read-only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checkpoints import BFLOAT16

import mxfp4moe as mx


def _experts() -> mx.PackedExperts:
    w13, w2 = np.ones((2, 64, 32), np.float32), np.ones((2, 32, 32), np.float32)
    return mx.pack_experts(w13, None, w2, None, format="bf16")


OBJECTS: dict[str, Callable[[], object]] = {
    "KVCache": lambda: mx.KVCache(2, 64, sliding_window=8),
    "ModelCache": lambda: mx.ModelCache([mx.KVCache(2, 64)]),
    "MoELayer": lambda: mx.MoELayer(_experts(), np.ones((2, 32), np.float32), top_k=1),
    "PackedExperts": _experts,
    "PackedLinear": lambda: mx.pack_linear(np.ones((32, 32), BFLOAT16)),
    "RotaryEmbedding": lambda: mx.RotaryEmbedding(64, base=10000.0),
    "YarnScaling": lambda: mx.YarnScaling(4.0, original_max_position_embeddings=4096),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_attributes_are_read_only(name: str) -> None:
    made = OBJECTS[name]()
    attributes = [
        each for each in dir(made) if not each.startswith("_") and not callable(getattr(made, each))
    ]
    assert attributes
    for attribute in attributes:
        before = getattr(made, attribute)
        with pytest.raises(AttributeError):
            setattr(made, attribute, 1)
        with pytest.raises(AttributeError):
            delattr(made, attribute)
        after = getattr(made, attribute)
        assert after is before or np.array_equal(after, before) or repr(after) == repr(before)
        if isinstance(after, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                after[...] = 0


def test_frequencies_cannot_be_made_writeable() -> None:
    with pytest.raises(ValueError, match="WRITEABLE"):
        mx.RotaryEmbedding(64, base=10000.0).frequencies.flags.writeable = True


def test_every_class_of_objects_is_tested() -> None:
    # An ExpertCache comes from a layer with a limit, and a CausalLM from a folder. Their attributes are
    # properties.
    classes = {name for name in mx.__all__ if isinstance(getattr(mx, name), type)}
    others = {name for name in classes if issubclass(getattr(mx, name), (tuple, BaseException))}
    assert classes - others - {"CausalLM", "ExpertCache"} == set(OBJECTS)
