"""Regions of a picture whose allocation stands for itself, so that damage in one does not reach the others.

A region is a square of cells of z2. Integers only.
"""

import zlib

import numpy as np


def numbers(height: int, width: int, side: int) -> np.ndarray:
    """Number of the region of each of height x width latents, int64 [height, width]; side in latents."""
    across = -(-width // side)
    return (np.arange(height) // side)[:, None] * across + np.arange(width) // side


def count(height: int, width: int, side: int) -> int:
    """How many regions there are."""
    return -(-height // side) * -(-width // side)


def checks(rows: np.ndarray, side: int) -> list[int]:
    """A CRC of 16 bits of the table rows uint8 [C, h, w] of each region."""
    _, height, width = rows.shape
    return [
        zlib.crc32(np.ascontiguousarray(rows[:, top : top + side, left : left + side])) & 0xFFFF
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
