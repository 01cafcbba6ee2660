"""Between pictures and tensors: pixels to float samples and back, padding, and the sizes of the latents."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE


def latent_shapes(width_px: int, height_px: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (h, w) of y and of z for a picture in px; y has just the cells that the picture touches."""
    y = (-(-height_px // IMAGE_STRIDE), -(-width_px // IMAGE_STRIDE))
    return y, (-(-y[0] // HYPER_STRIDE), -(-y[1] // HYPER_STRIDE))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad [1, C, h, w] on the right and below by replication to a multiple; smooth continuations cost few bits."""
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


def peak_of(image: np.ndarray) -> int:
    """Return the largest sample of a picture, uint8 or uint16."""
    return 65535 if image.dtype == np.uint16 else 255


def to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """Convert a picture to samples, padded to a multiple of IMAGE_STRIDE on both sides.

    Args:
        image: uint8 or uint16 [H, W, 3].
        device: where the result is.

    Returns:
        float32 [1, 3, H', W'] in 0..1.
    """
    x = torch.from_numpy(image.astype(np.float32)).to(device)
    return pad_to_multiple(x.permute(2, 0, 1)[None] / peak_of(image), IMAGE_STRIDE)


def to_image(x: Tensor, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """Convert samples to a picture.

    Args:
        x: float [1, 3, H', W'] in about 0..1, at least as large as the picture.
        size: (height, width) of the picture, px.
        gray: whether the three channels are averaged.
        depth: bits a sample, 8 or 16.

    Returns:
        uint8 or uint16 [H, W, 3].
    """
    x = x[0, :, : size[0], : size[1]]
    if gray:
        x = x.mean(0, keepdim=True).expand(3, -1, -1)
    peak = 65535 if depth == 16 else 255
    x = torch.nan_to_num(x).clamp(0, 1).mul(peak).round().permute(1, 2, 0).contiguous().cpu()
    return x.numpy().astype(np.uint16 if depth == 16 else np.uint8)
