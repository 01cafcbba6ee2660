"""Contexts and the adaptive pass: both directions alike, causal, exact against a slow reference, robust to any data."""

import dataclasses

import numpy as np
import pytest

from latcodec.backends.nc_vae import adaptive, contexts
from latcodec.backends.nc_vae import network as ncvae
from latcodec.backends.nc_vae.adaptive import (
    Counts,
    Drift,
    Step,
    StepDecoder,
    StepEncoder,
    gather,
    run_entropy_model,
    scatter,
)
from latcodec.backends.nc_vae.contexts import Contexts
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder, ideal_bits
from latcodec.entropy.tables import TOTAL, Tables
from latcodec.errors import FormatError, WeightsError
from latcodec.train.export.nc_vae import logistic_tables

GROUPS = np.array([1, 1, 2, 4, 3])
TABLES = logistic_tables()


def some_contexts(seed: int = 0, predicted: int = 4, sources: int = 2) -> Contexts:
    """Random weights where something may be seen, 0 elsewhere."""
    rng = np.random.default_rng(seed)
    channels = int(GROUPS.sum())
    group = np.repeat(np.arange(len(GROUPS)), GROUPS)
    earlier = group[None, :] < group[:, None]
    own = np.zeros((len(contexts.TAPS), 5, 5), bool)
    for phase, taps in enumerate(contexts.TAPS):
        for dy, dx in taps:
            own[phase, dy + 2, dx + 2] = True
    sizes = contexts.scale_sigmas()
    return Contexts(
        groups=GROUPS,
        scale=(rng.integers(0, 300, (channels, channels, 3)) * earlier[:, :, None]).astype(np.int32),
        mean=(rng.integers(-9000, 9000, (predicted, sources, 3, 3)) * earlier[:predicted, :sources, None, None]).astype(
            np.int32
        ),
        own_scale=(rng.integers(0, 300, (channels, len(own), 5, 5)) * own).astype(np.int32),
        own_mean=(rng.integers(-9000, 9000, (predicted, len(own), 5, 5)) * own).astype(np.int32),
        unit=rng.integers(2000, 30000, (256, channels)).astype(np.int32),
        inverse_unit=rng.integers(100_000, 2_000_000, (256, channels)).astype(np.int32),
        floor=rng.integers(0, 2000, (256, channels)).astype(np.int32),
        slope=rng.integers(500, 9000, (256, channels)).astype(np.int32),
        bounds=np.rint(np.sqrt(sizes[1:] * sizes[:-1]) * 2**contexts.SIZE_BITS).astype(np.int32),
    )


def some_symbols(shape: tuple[int, int], seed: int = 0, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.rint(rng.laplace(0, spread, (int(GROUPS.sum()), *shape))).astype(np.int32)


def encode(model: Contexts, symbols: np.ndarray, index: int = 7, adaptive: bool = True) -> tuple[bytes, np.ndarray]:
    coder = RangeEncoder(TABLES)
    step_coder = StepEncoder(coder, Given(symbols))
    again, means = run_entropy_model(model, TABLES, index, symbols.shape[1:], step_coder, adaptive)
    assert np.array_equal(again, symbols)
    return coder.finish(), means


class Given:
    """A quantiser that gives symbols which are known, int32 [C, h, w]."""

    def __init__(self, symbols: np.ndarray):
        self.symbols = symbols

    def quantise(self, step: Step) -> np.ndarray:
        return step.gather(self.symbols)


class Spy:
    """Notes the rows and residuals that an encoder would get."""

    def __init__(self):
        self.steps: list[tuple[np.ndarray, np.ndarray]] = []

    def encode(self, symbols, rows, tables, counts):
        self.steps.append((symbols, rows))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (2, 2), (3, 5), (4, 4), (9, 13), (16, 8)])
@pytest.mark.parametrize("adapting", [True, False])
def test_what_is_encoded_is_decoded(shape, adapting):
    model, symbols = some_contexts(), some_symbols(shape)
    symbols.flat[0], symbols.flat[-1] = 2**24, -(2**24)
    stream, means = encode(model, symbols, adaptive=adapting)
    decoder = RangeDecoder(stream, TABLES)
    again, means_again = run_entropy_model(model, TABLES, 7, shape, StepDecoder(decoder), adapting)
    decoder.finish()
    assert np.array_equal(again, symbols) and np.array_equal(means, means_again)
    assert means.shape == (4, *shape)


def test_the_order_is_that_of_the_network():
    assert contexts.TAPS == ncvae._OWN_TAPS
    phase = ncvae.phases_of(12, 9).numpy()
    for number, lattices in enumerate(contexts.LATTICES):
        mine = np.zeros((12, 9), bool)
        for r, c, s in lattices:
            mine[r::s, c::s] = True
        assert np.array_equal(mine, phase == number)


def test_gather_and_scatter_are_inverse():
    values = np.arange(2 * 9 * 7).reshape(2, 9, 7)
    again = np.zeros_like(values)
    for lattices in contexts.LATTICES:
        scatter(again, gather(values, lattices), lattices)
    assert np.array_equal(values, again)


def rows_of_all(model: Contexts, symbols: np.ndarray, adapting: bool) -> list[np.ndarray]:
    spy = Spy()
    run_entropy_model(model, TABLES, 7, symbols.shape[1:], StepEncoder(spy, Given(symbols)), adapting)
    return [rows for _, rows in spy.steps]


@pytest.mark.parametrize("adapting", [True, False])
def test_rows_depend_on_earlier_symbols_only(adapting):
    """Whatever the symbols of a step and of all later ones, the rows up to it stay."""
    model, symbols = some_contexts(), some_symbols((9, 10))
    group = np.repeat(np.arange(len(GROUPS)), GROUPS)
    when = group[:, None, None] * 5 + ncvae.phases_of(9, 10).numpy()
    expected = rows_of_all(model, symbols, adapting)
    for step in (0, 1, 4, 5, 12, 18, 24):
        other = np.where(when >= step, some_symbols((9, 10), seed=step + 1, spread=30), symbols)
        rows = rows_of_all(model, other, adapting)
        assert all(np.array_equal(a, b) for a, b in zip(rows[: step + 1], expected, strict=False))
        if step < 24:
            assert any(not np.array_equal(a, b) for a, b in zip(rows[step + 1 :], expected[step + 1 :], strict=True))


def test_rows_and_means_follow_their_equations():
    """Against sums of Python's own integers, symbol by symbol."""
    model, symbols = some_contexts(), some_symbols((6, 5))
    index, (height, width) = 7, (6, 5)
    spy = Spy()
    _, means = run_entropy_model(model, TABLES, index, (height, width), StepEncoder(spy, Given(symbols)), False)
    rows = np.zeros(symbols.shape, int)
    numbers = iter(spy.steps)
    first = 0
    for size in GROUPS:
        for lattices in contexts.LATTICES:
            if any(r < height and c < width for r, c, _ in lattices):
                step_rows = next(numbers)[1].reshape(size, -1)
                scatter(rows[first : first + size], step_rows, lattices)
        first += size
    limit = 64 << contexts.SIZE_N_BITS

    def n_of(channel: int, y: int, x: int) -> tuple[int, int]:
        if not (0 <= y < height and 0 <= x < width):
            return 0, 0
        q, inverse = int(symbols[channel, y, x]), int(model.inverse_unit[index, channel])
        size = (abs(q) * inverse + (1 << 14)) >> 15
        return (q * inverse + (1 << 7)) >> 8, min(size, limit)

    phase = ncvae.phases_of(height, width).numpy()
    starts = np.repeat(np.cumsum(GROUPS) - GROUPS, GROUPS)
    for channel, y, x in np.ndindex(symbols.shape):
        mean = size = 0
        for other in range(starts[channel]):
            for dy, dx in np.ndindex(3, 3):
                n, magnitude = n_of(other, y + dy - 1, x + dx - 1)
                size += magnitude * int(model.scale[channel, other, abs(dy - 1) + abs(dx - 1)])
                if channel < 4 and other < 2:
                    mean += n * int(model.mean[channel, other, dy, dx])
        for dy, dx in np.ndindex(5, 5):
            n, magnitude = n_of(channel, y + dy - 2, x + dx - 2)
            size += magnitude * int(model.own_scale[channel, phase[y, x], dy, dx])
            if channel < 4:
                mean += n * int(model.own_mean[channel, phase[y, x], dy, dx])
        mean = ((mean >> 12) * int(model.unit[index, channel]) + (1 << 21)) >> 22
        assert channel >= 4 or means[channel, y, x] == mean
        size = ((size * int(model.slope[index, channel])) >> 19) + int(model.floor[index, channel])
        fraction = mean - ((mean + 32) >> 6 << 6)
        scale_row = int(np.searchsorted(model.bounds, size, side="right"))
        assert rows[channel, y, x] == contexts.table_index_of(np.array(scale_row), np.array((abs(fraction) + 4) >> 3))


def test_strips_change_nothing(monkeypatch):
    model, symbols = some_contexts(), some_symbols((21, 11))
    stream, means = encode(model, symbols)
    monkeypatch.setattr(contexts, "_STRIP_VALUES", 300)
    again, means_again = encode(model, symbols)
    assert stream == again and np.array_equal(means, means_again)


def test_sums_stay_exact_at_their_limits():
    """The largest weights and symbols that are accepted give the sums of integers."""
    model = some_contexts()
    heavy = dataclasses.replace(model, scale=model.scale * 15)
    assert heavy.size_limit < 64 << contexts.SIZE_N_BITS
    seen = np.full((8, 7, 9), heavy.size_limit, np.float32)
    summed = heavy.around_size(seen, 8, 11, (3, 5))
    weights = heavy.scale[8:, :8].astype(np.int64) @ np.array([1, 4, 4])
    assert np.array_equal(summed[:, 1, 2], weights.sum(1) * heavy.size_limit)
    assert summed.max() < 2**24
    stream, _ = encode(heavy, some_symbols((5, 6), spread=1e6))
    assert stream


@pytest.mark.parametrize(
    "change",
    [
        {"scale": lambda a: a.astype(float)},
        {"scale": lambda a: -a},
        {"scale": lambda a: a * 10_000},
        {"mean": lambda a: a[:3]},
        {"own_mean": lambda a: np.where(a != 0, np.int32(2**31 - 1), a)},
        {"unit": lambda a: a[:255]},
        {"slope": lambda a: a * 10_000},
        {"floor": lambda a: a - 2**29},
        {"bounds": lambda a: a[::-1].copy()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_contexts_that_could_overflow_are_refused(change):
    model = some_contexts()
    with pytest.raises(WeightsError):
        dataclasses.replace(model, **{name: make(getattr(model, name)) for name, make in change.items()})


def test_drift_finds_a_channel_that_is_rougher_than_promised():
    drift = Drift(TABLES, 3)
    row = int(contexts.table_index_of(np.array(15), np.array(0)))
    sigma = contexts.scale_sigmas()[15]
    assert drift._of_table[row] / 256 == pytest.approx(sigma * 0.764, rel=0.15)  # of a logistic
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.logistic(0, 3**0.5 / np.pi * sigma, (3, 4000)) * np.array([[1], [3], [0.2]])).astype(np.int32)
    drift.add(0, symbols, np.full(symbols.shape, row, np.uint16))
    moves = drift.moves(0, 3)
    assert moves[0] == 0 and 2 <= moves[1] <= 5 and -8 <= moves[2] <= -3
    drift.add(0, np.full((3, 10), 2**31 - 1, np.int32), np.full((3, 10), row, np.uint16))
    assert drift.moves(0, 3).max() == 10
    assert len(adaptive.DRIFT_BOUNDS) == 20 and np.all(np.diff(adaptive.DRIFT_BOUNDS) > 0)


def test_counts_become_tables():
    counts = Counts(TABLES)
    counts.follow()
    assert np.array_equal(counts.tables.weights, TABLES.weights)
    row = 3
    start, stop = TABLES.offsets[row : row + 2]
    counts.counts[start + 1] = 10**6
    counts.follow()
    tables = counts.tables
    assert tables.weights[start + 1] > 0.99 * TOTAL and tables.weights[start:stop].sum() == TOTAL
    others = np.r_[0:start, stop : len(tables.weights)]
    assert np.array_equal(tables.weights[others], TABLES.weights[others])
    counts.counts[:] = 2**62
    counts.follow()
    assert isinstance(counts.tables, Tables)


def test_tables_follow_a_picture():
    """Symbols that are always 1 get cheaper than the frozen tables say."""
    model = dataclasses.replace(
        some_contexts(), groups=np.array([1, 1, 2, 4, 3]), floor=np.full((256, 11), 900, np.int32)
    )
    symbols = np.ones((11, 40, 40), np.int32)
    adapted, frozen = (len(encode(model, symbols, adaptive=a)[0]) for a in (True, False))
    assert adapted < 0.98 * frozen


def test_counts_of_encoder_and_decoder_agree():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60, 500).astype(np.uint16)
    symbols = rng.integers(-400, 400, 500).astype(np.int32)
    told, found = np.zeros(len(TABLES.weights), np.int64), np.zeros(len(TABLES.weights), np.int64)
    encoder = RangeEncoder(TABLES)
    encoder.encode(symbols, rows, TABLES, told)
    decoder = RangeDecoder(encoder.finish(), TABLES)
    assert np.array_equal(decoder.decode(rows, TABLES, found), symbols)
    assert np.array_equal(told, found) and told.sum() == 500


def test_garbage_is_an_error_or_other_symbols():
    model, rng = some_contexts(), np.random.default_rng(0)
    stream, _ = encode(model, some_symbols((6, 6)))
    refused = 0
    for number in range(60):
        damaged = bytearray(stream)
        if number % 2:
            damaged[int(rng.integers(0, len(damaged)))] ^= int(rng.integers(1, 256))
        else:
            damaged = bytearray(rng.bytes(4 * int(rng.integers(0, 300))))
        decoder = RangeDecoder(bytes(damaged), TABLES)
        try:
            run_entropy_model(model, TABLES, 7, (6, 6), StepDecoder(decoder))
            decoder.finish()
        except FormatError:
            refused += 1
    assert refused > 20


def test_the_price_of_a_pass_is_that_of_its_steps():
    model, symbols = some_contexts(), some_symbols((12, 12))
    spy = Spy()
    run_entropy_model(model, TABLES, 7, (12, 12), StepEncoder(spy, Given(symbols)), False)
    bits = sum(ideal_bits(s, r, TABLES) for s, r in spy.steps)
    stream, _ = encode(model, symbols, adaptive=False)
    assert abs(8 * len(stream) - bits) < 96 + 1e-3 * bits


def test_an_encoder_may_choose_its_symbols():
    model, seen = some_contexts(), []

    class ToTheMean:
        def quantise(self, step: Step) -> np.ndarray:
            seen.append(step)
            return np.broadcast_to(step.centre, step.table_index.shape).astype(np.int32)

    encoder = RangeEncoder(TABLES)
    symbols, means = run_entropy_model(model, TABLES, 7, (8, 8), StepEncoder(encoder, ToTheMean()))
    assert len(seen) == 5 * len(GROUPS) and np.array_equal(symbols[:4], (means + 32) >> 6)
    assert not symbols[4:].any()
    decoder = RangeDecoder(encoder.finish(), TABLES)
    assert np.array_equal(run_entropy_model(model, TABLES, 7, (8, 8), StepDecoder(decoder))[0], symbols)
