"""Sizes of latents relative to the picture, the same in every network of the tree."""

IMAGE_STRIDE = 16  # pixels per latent y, in both directions
HYPER_STRIDE = 4  # latents y per hyper-latent z, in both directions
