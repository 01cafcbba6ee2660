"""The filter that a file may hold for its picture: what it does, what it costs, and both directions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter
from skimage import data

from latcodec import weights
from latcodec.backends.common.distortion import error_weight, rd_cost
from latcodec.backends.common.pixels import to_tensor
from latcodec.backends.common.sga import StochasticGumbelAnnealing
from latcodec.backends.hyperprior_context import base_rate, mode_decision, picture, residual, residual_encoder, wiener
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context.picture import relaxed_rd_with_residual
from latcodec.backends.hyperprior_context.residual_network import colour_transform
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.errors import DriftError, FormatError

pytestmark = pytest.mark.usefixtures("one_thread")
INDEX = 188


@pytest.fixture(scope="module")
def model() -> backend.Model:
    return backend.Model(weights.load("hyperprior-context"))


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:192, 100:292])


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] / 255


def payload(coded, index: int, image: np.ndarray, gray: bool = False) -> Payload:
    return Payload(
        backend_id=5, weights_id=b"0000", rate_index=index, width=image.shape[1], height=image.shape[0], gray=gray,
        depth=8, integers_crc=coded.integers_crc, streams=coded.streams, parameters=coded.parameters,
    )  # fmt: skip


def changed(image: np.ndarray) -> torch.Tensor:
    """A picture with other colours and edges, as a decoder might leave it."""
    blurred = gaussian_filter(image.astype(float), (0.8, 0.8, 0))
    mixed = blurred @ np.array([[0.97, 0.02, 0.0], [0.03, 0.96, 0.02], [0.0, 0.01, 0.94]])
    return tensor(mixed + 3)


def bits_of(symbols: np.ndarray, tables) -> float:
    encoder = RangeEncoder(tables)
    wiener.write(symbols, encoder)
    return encoder.bits


def by_hand(x: np.ndarray, symbols: np.ndarray, index: int) -> np.ndarray:
    """The equations of the module, float64 [H, W, 3] in 0..1, one product after another."""
    colours, q = colour_transform().numpy(), wiener.steps(index, x.shape[0] * x.shape[1])
    planes = (x - 0.5) @ colours.T
    k = symbols[3:].reshape(3, -1)
    corrections = np.zeros_like(planes)
    frequency = np.pi / 5 * (np.arange(5)[:, None] + 0.5) * np.arange(5)
    cosine = np.cos(frequency) * np.where(np.arange(5) == 0, np.sqrt(1 / 5), np.sqrt(2 / 5))
    for of in range(3):
        for n, (colour, (i, j)) in enumerate((c, mode) for c in range(3) for mode in wiener.MODES):
            kernel = np.outer(cosine[:, i], cosine[:, j])
            corrections[..., of] += k[of, n] * q[n] * correlate(planes[..., colour], kernel, mode="nearest")
        corrections[..., of] += k[of, -1] * q[-1]
    return x + corrections @ colours


@pytest.mark.parametrize("size", [(192, 192), (129, 70), (64, 5), (1, 1), (65, 33), (67, 40)])
def test_it_does_what_its_equations_say(photograph, size):
    image = photograph[: size[0], : size[1]]
    dice = np.random.default_rng(0)
    symbols = np.concatenate([[0, 3, -4], dice.integers(-9, 10, 3 * wiener.COEFFICIENTS)]).astype(np.int32)
    x = tensor(image)
    expected = by_hand(image / 255, symbols, INDEX)
    part = wiener.filtered(x, *wiener.kernel_of(symbols, INDEX, size[0] * size[1]))
    assert wiener.apply(x, symbols, INDEX) is x
    assert torch.allclose(part, x, atol=1e-5)
    assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3
    assert np.abs(expected - image / 255).max() > 0.01


def test_without_symbols_a_picture_stays(photograph):
    x = tensor(photograph)
    assert torch.equal(wiener.apply(x.clone(), wiener.no_filter(), INDEX), x)


def test_modes_are_orthonormal_and_look_the_same_turned_around():
    modes = wiener._modes()
    assert torch.allclose(modes.flatten(1) @ modes.flatten(1).T, torch.eye(13, dtype=torch.float64))
    assert torch.allclose(modes, modes.flip(1, 2))


@pytest.mark.parametrize("index", [0, 100, 188, 255])
def test_it_saves_more_than_it_costs(model, photograph, index):
    x, base = tensor(photograph), changed(photograph)
    symbols = wiener.fit(base, x, index, photograph.shape[:2], False, model.tables)
    assert symbols.shape == (wiener.SYMBOLS,) and symbols.dtype == np.int32
    before = float((x - base).square().sum())
    after = float((x - wiener.apply(base.clone(), symbols, index)).square().sum())
    assert after < 0.5 * before
    assert error_weight(index) * (before - after) > bits_of(symbols, model.tables)


def test_no_coefficient_alone_would_be_better_otherwise(model, photograph):
    """The fit ends where each coefficient is the best beside the others, or nearly."""
    x, base = tensor(photograph), changed(photograph)
    symbols = wiener.fit(base, x, INDEX, photograph.shape[:2], False, model.tables)

    def cost(some: np.ndarray) -> float:
        left = float((x - wiener.apply(base.clone(), some, INDEX)).double().square().sum())
        return error_weight(INDEX) * left + bits_of(some, model.tables)

    least, better = cost(symbols), 0
    for place in range(3, wiener.SYMBOLS, 3):
        for by in (-1, 1):
            other = symbols.copy()
            other[place] += by
            better += cost(other) < least - 2
    assert better <= 4


def test_nothing_is_said_where_nothing_is_lacking(model, photograph):
    x = tensor(photograph)
    assert len(wiener.fit(x, x, INDEX, photograph.shape[:2], False, model.tables)) == 0
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    assert len(wiener.fit(x + noise * 0.01, x, 60, photograph.shape[:2], False, model.tables)) == 0


def test_networks_that_give_no_numbers_get_none(model, photograph):
    base = changed(photograph)
    base[0, 1, 20, 30] = float("nan")
    assert len(wiener.fit(base, tensor(photograph), INDEX, photograph.shape[:2], False, model.tables)) == 0


def test_only_what_is_shown_counts(model, photograph):
    x, base = tensor(photograph), changed(photograph)
    size = (180, 170)
    symbols = wiener.fit(base, x, INDEX, size, False, model.tables)
    x[:, :, 180:], x[..., 170:] = 9.0, -9.0
    assert np.array_equal(wiener.fit(base, x, INDEX, size, False, model.tables), symbols)


def test_of_gray_pictures_only_the_mean_counts(model, photograph):
    gray = photograph.mean(2, keepdims=True).repeat(3, 2)
    symbols = wiener.fit(changed(gray), tensor(gray), INDEX, gray.shape[:2], True, model.tables)
    k = symbols[3:].reshape(3, -1)
    assert k[0].any() and not k[1:].any()


def test_bands_of_a_large_picture_tell_enough(model, monkeypatch):
    image = data.astronaut()
    x, base = tensor(image), changed(image)
    whole = wiener.fit(base, x, INDEX, image.shape[:2], False, model.tables)
    monkeypatch.setattr(wiener, "LARGE_PX", 50_000)
    some = wiener.fit(base, x, INDEX, image.shape[:2], False, model.tables)
    left = [float((x - wiener.apply(base.clone(), k, INDEX)).square().sum()) for k in (whole, some)]
    assert not np.array_equal(whole, some) and left[1] < 1.1 * left[0] < 0.5 * float((x - base).square().sum())


def test_a_low_wide_picture_is_looked_at_all_over(model):
    """Its first rows are no sample of the others."""
    image = np.tile(data.astronaut()[150:246], (1, 24, 1))
    image[:17] = 200
    x, base = tensor(image), changed(image)
    symbols = wiener.fit(base, x, INDEX, image.shape[:2], False, model.tables)
    left = float((x - wiener.apply(base.clone(), symbols, INDEX)).square().sum())
    assert left < 0.6 * float((x - base).square().sum())


@pytest.mark.parametrize("size", [(1, 1), (9, 3), (16, 16), (3, 40)])
@pytest.mark.parametrize("gray", [False, True])
def test_small_pictures_are_no_trouble(model, photograph, size, gray):
    image = photograph[: size[0], : size[1]]
    x = to_tensor(np.ascontiguousarray(image), torch.device("cpu"))
    symbols = wiener.fit(x * 0.8 + 0.05, x, 255, size, gray, model.tables)
    assert len(symbols) in (0, wiener.SYMBOLS)


@pytest.mark.parametrize("value", [1e9, 1e15, 1e30])
def test_bases_of_any_size_are_no_trouble(model, photograph, value):
    x = tensor(photograph)
    for base in (torch.full_like(x, value), x * value):
        symbols = wiener.fit(base, x, INDEX, photograph.shape[:2], False, model.tables)
        assert len(symbols) in (0, wiener.SYMBOLS)


def test_of_gray_pictures_what_is_shown_is_the_mean(model, photograph):
    """Where that is right already, channels that are not need no filter, nor where one of them is beyond white."""
    gray = tensor(photograph.mean(2, keepdims=True).repeat(3, 2))
    gray = (gray * 1.2).clamp(0, 1)
    base = gray + torch.tensor([0.05, 0.0, -0.05])[:, None, None]
    assert len(wiener.fit(base, gray, INDEX, photograph.shape[:2], True, model.tables)) == 0


def test_what_is_sent_is_received(model):
    symbols = np.random.default_rng(0).integers(-70, 70, wiener.SYMBOLS).astype(np.int32)
    symbols[:3] = -30, 0, 60
    encoder = RangeEncoder(model.tables)
    wiener.write(symbols, encoder)
    decoder = RangeDecoder(encoder.finish(), model.tables)
    assert np.array_equal(wiener.read(decoder), symbols)
    decoder.finish()


class ConstantDecoder:
    """A range decoder all of whose symbols are one number."""

    def __init__(self, symbol: int):
        self.symbol, self.tables_seen = symbol, []

    def decode(self, table_index: np.ndarray) -> np.ndarray:
        self.tables_seen.append(table_index)
        return np.full(len(table_index), self.symbol, np.int32)


@pytest.mark.parametrize("extreme", [-(2**31), 2**31 - 1])
def test_symbols_that_no_encoder_writes_are_no_trouble(extreme):
    decoder = ConstantDecoder(extreme)
    symbols = wiener.read(decoder)
    assert 64 <= decoder.tables_seen[1].min() and decoder.tables_seen[1].max() < 128
    wiener.apply(torch.full((1, 3, 32, 32), 0.5), symbols, 255)


def test_the_count_of_details_tells_whether_there_is_one():
    for num_bands in (0, 5, 16):
        for has_filter in (False, True):
            symbols = residual.pack_band_count(num_bands, has_filter)
            assert residual.unpack_band_count(symbols) == (num_bands, has_filter)
    for wrong in (17, -18, 2**31 - 1, -(2**31)):
        with pytest.raises(FormatError, match="bands of the residual layer"):
            residual.unpack_band_count(np.array([wrong], np.int32))


@pytest.mark.parametrize("size", [(192, 192), (100, 61), (48, 16)])
@pytest.mark.parametrize("gray", [False, True])
def test_both_directions_agree(model, photograph, size, gray):
    image = np.ascontiguousarray(photograph[: size[0], : size[1]])
    if gray:
        image = image.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2)
    coded = backend.encode(model, image, backend.Options(220, gray=gray, lossless=False))
    decoded = backend.decode(model, payload(coded, 220, image, gray))
    assert np.array_equal(decoded, backend.shown(model, coded, 220, image.shape[:2], gray, 8))
    assert len(coded.integers.filter_symbols) == (wiener.SYMBOLS if size != (48, 16) else 0)


def test_a_file_costs_less_with_it(model, photograph, monkeypatch):
    prices = {}
    for name in ("with", "without"):
        coded = backend.encode(model, photograph, backend.Options(INDEX))
        shown = backend.shown(model, coded, INDEX, photograph.shape[:2], False, 8)
        prices[name] = rd_cost(coded, shown, photograph, INDEX)
        monkeypatch.setattr(wiener, "fit", lambda *anything: wiener.no_filter())
    assert prices["with"] < 0.998 * prices["without"]


def test_the_checksum_covers_it(model, photograph, monkeypatch):
    coded = backend.encode(model, photograph, backend.Options(INDEX))
    right = backend.decode_integers

    def wrong(*arguments):
        integers = right(*arguments)
        return replace(integers, filter_symbols=integers.filter_symbols + np.int32(1))

    monkeypatch.setattr(backend, "decode_integers", wrong)
    with pytest.raises(DriftError):
        backend.decode(model, payload(coded, INDEX, photograph))


def test_without_a_search_it_needs_no_synthesis_of_its_own(model, photograph, monkeypatch):
    """Where details do not pay nothing is synthesised, and there is none; a search looks everywhere."""
    monkeypatch.setattr(residual_encoder, "residual_pays", lambda *anything: False)
    plain = backend.encode(model, photograph, backend.Options(120))
    assert len(plain.integers.filter_symbols) == 0
    searched = backend.encode(model, photograph, backend.Options(120, effort=1))
    assert len(searched.integers.filter_symbols) and "search" in searched.seconds
    # But for what fits the filter it is the same file.
    assert np.array_equal(searched.symbols, plain.symbols)


def test_a_search_hears_of_the_filter_and_of_details_that_are_sent(model, photograph, monkeypatch):
    """Rounded latents of the plain file are to a search the picture that a decoder shows of that, and its bits."""
    image, x = photograph, tensor(photograph)
    for index, filtered, sent in ((120, True, False), (220, True, True), (220, False, True)):
        with monkeypatch.context() as patch:
            if not filtered:
                patch.setattr(wiener, "fit", lambda *anything: wiener.no_filter())
            if not sent:
                patch.setattr(residual_encoder, "_bands_worth_sending", lambda *anything: 0)
                patch.setattr(
                    picture, "reconstruction_offset", lambda sigma, amount: 0 * sigma
                )  # which a search does not hear
            latents = backend.analyse(model, image)
            coded = backend.code(model, latents, backend.Options(index, effort=1, lossless=False))
            assert (
                bool(len(coded.integers.filter_symbols)) == filtered
                and bool(len(coded.integers.residual_symbols)) == sent
            )
            rate = model.operating_point(index, coded.parameters)
            at_rate = latents.at(rate.base_rate_index)
            problem = backend.ContextSearch(model, at_rate, backend.Options(index), rate)
            y, z = (one[None] for one in problem.dequantised_start(coded))
            rd = relaxed_rd_with_residual(model, coded.integers, rate, x[0, 0].numel())
            y_gain, z_gain = rd.gains
            without_filter = relaxed_rd_with_residual(
                model, replace(coded.integers, filter_symbols=wiener.no_filter()), rate, x[0, 0].numel()
            )
            with torch.no_grad():
                found, bits = rd.transmit((y / y_gain, z / z_gain), torch.round, x)
                other, _ = without_filter.transmit((y / y_gain, z / z_gain), torch.round, x)
            shown = backend.shown(model, coded, index, image.shape[:2], False, 8)
        error, without = (
            np.abs(255 * one[0, :, :192, :192].clamp(0, 1).permute(1, 2, 0).numpy() - shown).mean()
            for one in (found, other)
        )
        assert (error < 0.97 * without) == filtered
        assert error < (1.5 if sent else 0.6) and 0.9 < float(bits) / coded.estimated_bits < 1.2


def tune_search(monkeypatch, **changed) -> None:
    """Give the decision where to search other constants."""
    for module in (base_rate, mode_decision):
        monkeypatch.setattr(module, "TUNING", replace(TUNING, **changed))


@pytest.mark.parametrize("index", [45, 120, 200])
def test_the_first_effort_fits_a_filter_and_is_never_dearer(model, index, monkeypatch):
    tune_search(monkeypatch, search_min_bits=1000)
    monkeypatch.setattr(StochasticGumbelAnnealing, "optimise", lambda *anything: pytest.fail("a search"))
    image = np.ascontiguousarray(data.coffee()[60:316, 100:356])
    found = [backend.encode(model, image, backend.Options(index, effort=effort, lossless=False)) for effort in (0, 1)]
    prices = [rd_cost(one, backend.shown(model, one, index, (256, 256), False, 8), image, index) for one in found]
    assert len(found[1].integers.filter_symbols) and prices[1] <= prices[0] and (prices[1] < prices[0] or index > 45)
    assert backend.Options(0, effort=1).steps == 0 < backend.Options(0, effort=1, metric="ms-ssim").steps


@pytest.mark.parametrize("lowest", [30, 60])
def test_a_search_of_a_low_rate_may_have_one(model, lowest, monkeypatch):
    index = 45
    tune_search(monkeypatch, search_min_bits=1000, search_coarser_from=lowest)
    image = np.ascontiguousarray(data.coffee()[60:316, 100:356])
    searched = backend.encode(model, image, backend.Options(index, effort=2, lossless=False))
    assert searched.parameters == bytes((40 if lowest == 30 else index,)) and len(searched.integers.filter_symbols)
    decoded = backend.decode(model, payload(searched, index, image))
    assert np.array_equal(decoded, backend.shown(model, searched, index, (256, 256), False, 8))
    plain = backend.encode(model, image, backend.Options(index, lossless=False))
    prices = [
        rd_cost(one, backend.shown(model, one, index, (256, 256), False, 8), image, index) for one in (searched, plain)
    ]
    assert prices[0] < prices[1]
