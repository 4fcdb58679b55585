"""Random damage to the bytes of a good file."""

import numpy as np


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage some bytes, most often near the beginning: flip bits, overwrite, remove or repeat a piece, or cut the end
    off."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(min(len(data), [40, 600, len(data)][rng.integers(3)]) or 1))
        length = int(rng.integers(1, 40))
        match rng.integers(5):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << int(rng.integers(8))
            case 1:
                data[place : place + length] = rng.bytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case _:
                data[place : place + 4] = [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"][rng.integers(3)]
    return bytes(data[: rng.integers(len(data) + 1)] if rng.random() < 0.1 else data)
