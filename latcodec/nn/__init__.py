"""Layers and functions that at least two networks share.

- `layers`: GDN, strided convolutions, rounding with a gradient, the rate of a logistic distribution, the loss.
- `geometry`: the sizes of latents relative to the picture.
- `tiling`: runs a network on a large picture in tiles, with the result of the whole picture.
- `symbol_costs`: the bits of symbols in training, as the frozen tables of the weights that a run starts from give them.

Each backend builds its own transforms from these layers, so that its `network.py` reads like the paper it implements.
"""
