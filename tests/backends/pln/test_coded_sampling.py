"""Blocks are balanced and the same for both sides; samplers draw what they should; what is chosen is found again."""

import numpy as np
import pytest

from latcodec.backends.pln import coded_sampling, greedy, importance, rejection, samplers
from latcodec.backends.pln.coded_sampling import BIT, CANDIDATES, MAX_COLUMNS, SEED, choose, codebook, pack, sample
from latcodec.backends.pln.measure import Level
from latcodec.backends.pln.samplers import Classes, Layout
from latcodec.entropy.philox import SCALE, gaussian_rows


def _source(count: int, mean_bits: float = 1.0, seed: int = 0):
    """Information, target and noise of calibrated dimensions; a few have none."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    bits = np.rint(BIT * rng.exponential(mean_bits, count)).astype(np.int64)
    bits[bits < 0.1 * BIT] = 0
    noise = 1 / np.sqrt(np.maximum(np.exp2(2 * bits / BIT) - 1, 1e-9))
    return bits, rng.standard_normal(count) * np.sqrt(1 + noise**2), noise


def _distortion(target, noise, bits, drawn):
    coded = bits > 0
    return float((np.square(target - drawn / SCALE) / np.square(noise))[coded].mean())


def test_blocks_are_balanced():
    bits, *_ = _source(20_000)
    plan = pack(bits, 14 * BIT)
    load = np.bincount(plan.block, bits[plan.order]) / BIT
    assert sorted(plan.order) == np.flatnonzero(bits).tolist()
    assert load.mean() == pytest.approx(14, rel=0.01) and load.std() < 0.6
    assert np.array_equal(np.bincount(plan.block), plan.counts)
    pairs = plan.block * MAX_COLUMNS + plan.column
    assert len(np.unique(pairs)) == len(pairs) and plan.column.max() < MAX_COLUMNS


@pytest.mark.parametrize("bits", [[], [0, 0], [1], [20 * BIT, 1], [1] * 1000])
def test_packing_of_odd_cases(bits):
    bits = np.array(bits, np.int64)
    plan = pack(bits, 14 * BIT)
    assert len(plan.order) == (bits > 0).sum()
    assert plan.counts.max(initial=0) <= MAX_COLUMNS
    drawn = sample(plan, np.zeros(len(plan.counts), np.int64), len(bits))
    assert len(drawn) == len(bits) and not drawn[bits == 0].any()


def test_the_codebook_holds_the_rows_that_the_decoder_draws():
    plan = pack(np.full(40, BIT), 10 * BIT)
    indices = np.array([3, 511, 0, 1023])
    drawn = sample(plan, indices, 40)
    both = codebook(10, 32)
    assert np.array_equal(both[2 * plan.column, indices[plan.block]] * SCALE, drawn[plan.order])
    assert np.array_equal(both[1::2], both[0::2] ** 2)
    assert np.array_equal(both[0::2, 77] * SCALE, gaussian_rows(SEED, CANDIDATES, np.array([77]), 32)[0])


def test_best_is_the_nearest_candidate_and_ties_go_to_the_first():
    bits, target, noise = _source(60)
    plan = pack(bits, 8 * BIT)
    chosen = choose(plan, target, noise, 8)
    rows = gaussian_rows(SEED, CANDIDATES, np.arange(256), int(plan.counts.max())) / SCALE
    for block in range(len(plan.counts)):
        mine = plan.block == block
        dims, columns = plan.order[mine], plan.column[mine]
        distance = (np.square(target[dims] - rows[:, columns]) / np.square(noise[dims])).sum(1)
        assert distance[chosen[block]] == pytest.approx(distance.min(), rel=1e-4)


def test_more_bits_are_closer():
    bits, target, noise = _source(4000)
    distortions = []
    for kappa in (8, 12, 14):
        plan = pack(bits, kappa * BIT)
        distortions.append(_distortion(target, noise, bits, sample(plan, choose(plan, target, noise, kappa), 4000)))
    assert distortions[0] > distortions[1] > distortions[2] > 1
    assert distortions[2] < 1.5


def test_importance_samples_match_the_moments_of_their_target():
    # 2.5 bits of information in blocks with 13-bit indices: t is 10.5 bits.
    count = 15_000
    rng = np.random.Generator(np.random.Philox(key=[4, 0]))
    noise = np.full(count, 1.0)  # half a bit
    target = rng.standard_normal(count) * np.sqrt(2)
    plan = importance.pack(np.full(count, BIT // 2), 5 * BIT // 2)
    assert (plan.counts == 5).all()
    drawn = sample(plan, choose(plan, target, noise, 13, "sample"), count) / SCALE
    standard = (drawn - target / 2) / np.sqrt(0.5)
    assert abs(standard.mean()) < 0.04
    assert standard.var() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(standard, target)[0, 1]) < 0.04


def test_importance_blocks_are_cut_before_they_overflow():
    bits, *_ = _source(3000)
    plan = importance.pack(bits, 12 * BIT)
    load = np.bincount(plan.block, bits[plan.order])
    assert (load[plan.counts > 1] <= 12 * BIT).all()
    assert np.array_equal(plan.order, np.flatnonzero(bits))


@pytest.mark.parametrize("mean, deviation", [(0.8, 0.5), (-1.5, 0.3), (0.0, 0.9)])
def test_rejection_samples_match_the_moments_of_their_target(mean, deviation):
    count = 6000
    noise = np.full(count, (1 / deviation**2 - 1) ** -0.5)
    target = np.full(count, mean * (1 + noise[0] ** 2))
    bits = np.ones(count, np.int64)
    indices = rejection.choose(bits, target, noise)
    drawn = rejection.sample(bits, indices) / SCALE
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / count**0.5)
    assert drawn.std() == pytest.approx(deviation, rel=0.05)
    assert indices.max() < 1 << rejection.BUDGET_BITS


def test_rejection_within_its_budget_takes_the_likeliest():
    bits, noise = np.ones(50, np.int64), np.full(50, 1e-5)
    target = np.full(50, 2.0)
    drawn = rejection.sample(bits, rejection.choose(bits, target, noise)) / SCALE
    assert np.abs(drawn - 2).max() < 0.2  # 1024 candidates cannot do better


def test_normal_cdf():
    from statistics import NormalDist

    x = np.linspace(-6, 6, 49)
    assert np.abs(rejection.normal_cdf(x) - [NormalDist().cdf(v) for v in x]).max() < 2e-7


def test_greedy_amplitudes_make_a_standard_normal():
    nats = np.array([0.01, 0.5, 3.0, 7.0])
    for amplitudes in (greedy.equal_amplitudes(5), greedy.informative_amplitudes(3, nats)):
        variance = np.square(amplitudes / 2.0**greedy.AMPLITUDE_BITS).sum(0)
        assert variance == pytest.approx(1, abs=1e-3)
    shards = np.square(greedy.informative_amplitudes(2, nats) / 2.0**greedy.AMPLITUDE_BITS)
    noise = 1 / np.expm1(2 * nats)
    assert 0.5 * np.log1p(shards[0] / (shards[1] + noise)) == pytest.approx(nats / 2, rel=0.02)


@pytest.mark.parametrize("beams", [1, 4])
def test_greedy_finds_its_sample_again_and_beams_help(beams):
    bits, target, noise = _source(600)
    plan = pack(bits, 2 * 10 * BIT)
    amplitudes = greedy.informative_amplitudes(2, bits * np.log(2) / BIT)
    indices = greedy.choose(plan, target, noise, 10, amplitudes, beams)
    assert len(indices) == 2 * len(plan.counts) and 0 <= indices.min() and indices.max() < 1024
    drawn = greedy.sample(plan, indices, 600, amplitudes)
    first = _distortion(target, noise, bits, drawn)
    assert first < 2.2
    if beams > 1:
        alone = greedy.sample(plan, greedy.choose(plan, target, noise, 10, amplitudes, 1), 600, amplitudes)
        assert first < _distortion(target, noise, bits, alone)


def test_a_first_shard_is_chosen_knowing_what_the_later_ones_add():
    bits, target, noise = _source(300)
    plan = pack(bits, 2 * 8 * BIT)
    amplitudes = greedy.informative_amplitudes(2, bits * np.log(2) / BIT)
    first = greedy.choose(plan, target, noise, 8, amplitudes, 1).reshape(-1, 2)[:, 0]
    rows = gaussian_rows(SEED, coded_sampling.SHARDS, np.arange(256), int(plan.counts.max())) / SCALE
    wide, later = amplitudes * 2.0**-greedy.AMPLITUDE_BITS
    for block in range(len(plan.counts)):
        mine = plan.block == block
        dims, columns = plan.order[mine], plan.column[mine]
        left = target[dims] - wide[dims] * rows[:, columns]
        distance = (np.square(left) / (np.square(noise[dims]) + np.square(later[dims]))).sum(1)
        assert distance[first[block]] == pytest.approx(distance.min(), rel=1e-4)


def test_importance_by_name_leaves_room_and_draws():
    bits = np.full(400, BIT // 2)
    classes, rows = Classes(np.array([0, BIT // 2]), {}), np.ones(400, np.uint8)
    layout = Layout("importance", 10, 1)
    plan = samplers.plan(layout, bits)
    load = np.bincount(plan.block, bits[plan.order])
    assert load.max() == (10 - samplers.IMPORTANCE_EXTRA_BITS) * BIT
    target, noise = np.random.default_rng(1).standard_normal(400), np.ones(400)
    indices = samplers.choose(layout, classes, plan, rows, target, noise)
    assert np.array_equal(indices, choose(plan, target, noise, 10, "sample"))
    assert not np.array_equal(indices, choose(plan, target, noise, 10, "best"))


@pytest.mark.parametrize("sampler, shards", [("blocks", 1), ("greedy", 2), ("greedy", 4), ("importance", 1)])
def test_samplers_by_name_name_what_they_chose(sampler, shards):
    rows = np.arange(3 * 8 * 8) % 4
    classes = Classes(np.array([0, 60, 300, 900]), {2: greedy.informative_amplitudes(2, np.array([0, 0.16, 0.8, 2.4]))})
    layout = Layout(sampler, 10, shards)
    plan = samplers.plan(layout, classes.bits[rows])
    _, target, noise = _source(len(rows))
    indices = samplers.choose(layout, classes, plan, rows, target, noise)
    assert len(indices) == len(plan.counts) * shards
    drawn = samplers.sample(layout, classes, plan, rows, indices)
    assert not drawn[rows == 0].any() and drawn[rows == 3].any()
    again = samplers.choose(layout, classes, samplers.plan(layout, classes.bits[rows]), rows, target, noise)
    assert np.array_equal(indices, again)


def test_measured_rho_of_exact_samples_is_one_and_kl_is_the_allocation():
    rng = np.random.Generator(np.random.Philox(key=[3, 0]))
    bits = np.full((4, 60, 60), 2 * BIT)
    prior = np.sqrt(np.exp2(4) - 1)
    evidence = rng.standard_normal(bits.shape) * np.sqrt(prior**2 + 1)
    weight = prior**2 / (prior**2 + 1)
    level = Level(4)
    level.add(
        bits,
        np.full(bits.shape, prior),
        evidence,
        weight * evidence + np.sqrt(weight) * rng.standard_normal(bits.shape),
    )
    summary = level.summary(1, level.kl_bits * 1.1, 0)
    assert summary["rho"] == pytest.approx(1, abs=0.03)
    assert summary["kl_bits"] == pytest.approx(2 * bits.size, rel=0.02)
    assert summary["ratio"] == pytest.approx(1.1) and summary["active_units"] == 4
    assert summary["coded_dimensions"] == summary["dimensions"] == bits.size


def test_encoder_precision_is_not_decodability():
    """Whatever index is chosen, the decoder's sample is that row, in integers."""
    bits, *_ = _source(200)
    plan = coded_sampling.pack(bits, 14 * BIT)
    indices = np.arange(len(plan.counts)) * 7919 % (1 << 14)
    drawn = sample(plan, indices, 200)
    assert drawn.dtype == np.int64 and np.abs(drawn).max() <= 17715
