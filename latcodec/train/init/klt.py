"""Where training starts: transforms that are a Karhunen-Loeve block transform, worth ten times the steps, and norms
whose parameters have units that fit what they see.

Each analysis stage takes the leading eigenvectors of the covariance of 2x2 blocks of its input as taps of its stride-2
convolution, and the matching synthesis stage the same basis, so that step 0 is a 16x16 block transform codec.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.nn.layers import GDN


@torch.no_grad()
def fit_norms(model: nn.Module, loss: Callable, x: Tensor, t_range: tuple[float, float]) -> None:
    """Choose the units of every GDN that is trained for crops like x float32 [B, 3, H, W] in 0..1, rates all over a
    range of t; what the model computes stays the same but for the last bits."""

    def fit(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.fit_units(inputs[0].float())

    trained = [module for module in model.modules() if isinstance(module, GDN) and module.gamma.requires_grad]
    hooks = [norm.register_forward_pre_hook(fit) for norm in trained]
    try:
        loss(model, x, torch.linspace(*t_range, len(x), device=x.device), False, False)
    finally:
        for hook in hooks:
            hook.remove()


def start_transforms(model: nn.Module, x: Tensor) -> Tensor:
    """Start the transforms `g_a` and `g_s` of a model; x float32 [B, 3, H, W] around 0; returns each latent's std
    [C]."""
    return start_from_klt(model.g_a, model.g_s, x)


@torch.no_grad()
def start_from_klt(g_a: nn.Sequential, g_s: nn.Sequential, x: Tensor, noise: float = 0.001) -> Tensor:
    """Overwrite the convolutions of g_a and g_s; x float32 [B, 3, H, W] around 0; returns each latent's std [C].

    Their strided convolutions, odd kernels k, stride 2, padding k // 2, stand in mirrored order; what lies between
    (norms, residual blocks) starts next to the identity and stays as it is.
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
            blocks = F.pixel_unshuffle(h, 2).permute(0, 2, 3, 1).reshape(-1, 4 * h.shape[1]).double()
            _, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
            count = min(layer.out_channels, vectors.shape[1])
            basis = vectors.flip(1)[:, :count].T.reshape(count, h.shape[1], 2, 2).float()
            # pixel_unshuffle orders channels (c, dy, dx): tap (p + dy, p + dx) of a kernel padded by p reads that one.
            for weight in (layer.weight, up[index].weight):
                first = weight.shape[-1] // 2
                weight[:count, :, first : first + 2, first : first + 2] += basis
            index += 1
        h = layer(h)
    return h.std((0, 2, 3))
