"""Large pictures in horizontal strips, so that memory does not grow with their height.

A strip is run with the rows its outputs reach (the halo) and the outputs of the halo are cut off, so the result is that
of the whole picture: only the real border sees padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

STRIP_CELLS = 2048  # latents in a strip: half a megapixel of 16x16 cells; larger is no faster and takes more memory


def in_strips(network: Callable[[Tensor], Tensor], x: Tensor, shrink: int, grow: int, halo: int) -> Tensor:
    """network(x), x [1, C, H, W], in strips; a cell is `shrink` input rows and `grow` output rows; halo in cells."""
    cells, across = x.shape[2] // shrink, x.shape[3] // shrink
    strip = max(4 * halo, STRIP_CELLS // max(1, across))
    if cells <= strip + halo:
        return network(x.contiguous(memory_format=torch.channels_last))
    parts = []
    for top in range(0, cells, strip):
        bottom = min(cells, top + strip)
        first, last = max(0, top - halo), min(cells, bottom + halo)
        part = network(x[:, :, first * shrink : last * shrink].contiguous(memory_format=torch.channels_last))
        parts.append(part[:, :, (top - first) * grow : (bottom - first) * grow])
    return torch.cat(parts, 2)
