"""The entropy coder: exact tables, exact bytes, every symbol back, and nothing but FormatError on garbage."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder, ideal_bits
from latcodec.entropy.tables import TOTAL, Tables
from latcodec.errors import FormatError, WeightsError
from latcodec.train.export.tables import logistic_tables, quantize_pmf


def join_tables(*tables):
    """Tables with the entries of all of `tables` one after another."""
    starts = np.cumsum([0] + [len(t.weights) for t in tables])
    offsets = [t.offsets[:-1] + start for t, start in zip(tables, starts, strict=False)]
    return Tables(
        np.concatenate([t.weights for t in tables]),
        np.concatenate([*offsets, starts[-1:]]),
        np.concatenate([t.minimums for t in tables]),
    )


SIGMAS = np.exp(np.linspace(math.log(0.11), math.log(64), 16))
LOGISTIC = logistic_tables(SIGMAS)
# A table at each end of int32, a table of one symbol and its escape, a flat table.
EDGES = quantize_pmf(
    [np.ones(3), np.ones(4), np.array([1.0, 0.0]), np.ones(257)],
    [-(2**31), 2**31 - 3, 5, -128],
)
MIXED = join_tables(LOGISTIC, EDGES)


def encoded(tables, *puts):
    encoder = RangeEncoder(tables)
    for symbols, table_index in puts:
        encoder.encode(symbols, table_index)
    assert encoder.bits == pytest.approx(sum(ideal_bits(*put, tables) for put in puts))
    return encoder.finish()


def check_round_trip(tables, *puts):
    data = encoded(tables, *puts)
    decoder = RangeDecoder(data, tables)
    for symbols, table_index in puts:
        got = decoder.decode(table_index)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, symbols)
    decoder.finish()
    return data


def picture(n, seed=0, tables=LOGISTIC):
    generator = np.random.default_rng(seed)
    table_index = generator.integers(0, len(SIGMAS), n).astype(np.uint16)
    return np.rint(generator.normal(0, SIGMAS[table_index])).astype(np.int32), table_index


INT32 = st.integers(-(2**31), 2**31 - 1)
VALUES = st.one_of(st.integers(-3, 3), st.integers(-500, 500), INT32, st.sampled_from([-(2**31), 2**31 - 1, 2**16, -1]))
PAIRS = st.lists(st.tuples(VALUES, st.integers(0, MIXED.num_tables - 1)), max_size=60)


def arrays(pairs):
    return np.array([s for s, _ in pairs], np.int32), np.array([r for _, r in pairs], np.uint16)


@given(st.lists(PAIRS, max_size=4))
@settings(deadline=None, max_examples=200)
def test_round_trip_of_any_symbols(puts):
    puts = [arrays(pairs) for pairs in puts]
    data = check_round_trip(MIXED, *puts)
    ideal = sum(ideal_bits(*put, MIXED) for put in puts)
    assert ideal / 8 <= len(data) + 1e-6
    assert len(data) <= 1.002 * ideal / 8 + 8


@pytest.mark.parametrize("table_index", range(MIXED.num_tables))
def test_every_magnitude_escapes_and_returns(table_index):
    powers = 2 ** np.arange(32, dtype=np.int64)
    values = np.concatenate([sign * powers + step for sign in (-1, 1) for step in (-1, 0, 1)])
    symbols = values[(values >= -(2**31)) & (values < 2**31)].astype(np.int32)
    check_round_trip(MIXED, (symbols, np.full(len(symbols), table_index, np.uint16)))


def test_nothing():
    empty = (np.empty(0, np.int32), np.empty(0, np.uint16))
    assert check_round_trip(LOGISTIC, empty) == b""
    assert check_round_trip(LOGISTIC) == b""
    check_round_trip(LOGISTIC, empty, picture(10), empty, picture(3, seed=1))


def test_the_example_of_the_package_docstring():
    import doctest

    from latcodec import entropy

    assert doctest.testmod(entropy) == (0, 11)


def test_exact_bytes():
    tables = quantize_pmf([np.array([1, 2, 4, 1]), np.array([8, 1])], [-1, 100])
    symbols = np.array([0, 1, 100, -1, 2, 70000, -(2**31), 1, 100], np.int32)
    table_index = np.array([0, 0, 1, 0, 0, 0, 1, 0, 1], np.uint16)
    data = check_round_trip(tables, (symbols, table_index))
    assert data.hex() == "eb52fc3b7023661b0000c08d"


def test_the_order_of_the_stream_is_the_documented_one():
    import constriction

    tables = quantize_pmf([np.array([1, 2, 4, 1]), np.array([8, 1])], [-1, 100])
    symbols = np.array([70000, 100, 1, -6], np.int32)
    table_index = np.array([1, 1, 0, 0], np.uint16)
    model, coder = constriction.stream.model, constriction.stream.queue.RangeEncoder()
    for entries, index in (([2, 3], 0), ([1, 0], 1)):
        coder.encode(np.array(entries, np.int32), tables.coder_model(index))
    # -6 is 5 below -1: 101 in binary; 70000 is 69900 above 100: 17 bits.
    coder.encode(np.array([32 + 2, 16], np.int32), model.Uniform(64))
    coder.encode(np.array([0b01, 69900 & 0xFFFF], np.int32), model.Uniform(), np.array([4, 65536], np.int32))
    assert encoded(tables, (symbols, table_index)) == coder.get_compressed().astype("<u4").tobytes()


def test_overhead_on_a_picture():
    symbols, table_index = picture(100_000)
    data = check_round_trip(LOGISTIC, (symbols, table_index))
    ideal = ideal_bits(symbols, table_index, LOGISTIC) / 8
    assert ideal <= len(data) <= 1.002 * ideal + 8


def test_ideal_bits_counts_escapes():
    tables = quantize_pmf([np.array([3, 1])], [0])
    table_index = np.zeros(3, np.uint16)
    # In the table; escape and distance 1; escape, below, and distance 5 = 101 in binary.
    assert ideal_bits(np.array([0, 1, -5], np.int32), table_index, tables) == pytest.approx(
        math.log2(4 / 3) + 8 + 8 + 2
    )


def test_more_than_256_rows():
    tables = join_tables(*[LOGISTIC] * 20)
    symbols, table_index = picture(2000)
    check_round_trip(tables, (symbols, table_index + np.arange(2000, dtype=np.uint16) % 20 * np.uint16(16)))


def test_non_contiguous_inputs():
    symbols, table_index = picture(100)
    check_round_trip(LOGISTIC, (symbols[::-2], table_index[::-2]))


# Tables


@pytest.mark.parametrize("table_index", [0, 7, 15, 16, 18])
def test_the_coder_uses_exactly_the_integers(table_index):
    # A uniform coder over 2**24 values puts any point of the range in the stream; the entry that the table decodes
    # there must be the one whose integer interval holds the point. Both sides of every boundary are checked.
    import constriction

    queue = constriction.stream.queue
    weights = MIXED.weights[MIXED.offsets[table_index] : MIXED.offsets[table_index + 1]].astype(np.int64)
    ends = np.cumsum(weights)
    assert ends[-1] == TOTAL
    for points, expected in ((ends - weights, np.arange(len(ends))), (ends - 1, np.arange(len(ends)))):
        for point, entry in zip(points.tolist(), expected.tolist(), strict=True):
            words = np.array([point << 8, 2**31], np.uint32)
            assert queue.RangeDecoder(words).decode(MIXED.coder_model(table_index)) == entry


def test_logistic_tables():
    for table_index, sigma in enumerate(SIGMAS):
        weights = LOGISTIC.weights[LOGISTIC.offsets[table_index] : LOGISTIC.offsets[table_index + 1]]
        reach = math.ceil(6 * sigma) + 4
        assert LOGISTIC.minimums[table_index] == -reach and len(weights) == 2 * reach + 2
        assert weights.sum() == TOTAL and weights.min() >= 1
        np.testing.assert_array_equal(weights[:-1], weights[-2::-1])
        central = math.tanh(0.25 * math.pi / math.sqrt(3) / sigma)
        assert weights[reach] / TOTAL == pytest.approx(central, rel=1e-3)
        assert LOGISTIC.bits[LOGISTIC.offsets[table_index + 1] - 1] < 18
    wide = logistic_tables(np.array([1e4]))
    assert wide.minimums[0] == -2000
    assert wide.weights[-1] / TOTAL == pytest.approx(2 / (1 + math.exp(0.2 * math.pi / math.sqrt(3))), abs=2e-3)
    np.testing.assert_array_equal(logistic_tables(SIGMAS).weights, LOGISTIC.weights)


def test_quantize_pmf_exactly():
    tables = quantize_pmf([np.array([1, 2, 1]), np.array([0.0, 0.0, 1.0, 0.0])], [0, -1])
    np.testing.assert_array_equal(tables.weights, [TOTAL // 4, TOTAL // 2, TOTAL // 4, 1, 1, TOTAL - 3, 1])
    np.testing.assert_array_equal(tables.offsets, [0, 3, 7])


@pytest.mark.parametrize(
    "weights, offsets, minimums, words",
    [
        ([TOTAL, 1], [0, 2], [0], "table 0 sums to 16777217"),
        ([TOTAL - 2, 1], [0, 2], [0], "table 0 sums to 16777215"),
        ([TOTAL - 1, 1, 1, TOTAL], [0, 2, 4], [0, 0], "table 1 sums to"),
        ([TOTAL, 0], [0, 2], [0], "weight 1 is 0"),
        ([TOTAL + 1, -1], [0, 2], [0], "weight 1 is -1"),
        ([TOTAL], [0, 1], [0], "table 0 has 1 entries"),
        ([TOTAL - 1, 1], [0, 2, 2], [0, 0], "table 1 has 0 entries"),
        ([TOTAL - 1, 1], [0, 3, 2], [0, 0], "table 1 has -1 entries"),
        ([TOTAL - 1, 1], [0, 3], [0], "do not divide"),
        ([TOTAL - 1, 1], [1, 2], [0], "do not divide"),
        ([TOTAL - 1, 1], [0, 2], [0, 0], "do not divide"),
        ([TOTAL - 2, 1, 1], [0, 3], [2**31 - 1], "over the largest int32"),
        ([TOTAL - 1, 1], [0, 2], [2**31], "minimums does not fit into 32 bits"),
        ([TOTAL - 1.0, 1.0], [0, 2], [0], "weights is float64"),
        ([[TOTAL - 1, 1]], [0, 2], [0], "weights is int64"),
        ([], [0], [], "not a list of integers"),
    ],
)
def test_wrong_tables(weights, offsets, minimums, words):
    with pytest.raises(WeightsError, match=words):
        Tables(np.array(weights), np.array(offsets), np.array(minimums))


@pytest.mark.parametrize("pmf", [[0.5, math.nan], [0.5, -0.5, 1.0], [0.0, 0.0], [math.inf, 1.0], [[0.5, 0.5]], []])
def test_wrong_pmfs(pmf):
    with pytest.raises(WeightsError):
        quantize_pmf([np.array(pmf)], [0])


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_wrong_sigmas(sigma):
    with pytest.raises(WeightsError):
        logistic_tables(np.array([sigma]))


def test_tables_are_frozen_and_travel():
    with pytest.raises(ValueError):
        LOGISTIC.weights[0] = 1
    symbols, table_index = picture(500)
    data = encoded(LOGISTIC, (symbols, table_index))
    for other in (pickle.loads(pickle.dumps(LOGISTIC)), copy.deepcopy(LOGISTIC)):
        np.testing.assert_array_equal(RangeDecoder(data, other).decode(table_index), symbols)


# Refusals


@pytest.mark.parametrize(
    "symbols, table_index, error",
    [
        (np.zeros(2, np.int64), np.zeros(2, np.uint16), TypeError),
        (np.zeros(2, np.int32), np.zeros(2, np.int32), TypeError),
        (np.zeros((2, 1), np.int32), np.zeros((2, 1), np.uint16), TypeError),
        ([0, 0], np.zeros(2, np.uint16), TypeError),
        (np.zeros(2, np.int32), np.zeros(3, np.uint16), ValueError),
        (np.zeros(2, np.int32), np.array([0, 16], np.uint16), ValueError),
    ],
)
def test_inputs_that_could_end_the_process_never_reach_the_coder(symbols, table_index, error):
    with pytest.raises(error):
        RangeEncoder(LOGISTIC).encode(symbols, table_index)
    with pytest.raises(error):
        ideal_bits(symbols, table_index, LOGISTIC)


def test_a_table_index_out_of_range_is_refused_by_the_decoder():
    with pytest.raises(ValueError):
        RangeDecoder(bytes(8), LOGISTIC).decode(np.array([16], np.uint16))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_length_must_be_words(length):
    with pytest.raises(FormatError, match="multiple of 4"):
        RangeDecoder(bytes(length), LOGISTIC)


def decode_or_refuse(data, tables, *table_indices):
    """True if decoding went through, False if it was refused; anything else is an error of the test that calls this."""
    try:
        decoder = RangeDecoder(data, tables)
        for table_index in table_indices:
            got = decoder.decode(table_index)
            assert got.dtype == np.int32 and got.shape == table_index.shape
        decoder.finish()
    except FormatError:
        return False
    return True


def test_every_truncation_is_refused():
    symbols, table_index = picture(1000)
    data = encoded(LOGISTIC, (symbols, table_index))
    assert decode_or_refuse(data, LOGISTIC, table_index)
    # The last word can be mostly padding, so that nothing is missed without it: the container's checksum finds that.
    for length in range(len(data) - 4):
        assert not decode_or_refuse(data[:length], LOGISTIC, table_index)


def test_junk_at_the_end_is_refused():
    symbols, table_index = picture(1000)
    data = encoded(LOGISTIC, (symbols, table_index))
    generator = np.random.default_rng(1)
    for extra in (4, 8, 16, 20, 400):
        assert not decode_or_refuse(data + generator.bytes(extra), LOGISTIC, table_index) or extra == 4
        assert not decode_or_refuse(data + bytes(extra), LOGISTIC, table_index) or extra <= 8
    assert not decode_or_refuse(bytes(4), LOGISTIC)
    assert not decode_or_refuse(data, LOGISTIC, table_index[:500])


def test_an_empty_stream_holds_no_symbol():
    assert not decode_or_refuse(b"", LOGISTIC, np.zeros(1, np.uint16))


@pytest.mark.parametrize("tables", [LOGISTIC, MIXED, EDGES], ids=["logistic", "mixed", "edges"])
def test_garbage_gives_symbols_or_format_error(tables):
    generator = np.random.default_rng(2)
    for _ in range(300):
        data = generator.bytes(int(generator.integers(0, 80)) * 4)
        if generator.random() < 0.3:
            data = bytes(len(data)) if generator.random() < 0.5 else b"\xff" * len(data)
        n = int(generator.integers(0, 200))
        table_index = generator.integers(0, tables.num_tables, n).astype(np.uint16)
        decode_or_refuse(data, tables, table_index[: n // 2], table_index[n // 2 :])


def test_mutations_give_symbols_or_format_error():
    generator = np.random.default_rng(3)
    symbols, table_index = picture(300)
    symbols[::7] = generator.integers(-(2**31), 2**31, len(symbols[::7]))
    table_index[::11] += 1
    table_index %= 16
    data = encoded(LOGISTIC, (symbols, table_index))
    accepted = 0
    for _ in range(500):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        accepted += decode_or_refuse(bytes(damaged), LOGISTIC, table_index)
    assert accepted < 250


def test_other_tables_are_noticed_or_give_symbols():
    symbols, table_index = picture(1000)
    data = encoded(LOGISTIC, (symbols, table_index))
    assert not decode_or_refuse(data, logistic_tables(SIGMAS * 2), table_index)
