"""The order in which latents are coded: each 2x2 square of them in four steps, in another quarter of the channels each.

Source: Li, Li, Lu 2023, "Neural video compression with diverse contexts", section 3.3 (quadtree partition).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 4
_TURN = (0, 2, 3, 1)  # of positions (0, 0), (0, 1), (1, 0), (1, 1) in channel group 0: the diagonal first


def coding_order(channels: int) -> Tensor:
    """Channels of pixel_unshuffle(y, 2) in coding order, int64 [4 * channels]: `channels` of each step in turn."""
    steps: list[list[int]] = [[], [], [], []]
    for channel in range(channels):
        for position in range(STEPS):
            steps[_TURN[position] ^ (channel % STEPS)].append(STEPS * channel + position)
    return torch.tensor([place for step in steps for place in step])


def places(step: int) -> list[tuple[slice, slice, slice]]:
    """The channels, rows and columns of [C, h, w] that a step codes, one group of channels after another."""
    found = []
    for group in range(STEPS):
        down, across = divmod(_TURN.index(step ^ group), 2)
        found.append((slice(group, None, STEPS), slice(down, None, 2), slice(across, None, 2)))
    return found


def in_steps(planes: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """[B, C, h, w] -> what each step codes, [B, C, ceil(h / 2), ceil(w / 2)], 0 beyond the border."""
    padded = F.pad(planes, (0, planes.shape[3] % 2, 0, planes.shape[2] % 2))
    return F.pixel_unshuffle(padded, 2)[:, order].chunk(STEPS, 1)


def from_steps(steps: Sequence[Tensor], inverse_order: Tensor) -> Tensor:
    """The inverse of `in_steps`, [B, C, 2 h2, 2 w2]."""
    return F.pixel_shuffle(torch.cat(steps, 1)[:, inverse_order], 2)
