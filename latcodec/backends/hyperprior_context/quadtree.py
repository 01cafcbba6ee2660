"""The coding order of latents: every 2x2 square in four steps, each step another quarter of the channels per position.

A step codes planes of half the size. Where the number of rows or columns is odd, positions beyond the border hold 0 and
are not coded: a valid mask tells them apart. The first half of this module is for tensors (training), the second for
NumPy arrays of any integer or bool type (coding).

Source: Li, Li, Lu 2023, "Neural video compression with diverse contexts", section 3.3 (quadtree partition).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUM_STEPS = 4
_TURN = (0, 2, 3, 1)  # the step of positions (0, 0), (0, 1), (1, 0), (1, 1) in channel group 0: the diagonal first


def coding_order(channels: int) -> Tensor:
    """Return the channels of pixel_unshuffle(y, 2) in coding order.

    Returns:
        int64 [4 * channels]: `channels` of each step in turn.
    """
    steps: list[list[int]] = [[], [], [], []]
    for channel in range(channels):
        for position in range(NUM_STEPS):
            steps[_TURN[position] ^ (channel % NUM_STEPS)].append(NUM_STEPS * channel + position)
    return torch.tensor([place for step in steps for place in step])


def step_slices(step: int) -> list[tuple[slice, slice, slice]]:
    """Return the channels, rows and columns of [C, h, w] that a step codes, one tuple per group of channels."""
    slices = []
    for group in range(NUM_STEPS):
        row, column = divmod(_TURN.index(step ^ group), 2)
        slices.append((slice(group, None, NUM_STEPS), slice(row, None, 2), slice(column, None, 2)))
    return slices


def split_quadtree(planes: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """Split [B, C, h, w] into what each step codes.

    Args:
        planes: Tensor of shape [B, C, h, w].
        order: The result of `coding_order(C)`.

    Returns:
        Four tensors [B, C, ceil(h / 2), ceil(w / 2)], 0 beyond the border.
    """
    padded = F.pad(planes, (0, planes.shape[3] % 2, 0, planes.shape[2] % 2))
    return F.pixel_unshuffle(padded, 2)[:, order].chunk(NUM_STEPS, 1)


def merge_quadtree(steps: Sequence[Tensor], inverse_order: Tensor) -> Tensor:
    """Invert `split_quadtree`: four tensors [B, C, h2, w2] to [B, C, 2 h2, 2 w2]."""
    return F.pixel_shuffle(torch.cat(steps, 1)[:, inverse_order], 2)


def split_quadtree_step(planes: np.ndarray, step: int, dtype: type | None = None) -> np.ndarray:
    """Return what one step codes, as `split_quadtree`, in one pass.

    Args:
        planes: Array [..., C, h, w].
        step: 0 ... 3.
        dtype: Type of the result; that of `planes` if None.

    Returns:
        Array [..., C, ceil(h / 2), ceil(w / 2)], 0 beyond the border.
    """
    *more, height, width = planes.shape
    out = np.zeros((*more, -(-height // 2), -(-width // 2)), dtype or planes.dtype)
    for channels, rows, columns in step_slices(step):
        part = planes[..., channels, rows, columns]
        out[..., channels, : part.shape[-2], : part.shape[-1]] = part
    return out


def merge_quadtree_steps(steps: np.ndarray | Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Invert `split_quadtree_step`.

    Args:
        steps: What all steps code: one array [4 C, h2, w2] or four arrays [C, h2, w2].
        shape: (h, w) of the result.

    Returns:
        Array [C, h, w].
    """
    steps = np.split(steps, NUM_STEPS) if isinstance(steps, np.ndarray) else steps
    out = np.empty((len(steps[0]), *shape), steps[0].dtype)
    for step, planes in enumerate(steps):
        for channels, rows, columns in step_slices(step):
            part = out[channels, rows, columns]
            part[:] = planes[channels, : part.shape[1], : part.shape[2]]
    return out


def valid_masks(channels: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Return which latents of each step lie inside the border.

    Args:
        channels: Number of channels.
        shape: (h, w) of all latents.

    Returns:
        Four bool arrays [C, ceil(h / 2), ceil(w / 2)].
    """
    return [split_quadtree_step(np.ones((channels, *shape), bool), step) for step in range(NUM_STEPS)]


def gather_valid(values: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Return the valid ones of values [C, h2, w2] as [n]; this is a view, not a copy, if all of them are valid."""
    return values.reshape(-1) if valid_mask.all() else values[valid_mask]


def scatter_valid(values: np.ndarray, valid_mask: np.ndarray) -> np.ndarray:
    """Invert `gather_valid`: [n] to [C, h2, w2], 0 where the mask is False."""
    if valid_mask.all():
        return values.reshape(valid_mask.shape)
    out = np.zeros(valid_mask.shape, values.dtype)
    out[valid_mask] = values
    return out
