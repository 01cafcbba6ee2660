"""Networks on large pictures in horizontal tiles, so that memory does not grow with the height.

A tile is run with the rows that its outputs depend on (the halo), and the outputs of the halo are cut off. The result
equals that of the whole picture, because only the real border sees padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TILE_LATENTS = 2048  # latents in a tile: half a megapixel. Larger tiles are no faster and take more memory.


def run_in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, rows_in: int, rows_out: int, halo: int) -> Tensor:
    """Return network(x), computed in horizontal tiles.

    Args:
        network: Maps [1, C, H, W] to [1, C', H * rows_out / rows_in, W'].
        x: float32 [1, C, H, W]; H is a multiple of `rows_in`.
        rows_in: Rows (and columns) of the input per latent.
        rows_out: Rows of the output per latent.
        halo: How many latents beyond a tile its outputs depend on.

    Returns:
        float32 [1, C', H * rows_out / rows_in, W'].
    """
    height, width = x.shape[2] // rows_in, x.shape[3] // rows_in
    tile = max(4 * halo, TILE_LATENTS // max(1, width))
    if height <= tile + halo:
        return network(x.contiguous(memory_format=torch.channels_last))
    parts = []
    for top in range(0, height, tile):
        bottom = min(height, top + tile)
        first, last = max(0, top - halo), min(height, bottom + halo)
        part = network(x[:, :, first * rows_in : last * rows_in].contiguous(memory_format=torch.channels_last))
        parts.append(part[:, :, (top - first) * rows_out : (bottom - first) * rows_out])
    return torch.cat(parts, 2)
