"""How an untrained network starts: transforms that are a Karhunen-Loeve block transform, and norms with fitting units.

A block transform codec at step 0 is worth ten times the steps. Every class here that has `fit` and `latent_std` follows
the protocol `TransformStart`; the table of training plans names one for each codec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.nn.layers import GDN

NOISE_STD = 0.001


class TransformStart(Protocol):
    """How the transforms of one kind of network start."""

    def fit(self, network: nn.Module, x: Tensor) -> None:
        """Overwrite the transforms with a block transform fitted to x, float32 [B, 3, H, W] around 0."""

    def latent_std(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the standard deviation of each latent of x, float32 [B, 3, H, W] around 0, as float32 [C]."""


class StridedTransforms:
    """Start of `g_a` and `g_s` that are sequences of strided convolutions in mirrored order."""

    def fit(self, network: nn.Module, x: Tensor) -> None:
        """Start both as a 16x16 block transform; see `start_from_klt`."""
        start_from_klt(network.g_a, network.g_s, x)

    @torch.no_grad()
    def latent_std(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the standard deviation of each latent, float32 [C]."""
        return network.g_a(x).std((0, 2, 3))


class PatchTransforms:
    """Start of transforms that know how to fit themselves to pictures, by `start_from_klt`."""

    def fit(self, network: nn.Module, x: Tensor) -> None:
        """Start both transforms as a block transform of patches."""
        network.start_from_klt(x)

    @torch.no_grad()
    def latent_std(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the standard deviation of each latent at the highest rate, float32 [C]."""
        rate = network.at_rate(torch.ones(1, device=x.device))
        return network.analysis(x + 0.5, rate).std((0, 2, 3))


@torch.no_grad()
def start_from_klt(g_a: nn.Sequential, g_s: nn.Sequential, x: Tensor, noise: float = NOISE_STD) -> Tensor:
    """Overwrite the convolutions of g_a and g_s with a block transform.

    Each analysis stage takes the leading eigenvectors of the covariance of 2x2 blocks of its input as taps of its
    stride-2 convolution, and the matching synthesis stage the same basis. What lies between convolutions (norms,
    residual blocks) starts next to the identity and stays as it is.

    Args:
        g_a: Analysis; its convolutions have odd kernels k, stride 2 and padding k // 2.
        g_s: Synthesis, with as many transposed convolutions.
        x: Pictures, float32 [B, 3, H, W] around 0.
        noise: Standard deviation of what is added to the taps.

    Returns:
        The standard deviation of each latent, float32 [C].
    """
    h = x
    down = [layer for layer in g_a if isinstance(layer, nn.Conv2d)]
    up = [layer for layer in g_s if isinstance(layer, nn.ConvTranspose2d)][::-1]
    for layer in [*down, *up]:
        layer.weight.normal_(std=noise)
        layer.bias.zero_()
    index = 0
    for layer in g_a:
        if isinstance(layer, nn.Conv2d):
            basis = _basis_of_blocks(h, layer.out_channels)
            # pixel_unshuffle orders channels (c, dy, dx): tap (p + dy, p + dx) of a kernel padded by p reads that one.
            for weight in (layer.weight, up[index].weight):
                first = weight.shape[-1] // 2
                weight[: len(basis), :, first : first + 2, first : first + 2] += basis
            index += 1
        h = layer(h)
    return h.std((0, 2, 3))


def _basis_of_blocks(h: Tensor, channels: int) -> Tensor:
    """Leading principal axes of the 2x2 blocks of h [B, C, H, W], at most `channels`: float32 [n, C, 2, 2]."""
    blocks = F.pixel_unshuffle(h, 2).permute(0, 2, 3, 1).reshape(-1, 4 * h.shape[1]).double()
    _, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
    count = min(channels, vectors.shape[1])
    return vectors.flip(1)[:, :count].T.reshape(count, h.shape[1], 2, 2).float()


@torch.no_grad()
def fit_norms(network: nn.Module, loss: Callable, x: Tensor, t_range: tuple[float, float]) -> None:
    """Choose the units of every GDN that is trained; what the network computes stays the same but for the last bits.

    Args:
        network: Whose norms are fitted.
        loss: Of the network.
        x: Crops like those of training, float32 [B, 3, H, W] in 0..1.
        t_range: The rates that are trained, of which all are met.
    """
    trained = [module for module in network.modules() if isinstance(module, GDN) and module.gamma.requires_grad]
    hooks = [norm.register_forward_pre_hook(_fit_units) for norm in trained]
    try:
        loss(network, x, torch.linspace(*t_range, len(x), device=x.device), False, False)
    finally:
        for hook in hooks:
            hook.remove()


def _fit_units(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    norm.fit_units(inputs[0].float())
