"""The PLN codec on the shipped hyperprior's transforms: files, samplers, reports, damage, sameness."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from torch_threads import threads

from latcodec import api as codec
from latcodec import container, weights
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.pln import codec as pln
from latcodec.backends.pln import integers as pln_integers
from latcodec.backends.pln import parity as pln_parity
from latcodec.backends.pln import wire as pln_wire
from latcodec.backends.pln.samplers import Layout
from latcodec.errors import DriftError, FormatError, OptionError, VersionError, WeightsError
from latcodec.metrics import psnr_db
from latcodec.rates import lambda_of_index
from latcodec.train.export import pln as export_pln
from latcodec.train.init import pln as start_pln

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stored() -> weights.Weights:
    """Weights as `export` makes them, of a ladder that the hyperprior was turned into."""
    before, export_pln.INDEX_SOURCES = export_pln.INDEX_SOURCES, 100
    try:
        network = start_pln.from_hyperprior(weights.load("hyperprior"))
        tensors = export_pln.tensors_of(network)
    finally:
        export_pln.INDEX_SOURCES = before
    return weights.Weights(Path("pln"), "ab" * 32, "pln", stored_config(network), tensors)


@pytest.fixture(scope="module")
def model(stored) -> pln.Model:
    return pln.Model(stored)


def crop(height: int = 96, width: int = 128) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[60 : 60 + height, 180 : 180 + width])


def encoded(model, image: np.ndarray, index: int = 128, **options) -> tuple[container.Payload, pln.Coded]:
    coded = pln.encode(model, image, pln.Options(index, **options))
    height, width = image.shape[:2]
    payload = container.Payload(3, model.weights_id, index, width, height, False, 8 * image.itemsize,
                                coded.integers_crc, coded.streams, parameters=coded.parameters)  # fmt: skip
    return container.unpack(container.pack(payload)), coded


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 15), (64, 64), (130, 97)])
def test_round_trip_of_odd_sizes(model, size):
    image = crop(*size)
    payload, coded = encoded(model, image, 200)
    decoded = pln.decode(model, payload)
    assert decoded.shape == image.shape and psnr_db(image, decoded) > 25
    assert abs(8 * len(container.pack(payload)) - coded.estimated_bits) < 0.005 * coded.estimated_bits + 40 * 8


def test_more_rate_more_quality_more_effort_less_distortion(model):
    image = crop()
    points = []
    for index in (0, 90, 180, 255):
        payload, _ = encoded(model, image, index)
        points.append((len(container.pack(payload)), psnr_db(image, pln.decode(model, payload))))
    assert points == sorted(points) and points[-1][1] > points[0][1] + 8
    # Indices of another length share bits out in another way, so compare distortion and bits together.
    costs = []
    for effort in (0, 5, 8):
        payload, _ = encoded(model, image, 128, effort=effort)
        error = np.square((pln.decode(model, payload).astype(float) - image) / 255).sum()
        costs.append(error / 0.002 + lambda_of_index(128) * 8 * len(container.pack(payload)))
    assert costs[2] < costs[0] and costs[1] < costs[0]


@pytest.mark.parametrize(
    "options",
    [
        {"select": "sample", "kappa": 10},
        {"sampler": "greedy", "kappa": 10},
        {"sampler": "greedy", "kappa": 8, "shards": 5},
        {"sampler": "greedy", "kappa": 10, "shards": 3, "beams": 4},
        {"sampler": "importance", "kappa": 10},
        {"sampler": "rejection", "kappa": 10},
    ],
    ids=str,
)
def test_every_sampler_is_decoded(model, options):
    image = crop(64, 64)
    payload, coded = encoded(model, image, 100, **options)
    assert psnr_db(image, pln.decode(model, payload)) > 24
    assert abs(8 * len(container.pack(payload)) - coded.estimated_bits) < 0.005 * coded.estimated_bits + 40 * 8
    assert encoded(model, image, 100, **options)[0] == payload


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampler": "guess"}, "sampler"),
        ({"kappa": 9}, "kappa"),
        ({"select": "worst"}, "select"),
        ({"shards": 9}, "shards"),
        ({"beams": 1000}, "beams"),
        ({"effort": 10}, "effort"),
        ({"effort": -2}, "effort"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        pln.Options(0, **options)


def test_effort_is_kappa():
    assert pln.Options(0).settled() == pln.Options(0, effort=5).settled() == ("blocks", 15, 1, 1, "best")
    kappas = [pln.Options(0, effort=e).settled()[1] for e in range(10)]
    assert kappas == sorted(set(kappas)) and (kappas[0], kappas[9]) == (10, 20)
    assert pln.Options(0, kappa=12, select="sample").settled() == ("blocks", 12, 1, 1, "sample")
    assert pln.Options(0, sampler="greedy", shards=3).settled() == ("greedy", 12, 3, 16, "best")
    assert pln.Options(0, sampler="rejection").settled() == ("rejection", 14, 1, 1, "sample")


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "greedy", "kappa": 18},
        {"shards": 2},
        {"sampler": "blocks", "beams": 4},
        {"sampler": "importance", "shards": 2},
        {"sampler": "rejection", "select": "best"},
        {"sampler": "greedy", "effort": 3},
        {"kappa": 12, "effort": 3},
    ],
    ids=str,
)
def test_options_without_effect_are_refused(options):
    with pytest.raises(OptionError, match="go(es)? with"):
        pln.Options(0, **options)


@pytest.mark.parametrize("tolerant", [False, True])
def test_every_layout_with_indices_of_its_length_decodes_or_is_refused(model, tolerant):
    payload, _ = encoded(model, crop(64, 64), 100, kappa=12)
    rng = np.random.Generator(np.random.Philox(key=[7, 0]))
    decoded = refused = 0
    for sampler, kappa, shards in product(range(5), range(22), range(10)):
        hurt = replace(payload, parameters=bytes((sampler, kappa, shards)))
        try:
            layout = pln_wire.unpack_parameters(hurt)
        except FormatError:
            refused += 1
            continue
        shape, z2_shape = pln.latent_shapes(64, 64)
        cells = z2_shape[0] * z2_shape[1]
        head = len(model.blocks_of_z2(100, cells, kappa).counts) * kappa
        head = -(-head // 8) + pln_parity.count(-(-head // 8))
        data = rng.bytes(head)
        z2 = pln_integers.decode_integers(model, replace(hurt, streams=(payload.streams[0], data)), shape, True)
        due = len(pln.samplers.plan(layout, model.classes.bits[z2.rows.ravel()]).counts) * shards
        hurt = replace(hurt, streams=(payload.streams[0], data + rng.bytes(-(-due * kappa // 8))))
        try:
            assert pln.decode(model, hurt, ignore_checksum=tolerant).shape == (64, 64, 3)
        except (FormatError, DriftError):
            pass
        decoded += 1
    assert decoded > 40 and refused > 900


def test_candidates_in_chunks_are_the_same(model, monkeypatch):
    image = crop(64, 64)
    whole, _ = encoded(model, image, 100, kappa=12)
    monkeypatch.setattr(pln.coded_sampling, "CHUNK_BITS", 9)
    pln.coded_sampling.codebook.cache_clear()
    try:
        assert encoded(model, image, 100, kappa=12)[0] == whole
        drawn = encoded(model, image, 100, kappa=12, select="sample")[0]
    finally:
        monkeypatch.undo()
        pln.coded_sampling.codebook.cache_clear()
    assert encoded(model, image, 100, kappa=12, select="sample")[0] == drawn


def test_report_of_each_level(model):
    payload, coded = encoded(model, crop(), 128)
    second, first = coded.details["levels"]
    assert (second["level"], first["level"]) == (2, 1)
    for level in (first, second):
        expected = level["file_bits"] / (level["kl_bits"] + level["jump_bits"])
        assert level["ratio"] == pytest.approx(expected, rel=1e-3)
        assert 0.8 < level["rho"] < 2 and 0 < level["coded_dimensions"] <= level["dimensions"]
        assert 0 < level["active_units"] <= 192
    spent = first["file_bits"] + second["file_bits"]
    assert spent == pytest.approx(coded.estimated_bits - 8 * len(payload.parameters), abs=1)
    assert first["dimensions"] == 192 * 6 * 8 and second["dimensions"] == 96 * 2 * 2


def test_dimensions_without_information_cost_nothing(model):
    flat = np.full((128, 128, 3), 90, np.uint8)
    payload, coded = encoded(model, flat, 60)
    assert coded.details["levels"][1]["coded_dimensions"] < 0.05 * coded.details["levels"][1]["dimensions"]
    assert len(container.pack(payload)) < 250


def test_extreme_latents_jump(model):
    found = pln.analyse(model, crop(64, 64))
    latents = pln.Latents(found.y.clone(), found.z.clone())
    latents.y[3, 1, 2] = 5e4
    latents.z[1, 0, 0] = -5e4
    coded = pln.code(model, latents, pln.Options(128))
    payload = container.Payload(3, b"abcd", 128, 64, 64, False, 8, coded.integers_crc, coded.streams,
                                parameters=coded.parameters)  # fmt: skip
    plain = pln.code(model, found, pln.Options(128)).details["levels"]
    only_y = pln.code(model, pln.Latents(latents.y, found.z), pln.Options(128)).details["levels"]
    # An outlier costs a jump, not the report's sense.
    for level, expected in ((coded.details["levels"][0], plain[0]), (only_y[1], plain[1])):
        assert level["kl_bits"] == pytest.approx(expected["kl_bits"], rel=0.01)
        assert level["rho"] == pytest.approx(expected["rho"], rel=0.1)
        assert 0 < level["file_bits"] - expected["file_bits"] < 64
        assert 0 < level["jump_bits"] - expected["jump_bits"] < 64
    integers = pln_integers.decode_integers(model, payload, (4, 4))
    sigma = model.network.at_rate(torch.tensor([128 / 255]))["z1_log_sigma"].exp()[0, 3].item()
    assert (integers.means + integers.values)[3, 1, 2] / 256 * sigma == pytest.approx(5e4, rel=0.01)


def test_threads_do_not_change_a_bit(model):
    image = crop(200, 300)
    payloads, decoded = [], []
    for count in (1, 2):
        with threads(count):
            payloads.append(encoded(model, image)[0])
    for payload in payloads:
        for count in (1, 2):
            with threads(count):
                decoded.append(pln.decode(model, payload).astype(int))
                shape = pln.latent_shapes(300, 200)[0]
                assert pln_integers.decode_integers(model, payload, shape).crc() == payload.integers_crc
    assert np.abs(decoded[0] - decoded[1]).max() <= 1 and np.abs(decoded[2] - decoded[3]).max() <= 1


def test_large_pictures_are_sampled_in_bands(model, monkeypatch):
    image = crop(200, 150)
    whole = encoded(model, image)[0]
    expected = pln.decode(model, whole).astype(int)
    monkeypatch.setattr(pln_integers, "MOST_DIMENSIONS", 192 * 10 * 4)
    parts, _ = encoded(model, image)
    assert parts.streams != whole.streams
    assert abs(len(parts.streams[1]) - len(whole.streams[1])) < 0.02 * len(whole.streams[1]) + 8
    assert abs(psnr_db(image, pln.decode(model, parts)) - psnr_db(image, expected.astype(np.uint8))) < 0.2


def flipped(payload: container.Payload, flips: int, seed: int, first: int = 0, last: int | None = None):
    data = bytearray(payload.streams[1])
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    for bit in rng.choice(np.arange(8 * first, 8 * len(data) if last is None else 8 * last), flips, replace=False):
        data[bit // 8] ^= 1 << (bit % 8)
    return replace(payload, streams=(payload.streams[0], bytes(data)))


def test_damaged_indices_hurt_softly_when_the_checksum_is_ignored(model):
    image = crop(256, 256)
    payload, _ = encoded(model, image, 160)
    clean = psnr_db(image, pln.decode(model, payload))
    damaged = [psnr_db(image, pln.decode(model, flipped(payload, 20, seed), ignore_checksum=True)) for seed in range(8)]
    assert np.median(damaged) > clean - 3 and min(damaged) > clean - 6
    with pytest.raises(DriftError, match="CRC|decode"):
        pln.decode(model, flipped(payload, 20, 0))


def test_damage_of_level_two_is_put_right(model):
    payload, _ = encoded(model, crop(256, 256), 160)
    plan = model.blocks_of_z2(160, 16, 14)
    length = -(-len(plan.counts) * 14 // 8)
    for seed in range(5):
        hurt = flipped(payload, pln_parity.ERRORS // 2, seed, 0, length + pln_parity.count(length))
        assert np.array_equal(pln.decode(model, hurt, ignore_checksum=True), pln.decode(model, payload))
    ruined = flipped(payload, 8 * length // 3, 1, 0, length)
    assert pln.decode(model, ruined, ignore_checksum=True).shape == (256, 256, 3)


def test_what_is_protected_is_refused_when_damaged(model):
    payload, _ = encoded(model, crop(64, 64))
    data = container.pack(replace(payload, has_header_crc=True))
    spared = data.index(payload.streams[1])
    for position in (*range(spared), *range(spared + len(payload.streams[1]), len(data) - 4)):
        hurt = bytearray(data)
        hurt[position] ^= 1 << position % 8
        with pytest.raises((FormatError, VersionError)):
            container.unpack(bytes(hurt), ignore_checksum=True)
    for position in range(spared, spared + len(payload.streams[1])):
        hurt = bytearray(data)
        hurt[position] ^= 4
        with pytest.raises(FormatError, match="checksum"):
            container.unpack(bytes(hurt))
        left = container.unpack(bytes(hurt), ignore_checksum=True)
        assert replace(left, streams=payload.streams, has_header_crc=False) == payload
        assert pln.decode(model, left, ignore_checksum=True).shape == (64, 64, 3)


def test_files_have_a_header_crc_and_decode_damaged():
    data = codec.encode(crop(), codec="pln")
    assert container.unpack(data).has_header_crc
    hurt = bytearray(data)
    hurt[data.index(container.unpack(data).streams[1]) + 300] ^= 255
    with pytest.raises(FormatError, match="checksum"):
        codec.decode_picture(bytes(hurt))
    shown = codec.decode_picture(bytes(hurt), ignore_checksum=True)
    assert "damaged" in shown.notes[0] and psnr_db(crop(), shown.pixels) > 25
    assert codec.decode_picture(data, ignore_checksum=True).notes == ()
    other = bytearray(codec.encode(crop()))
    other[-20] ^= 1
    with pytest.raises(FormatError, match="no header CRC"):
        codec.decode_picture(bytes(other), ignore_checksum=True)


def test_sections_of_another_codec_are_refused(model):
    payload, _ = encoded(model, crop(64, 64))
    for streams, parameters in (
        (payload.streams[:1], payload.parameters),
        (payload.streams, None),
        ((*payload.streams, b""), payload.parameters),
        (payload.streams, b""),
    ):
        with pytest.raises(FormatError, match="sections|parameters"):
            pln.decode(model, replace(payload, streams=streams, parameters=parameters))


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_truncated_and_padded_indices_are_refused(model, cut):
    payload, _ = encoded(model, crop())
    for stream in (payload.streams[1][:-cut], payload.streams[1] + bytes(cut)):
        with pytest.raises((DriftError, FormatError)):
            pln.decode(model, replace(payload, streams=(payload.streams[0], stream)))


def test_a_picture_too_large_for_its_bytes_is_refused_before_it_is_made(model):
    payload, _ = encoded(model, crop(64, 64))
    with pytest.raises(FormatError, match="cannot hold"):
        pln.decode(model, replace(payload, width=16000, height=16000))


def test_weights_of_another_codec_are_refused(stored):
    with pytest.raises(WeightsError, match="pln"):
        pln.Model(weights.load("hyperprior"))
    with pytest.raises(WeightsError, match="missing|pln"):
        pln.Model(replace(stored, tensors={k: v for k, v in stored.tensors.items() if k != "rates.z2_bits"}))
    for name in ("rates.z2_mean", "rows.bits", "rows.step", "rows.first_place", "rows.amplitudes.2"):
        with pytest.raises(WeightsError, match=name.replace(".", r"\.") + r"|pln"):
            pln.Model(replace(stored, tensors=stored.tensors | {name: stored.tensors[name][:0]}))
    with pytest.raises(WeightsError, match="keys"):
        pln.Model(replace(stored, config=stored.config | {"more": 1}))


def test_jump_tables_are_fitted_to_pictures(model):
    latents = [pln.analyse(model, crop(256, 256)), pln.analyse(model, crop(128, 256))]
    rows, of_class = export_pln.fitted_jump_rows(model, latents)
    assert rows.shape == (256, 288) and of_class.shape == (export_pln.ROWS,)
    assert of_class[0] > of_class[40]  # dimensions without information hardly jump
    assert rows[255].mean() < rows[0].mean()  # more dimensions jump where more are coded


def test_shifted_rates_are_those_of_the_next_positions():
    network = start_pln.from_hyperprior(weights.load("hyperprior"))
    at = torch.tensor([0.125, 0.5, 0.875])
    before = {k: v.detach() for k, v in network.at_rate(at + 0.125).items()}
    export_pln.shift_rates(network, 0.125)
    assert all(torch.allclose(v, before[k], atol=1e-5) for k, v in network.at_rate(at).items())
    assert network.at_rate(torch.tensor([1.0]))["z1_log_sigma"].mean() < before["z1_log_sigma"][2].mean()


def test_predicted_scales_are_calibrated_on_pictures(model):
    network = start_pln.from_hyperprior(weights.load("hyperprior"))
    before = network.scale_offset.clone()
    export_pln.calibrate(network, model, [pln.analyse(model, crop(256, 256))] * 2)
    assert 0.01 < (network.scale_offset - before).abs().mean() <= 0.3


def test_scales_grow_where_evidence_is_larger_than_predicted(model):
    shifts = []
    for factor in (0.7, 1.4):
        network = start_pln.from_hyperprior(weights.load("hyperprior"))
        before = network.scale_offset.clone()
        found = pln.analyse(model, crop(256, 256))
        export_pln.calibrate(network, model, [pln.Latents(found.y * factor, found.z)] * 2)
        shifts.append((network.scale_offset - before).mean().item())
    assert shifts[0] < 0 < shifts[1]


@pytest.mark.parametrize("index", [60, 200])
def test_posteriors_have_the_information_that_was_allocated(model, monkeypatch, index):
    """The noise of the evidence in units of the prior, as the sampler gets it, against the tables of bits."""
    asked = {}
    real_1, real_2 = pln.samplers.choose, pln.coded_sampling.choose

    def level_1(layout, classes, plan, rows, target, noise, *rest):
        asked[1] = (classes.bits[rows] / export_pln.ALLOCATED, noise)
        return real_1(layout, classes, plan, rows, target, noise, *rest)

    def level_2(plan, target, noise, *rest):
        asked.setdefault(2, (np.repeat(model.rates.z2_bits[index], len(noise) // 96), noise))
        return real_2(plan, target, noise, *rest)

    monkeypatch.setattr(pln.samplers, "choose", level_1)
    monkeypatch.setattr(pln.coded_sampling, "choose", level_2)
    pln.code(model, pln.analyse(model, crop(64, 64)), pln.Options(index, verify=False))
    for bits, noise in asked.values():
        coded = bits > 100
        assert coded.sum() > 10
        assert 128 * np.log2(1 + noise[coded] ** -2.0) == pytest.approx(bits[coded], rel=0.06, abs=8)


def test_the_report_of_level_two_is_the_information_of_its_prior(model):
    rng = np.random.Generator(np.random.Philox(key=[11, 0]))
    rate = model.network.at_rate(torch.tensor([160 / 255]))
    mean, std, sigma = (rate[k][0].double().numpy() for k in ("z2_mean", "z2_log_std", "z2_log_sigma"))
    z = mean + np.hypot(np.exp(std), np.exp(sigma)) * rng.standard_normal((96, 8, 8))
    found = pln.analyse(model, crop(512, 512))
    coded = pln.code(model, pln.Latents(found.y, torch.from_numpy(z).float()), pln.Options(160, verify=False))
    expected = model.rates.z2_bits[160].sum() / 256 * 64
    assert coded.details["levels"][0]["kl_bits"] == pytest.approx(expected, rel=0.08)


def test_fixed_point_follows_the_network(model, stored):
    network = start_pln.from_hyperprior(weights.load("hyperprior")).eval()
    latents = pln.analyse(model, crop(128, 128))
    for index in (0, 128, 255):
        means, rows = model.prior_of_z1(np.rint(latents.z.numpy() * 4096).astype(np.int64), index, (8, 8))
        with torch.no_grad():
            rate = network.at_rate(torch.tensor([index / 255]))
            mean, nats = network.prior_of_z1(latents.z[None], rate)
        assert np.abs(means / 256 * rate["z1_log_sigma"].exp()[0].numpy() - mean[0].numpy()).max() < 0.02
        expected = nats[0].numpy() / np.log(2)
        known = np.log2(1 + np.square(model.row_scale[rows] / 4096)) / 2
        assert np.abs(known - expected)[expected > 0.3].max() < 0.08
        assert known[expected < 0.08].max(initial=0) == 0


def test_integers_of_a_class_belong_together(model):
    expected = np.log2(1 + np.square(model.row_scale / 4096)) / 2
    assert model.classes.bits / 256 == pytest.approx(export_pln.ALLOCATED * expected, rel=0.01, abs=0.003)
    assert model.classes.bits[0] == model.row_scale[0] == 0
    assert (np.diff(model.classes.bits) > 0).all() and model.classes.bits.max() < 12 * 256


@given(st.lists(st.integers(0, 2**14 - 1), max_size=40))
def test_indices_are_packed_bit_by_bit(indices):
    packed = pln_wire.pack_indices(np.array(indices, np.int64), 14)
    assert len(packed) == -(-14 * len(indices) // 8)
    assert pln_wire.unpack_indices(packed, 14, len(indices)).tolist() == indices
    with pytest.raises(FormatError):
        pln_wire.unpack_indices(packed + b"\0", 14, len(indices))


def test_parameters_are_three_bytes():
    assert pln_wire.pack_parameters(Layout("greedy", 12, 3)) == bytes((1, 12, 3))


@given(st.binary(max_size=600), st.integers(0, pln_parity.ERRORS), st.integers(0, 2**32 - 1))
def test_parity_puts_wrong_bytes_right(data, errors, seed):
    check = pln_parity.parity(data)
    assert len(check) == pln_parity.count(len(data))
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    both = bytearray(data + check)
    for position in rng.choice(len(both), min(errors, len(both)), replace=False):
        both[position] ^= int(rng.integers(1, 256))
    assert pln_parity.corrected(bytes(both[: len(data)]), bytes(both[len(data) :])) == (data, True)


def test_parity_survives_a_burst_anywhere():
    data = bytes(range(256)) * 3
    check = pln_parity.parity(data)
    words = len(check) // pln_parity.PARITY
    both = data + check
    for start in range(0, len(both) - 8 * words, 5):
        hurt = bytearray(both)
        for position in range(start, start + 8 * words - words):
            hurt[position] ^= 255
        assert pln_parity.corrected(bytes(hurt[: len(data)]), bytes(hurt[len(data) :])) == (data, True)


def test_parity_knows_when_there_is_too_much():
    data = bytes(range(200))
    check = pln_parity.parity(data)
    hurt = bytes(b ^ 255 if i % 3 == 0 else b for i, b in enumerate(data))
    assert pln_parity.corrected(hurt, check)[1] is False
