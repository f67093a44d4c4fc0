"""Random damage to the bytes of a file."""

from __future__ import annotations

import numpy as np


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a few bytes, most of them in the first half kilobyte, where the structure is."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        end = min(len(data), 512) if rng.random() < 0.8 else len(data)
        position = int(rng.integers(max(end, 1)))
        match rng.integers(5):
            case 0:
                data[position : position + 1] = rng.bytes(1)
            case 1:
                data[position : position + 1] = bytes([rng.choice(list(b'0123456789-.eE{}[]:,"'))])
            case 2:
                del data[position : position + int(rng.integers(1, 30))]
            case 3:
                data[position:position] = data[position : position + int(rng.integers(1, 30))]
            case 4:
                del data[position:]
    return bytes(data)
