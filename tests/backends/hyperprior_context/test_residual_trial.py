"""A few tiles tell whether a residual layer pays."""

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.backends.common.pixels import to_tensor
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context import (
    residual_encoder,
    residual_trial,
    wiener,
)
from latcodec.backends.hyperprior_context.content import is_screen_content
from latcodec.backends.hyperprior_context.tuning import TUNING

pytestmark = pytest.mark.usefixtures("one_thread")


def unlike_photographs(kind: str) -> np.ndarray:
    """Smooth false colours, uint8 [512, 512, 3]: they hold no high frequencies."""
    import matplotlib
    from scipy.ndimage import gaussian_filter

    down, across = np.mgrid[:512, :512]
    waves = np.sin(across / 17.0) + np.sin(down / 11.0) + np.sin((across + down) / 19.0)
    gray = waves if kind == "waves" else gaussian_filter(np.random.default_rng(0).normal(size=(512, 512)), 8)
    gray = (gray - gray.min()) / np.ptp(gray)
    return (255 * matplotlib.colormaps["hsv" if kind == "waves" else kind](gray)[..., :3]).astype(np.uint8)


@pytest.mark.parametrize("kind", ["photograph", "smooth", "noise", "jet", "hsv", "waves"])
@pytest.mark.parametrize("index", [88, 110])
def test_a_few_tiles_tell_whether_details_are_sent(kind, index, shipped, monkeypatch):
    """What is not looked for would not have been sent: the same bytes."""
    from skimage.filters import gaussian

    image = data.astronaut()
    if kind == "smooth":
        image = (255 * gaussian(image, 2, channel_axis=2)).astype(np.uint8)
    elif kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    elif kind != "photograph":
        image = unlike_photographs(kind)
    looks, encoder = [], residual_encoder.ResidualEncoder
    monkeypatch.setattr(wiener, "fit", lambda *given: wiener.no_filter())
    monkeypatch.setattr(residual_encoder, "ResidualEncoder", lambda *given: looks.append(1) or encoder(*given))
    latents, rate = backend.analyse(shipped, image), shipped.operating_point(index)
    quick = backend.encode_at(shipped, latents, backend.Options(index), 8.0, rate)
    assert len(looks) == (kind not in ("photograph", "smooth"))
    monkeypatch.setattr(residual_encoder, "residual_pays", lambda *given: True)
    assert backend.encode_at(shipped, latents, backend.Options(index), 8.0, rate).streams == quick.streams
    assert len(looks) == 1 + (kind not in ("photograph", "smooth"))
    assert quick.integers.residual_symbols.any() == (kind not in ("photograph", "smooth"))


@pytest.mark.parametrize("where", ["caption", "date", "frame", "corner"])
def test_details_at_a_border_are_seen(where, shipped):
    image = data.astronaut()[:, :500].copy()
    dice = np.random.default_rng(0)
    if where == "caption":
        image[-47:] = 255 * dice.integers(0, 2, (47, 500, 1))
    elif where == "date":
        image[-30:-10, -130:-10] = 255 * dice.integers(0, 2, (20, 120, 1))
    elif where == "frame":
        inner = image[16:-16, 16:-16].copy()
        image[:] = 255 * dice.integers(0, 2, (512, 500, 1))
        image[16:-16, 16:-16] = inner
    else:
        image[:60, :60] = dice.integers(0, 256, (60, 60, 3))
    assert not is_screen_content(image)
    asked, look = [], residual_trial.residual_pays
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(residual_encoder, "residual_pays", lambda *given: asked.append(look(*given)) or asked[-1])
        latents, rate = backend.analyse(shipped, image), shipped.operating_point(120)
        coded = backend.encode_at(shipped, latents, backend.Options(120), 8.0, rate)
    assert asked == [True] and coded.integers.residual_symbols.any()


def test_the_busiest_tiles_lie_inside_whatever_the_size(shipped):
    x = torch.full((1, 3, 464, 592), 0.5)
    x[..., -20:, -20:] = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    busiest = residual_trial.high_energy_tiles(shipped.network.details, x, 64)
    assert len(busiest) == 8 and busiest[0] == (464 - 64, 592 - 64)
    assert all(0 <= top <= 400 and 0 <= left <= 528 for top, left in busiest)


@pytest.mark.parametrize(
    ("first", "later", "found"), [(9.0, 0.0, 1), (0.2, 9.0, 1), (0.7, 0.0, 2), (0.7, 0.7, 3), (0.7, 9.0, 2)]
)
def test_tiles_are_looked_at_until_it_is_clear(shipped, monkeypatch, first, later, found):
    """first, later: what tiles save of a third of what is needed; found: batches of tiles that are asked for."""
    functions, asked = shipped.at_rate(shipped.operating_point(120)), []
    layer, pixels = shipped.network.details, 2**18
    needed = TUNING.probe_saving * TUNING.residual_zero_bits * pixels / 64 * (layer.channels // 16)
    saved = iter([first, later, later])
    of_tiles = lambda *given: torch.eye(16)[3] * next(saved) * needed / 3  # noqa: E731
    monkeypatch.setattr(residual_trial, "saved_bits_of_bands", of_tiles)
    tiles = (asked.append(n) or torch.zeros(2, 3, 64, 64) for n in range(3))
    enough = residual_trial.saves_enough(layer, functions, tiles, 6, 120, pixels)
    assert len(asked) == found and enough == (first > 3 or (later > 3 and found > 1))


def test_of_a_few_tiles_some_tell_little(shipped):
    assert not residual_trial.high_energy_tiles(shipped.network.details, torch.rand(1, 3, 384, 384), 64)
    assert len(residual_trial.high_energy_tiles(shipped.network.details, torch.rand(1, 3, 512, 304), 64)) == 4


def test_a_tile_is_synthesised_as_in_the_whole_picture(shipped, monkeypatch):
    """Inside, and at the borders, where the decoder pads."""
    image = data.astronaut()[:, :500]
    x, y = to_tensor(image, torch.device("cpu")), backend.analyse(shipped, image).at(120).y[None]
    functions, taken = shipped.at_rate(shipped.operating_point(120)), []
    monkeypatch.setattr(shipped, "encodes_in_bf16", False)
    places = [(0, 0), (0, 192), (192, 192), (448, 448), (256, 448), (448, 0)]
    monkeypatch.setattr(residual_trial, "high_energy_tiles", lambda *given: places)
    monkeypatch.setattr(residual_trial, "saves_enough", lambda *given: taken.extend(given[2]))
    residual_trial.residual_pays(shipped, y, x, functions, 120)
    with torch.inference_mode():
        whole = x - shipped.network.synthesis(y, functions)
    for tile, (top, left) in zip(torch.cat(taken), places, strict=True):
        off = (tile - whole[0, :, top : top + 64, left : left + 64]).abs()
        assert off[:, 4:-4, 4:-4].max() < 0.02 and off.mean() < 0.002  # a latent on all sides is not all that is seen


def test_beside_other_latents_and_in_drawings_details_are_always_looked_for(model, photograph, monkeypatch):
    monkeypatch.setattr(residual_encoder, "residual_pays", lambda *given: pytest.fail("asked"))
    latents = backend.analyse(model, photograph)
    backend.encode_at(model, latents, backend.Options(150), 60.0, model.operating_point(150))  # latents end at 100
    backend.encode_at(model, latents, backend.Options(90), 60.0, model.operating_point(90, bytes((80,))))
    backend.encode_at(model, latents, backend.Options(175), 60.0, model.operating_point(175))
    flat = np.full_like(photograph, 80)
    backend.encode_at(model, backend.analyse(model, flat), backend.Options(100), 60.0, model.operating_point(100))
