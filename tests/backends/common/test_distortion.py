"""What an error counts as in bits: by squared error, by MS-SSIM, of arrays and of tensors alike."""

import numpy as np
import pytest
import torch

from latcodec import metrics
from latcodec.backends.common import distortion
from latcodec.rates import MS_SSIM_WEIGHT, distortion_weight, lambda_of_index

INDEX = 100
LC = distortion_weight(lambda_of_index(INDEX))


@pytest.fixture
def pair(photograph):
    """A photograph, uint8 [600, W, 3], and one with noise."""
    image = np.ascontiguousarray(np.concatenate([photograph, photograph[::-1]])[:600])
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return image, np.clip(image + noise, 0, 255).round().astype(np.uint8)


def test_squared_error_is_that_of_training(pair):
    image, decoded = pair
    wanted = LC * 255**2 * metrics.mse(image / 255, decoded / 255) * image[..., 0].size
    assert distortion.distortion_bits(decoded, image, INDEX) == pytest.approx(wanted)
    wide = [one.astype(np.uint16) * 257 for one in (decoded, image)]
    assert distortion.distortion_bits(*wide, INDEX) == pytest.approx(wanted)


def test_ms_ssim_is_the_mean_of_bands_that_cover_all_rows(pair):
    image, decoded = pair
    parts = [(0, 256), (256, 600)]
    lost = sum((1 - metrics.ms_ssim(decoded[a:b], image[a:b])) * (b - a) * image.shape[1] for a, b in parts)
    found = distortion.distortion_bits(decoded, image, INDEX, "ms-ssim")
    assert found == pytest.approx(LC * MS_SSIM_WEIGHT * lost, rel=1e-6)
    whole = LC * MS_SSIM_WEIGHT * (1 - metrics.ms_ssim(decoded, image)) * image[..., 0].size
    assert found == pytest.approx(whole, rel=0.1)
    assert distortion.distortion_bits(image, image, INDEX, "ms-ssim") == pytest.approx(0, abs=1e-3 * found)


@pytest.mark.parametrize("height", [161, 255, 256, 511, 512, 700])
def test_bands_are_high_enough_and_meet(height):
    bands = distortion._bands(height)
    assert bands[0][0] == 0 and bands[-1][1] == height
    assert all(end == start for (_, end), (start, _) in zip(bands, bands[1:], strict=False))
    assert min(end - start for start, end in bands) >= metrics.MS_SSIM_MIN_SIDE_PX


def test_what_is_too_small_for_ms_ssim_is_judged_by_squared_error(pair):
    image, decoded = (one[:160, :200] for one in pair)
    by_error = distortion.distortion_bits(decoded, image, INDEX)
    assert distortion.distortion_bits(decoded, image, INDEX, "ms-ssim") == by_error > 0


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_tensors_count_as_pictures_do(pair, metric):
    image, decoded = (one[:200, :176] for one in pair)
    x, x_hat = (torch.from_numpy(one).permute(2, 0, 1)[None] / 255 for one in (image, decoded))
    x_hat.requires_grad_(True)
    bits = distortion.relaxed_distortion_bits(x_hat, x, INDEX, metric)
    assert bits.item() == pytest.approx(distortion.distortion_bits(decoded, image, INDEX, metric), rel=1e-3)
    (gradient,) = torch.autograd.grad(bits, x_hat)
    assert torch.isfinite(gradient).all() and (gradient * (x_hat - x)).sum().item() > 0


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_a_gray_picture_has_three_channels_all_alike(pair, metric):
    image, decoded = (np.repeat(one[:200, :176, :1], 3, 2) for one in pair)
    x, x_hat = (torch.from_numpy(one).permute(2, 0, 1)[None] / 255 for one in (image, decoded))
    bits = distortion.relaxed_distortion_bits(x_hat[:, :1], x, INDEX, metric)
    assert float(bits) == pytest.approx(float(distortion.relaxed_distortion_bits(x_hat, x, INDEX, metric)))
