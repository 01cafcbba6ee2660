"""At which rate latents are coded, and at which a search runs."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from residual_networks import NARROW, model_of, payload

from latcodec.backends.common import distortion, search
from latcodec.backends.common.distortion import rd_cost
from latcodec.backends.common.fixed_point import SCALE_ROWS
from latcodec.backends.common.mean_scale import sigmas
from latcodec.backends.common.sga import StochasticGumbelAnnealing
from latcodec.backends.hyperprior_context import (
    base_rate,
    mode_decision,
    picture,
    residual_encoder,
    residual_trial,
)
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context.content import is_screen_content
from latcodec.backends.hyperprior_context.model import OperatingPoint
from latcodec.backends.hyperprior_context.network import AfterSynthesis, ContextHyperprior
from latcodec.backends.hyperprior_context.residual_network import (
    GROUPS,
    groups_of,
)
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.errors import FormatError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_analysis_sees_the_picture_once_for_every_rate_that_is_asked_for(model, photograph, monkeypatch):
    seen, look = [], picture.analyse_at
    monkeypatch.setattr(picture, "analyse_at", lambda *given, **rate: seen.append(1) or look(*given, **rate))
    latents = backend.analyse(model, photograph)
    first, other = latents.at(0), latents.at(100)
    assert latents.at(0) is first and latents.at(100) is other and len(seen) == 2
    assert not torch.allclose(first.y, other.y, rtol=0.01)
    for index in (0, 30, 60):
        before = len(seen)
        coded = backend.code(model, latents, backend.Options(index))
        assert (coded.seconds["analysis"] > 0) == (len(seen) > before)
        again = backend.encode(model, photograph, backend.Options(index))
        assert coded.streams == again.streams
        assert 0 < again.seconds["analysis"] < sum(again.seconds.values())
    seen.clear()
    latents.at(100)
    assert seen, "latents of every rate were kept"


@pytest.mark.parametrize("index", [60, 130, 255])
@pytest.mark.parametrize("base", [0, 37, 60])
def test_details_beside_latents_of_any_lower_rate(model, photograph, index, base):
    image = np.ascontiguousarray(photograph[:70, :90])
    latents = backend.analyse(model, image)
    rate = model.operating_point(index, bytes((base,)))
    assert rate == OperatingPoint(index, base, True)
    coded = backend.encode_at(model, latents, backend.Options(index), 8.0, rate)
    assert coded.parameters == bytes((base,))
    decoded = backend.decode(model, payload(coded, index, image))
    assert np.array_equal(decoded, backend.shown(model, coded, index, (70, 90), False, 8))
    alone = backend.encode_at(model, latents, backend.Options(base), 8.0, OperatingPoint(base, base, False))
    assert np.array_equal(coded.symbols, alone.symbols) and alone.integers.residual_symbols.size == 0
    assert coded.integers.residual_symbols.size > 0


def test_rows_beside_other_latents_are_those_of_the_float_network(network, photograph, x, monkeypatch):
    monkeypatch.setattr(residual_encoder, "_best_shift", lambda *anything: 0)
    with torch.no_grad():
        for knots in (network.details.base_scale_offset, network.details.base_bias):
            knots.normal_(std=0.3)
    model, rate = model_of(network), OperatingPoint(220, 64, True)
    coded = backend.encode_at(model, backend.analyse(model, photograph), backend.Options(220), 8.0, rate)
    sent = len(coded.integers.residual_symbols)
    symbols = torch.from_numpy(np.pad(coded.integers.residual_symbols, ((0, 64 - sent), (0, 0), (0, 0))))[None].float()
    with torch.no_grad():
        functions = network.at_rate(torch.tensor([220 / 255]), torch.tensor([64 / 255]))
        y = network.analysis(x, functions)
        heard = iter(symbols.split(groups_of(64), 1))

        def quantise(residual: torch.Tensor) -> torch.Tensor:
            return next(heard)

        _, prices = network.transmit(
            y, network.hyper_analysis(y), functions, quantise, rdoq=True, after=AfterSynthesis(x)
        )
        for knots in (network.details.base_scale_offset, network.details.base_bias):
            knots.zero_()
    expected = torch.cat([sigma for _, _, sigma in prices[-GROUPS:]], 1)[:, :sent].ravel().numpy()
    found = sigmas()[coded.integers.residual_table_index - SCALE_ROWS]
    assert np.abs(np.log(found / expected)).max() < 0.15


def test_what_a_file_says_of_its_base_is_checked(network, model, photograph):
    for wrong in (bytes((101,)), b"", b"12", bytes(3)):
        with pytest.raises(FormatError, match="parameters"):
            model.operating_point(100, wrong)
    coded = backend.encode(model, photograph[:32, :32], backend.Options(50))
    file = payload(coded, 50, photograph[:32, :32])
    with pytest.raises(FormatError, match="parameters"):
        backend.decode(model, replace(file, parameters=b"3"))
    plain = ContextHyperprior(replace(NARROW, details=0))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("details.")})
    with pytest.raises(FormatError, match="parameters"):
        model_of(plain).operating_point(100, bytes((50,)))
    for index in (0, 99, 100, 255):
        assert model.parameters(model.operating_point(index)) is None
    assert model.operating_point(100) == OperatingPoint(100, 100, True) and model.operating_point(99) == OperatingPoint(
        99, 99, False
    )


@pytest.mark.parametrize("index", [130, 240])
def test_the_cheapest_base_is_taken(model, photograph, monkeypatch, index):
    image = np.ascontiguousarray(photograph[:64, :96])
    monkeypatch.setattr(base_rate, "candidate_bases", lambda *anything: [0, 60, 100, 120])
    found = backend.encode(model, image, backend.Options(index))
    least = rd_cost(found, backend.shown(model, found, index, (64, 96), False, 8), image, index)
    usual = base_rate.default_base(index, False, lambda: residual_trial.sharpness(model, image))
    for base in (usual, 0, 60, 100, 120):
        parameters = None if base is None else bytes((base,))
        rate = model.operating_point(index, parameters)
        coded = backend.encode_at(
            model, backend.analyse(model, image), backend.Options(index), model.step_error_bits(), rate
        )
        assert rd_cost(coded, backend.shown(model, coded, index, (64, 96), False, 8), image, index) >= least
        # The cheapest need not be the one that is coded first, nor the last.
        with monkeypatch.context() as patched:
            patched.setattr(
                distortion, "rd_cost", lambda coded, *_, wanted=coded.parameters: coded.parameters != wanted
            )
            taken = backend.encode(model, image, backend.Options(index))
        assert taken.parameters == coded.parameters and taken.streams == coded.streams


def test_small_files_are_searched_at_their_own_rate():
    assert [base_rate.search_base(110, bits) for bits in (15_999, 16_000)] == [110, 98]


def test_the_usual_base_of_photographs():
    indices = (0, 155, 169, 170, 190, 230, 231, 255)
    assert [base_rate.default_base(index, False, lambda: 1.0) for index in indices] == [None] * 3 + [110] * 5
    assert [base_rate.default_base(index, False, lambda: 0.0) for index in indices] == [None] * 8
    assert [base_rate.default_base(index, True, lambda: 0.0) for index in indices] == [None] * 3 + [140] * 5
    # The sharper, the sooner, and the lower.
    found = ((0.038, 170, 110), (0.0255, 188, 110), (0.0245, 189, 140), (0.01, 205, 140), (0.0026, 229, 140))
    for sharpness, from_index, base in (*found, (0.0024, 256, None)):
        some = [base_rate.default_base(index, False, lambda share=sharpness: share) for index in range(256)]
        assert some == [None] * from_index + [base] * (256 - from_index)


def test_sharp_photographs_have_latents_of_a_lower_rate(model, photograph, monkeypatch):
    from skimage.filters import gaussian

    tried, code = [], backend.encode_at
    monkeypatch.setattr(backend, "encode_at", lambda *given: tried.append(given[-1].base_rate_index) or code(*given))
    monkeypatch.setattr(base_rate, "TUNING", replace(TUNING, lowest_base=80))
    smooth = (255 * gaussian(photograph, 4, channel_axis=2)).astype(np.uint8)
    sharp = np.random.default_rng(0).integers(0, 256, photograph.shape).astype(np.uint8)
    monkeypatch.setattr(base_rate, "candidate_bases", lambda *anything: [])
    found = [backend.encode(model, image, backend.Options(190)) for image in (smooth, sharp)]
    assert tried == [100, 80] and [one.parameters for one in found] == [None, bytes((80,))]
    assert residual_trial.sharpness(model, smooth) < 0.001 < 0.3 < residual_trial.sharpness(model, sharp)
    # Of 16 bits, and smaller than what is padded to, it is that of 8 bits.
    small = sharp[:9, :21]
    assert residual_trial.sharpness(model, small.astype(np.uint16) * 257) == residual_trial.sharpness(model, small) > 0


def test_what_looks_drawn(photograph):
    page = np.full((64, 64, 3), 255, np.uint8)
    page[::9] = 0
    assert is_screen_content(page) and is_screen_content(page.astype(np.uint16)) and not is_screen_content(photograph)
    assert not is_screen_content(page[:, :1])


def test_other_bases_are_tried_where_a_picture_is_unlike_photographs():
    assert base_rate.candidate_bases(120, False, 1.0) == []
    assert base_rate.candidate_bases(120, False, 40.0) == [60, 100]
    assert base_rate.candidate_bases(80, True, 1.0) == [60] and base_rate.candidate_bases(20, True, 1.0) == []
    for effort, lower in ((1, []), (3, []), (4, [60, 100]), (9, [60, 100])):
        assert base_rate.candidate_bases(120, False, 1.0, effort) == lower
        assert base_rate.candidate_bases(169, False, 1.0, effort) == lower
        for index in (170, 190, 240):
            assert base_rate.candidate_bases(index, False, 1.0, effort) == [*lower, 140, None]
    assert base_rate.candidate_bases(190, True, 1.0) == [60, 100] and base_rate.candidate_bases(190, False, 1.0) == []


def test_a_search_is_at_a_lower_base_and_in_time(model, photograph, monkeypatch):
    image, seen = np.ascontiguousarray(photograph[:64, :96]), []

    def optimise(sga, latents, deadline, progress) -> tuple:
        seen.append((sga.rate_index, deadline - time.perf_counter()))
        return latents

    monkeypatch.setattr(StochasticGumbelAnnealing, "optimise", optimise)
    monkeypatch.setattr(base_rate, "candidate_bases", lambda *anything: [])
    monkeypatch.setattr(base_rate, "TUNING", replace(TUNING, search_min_bits=0))
    priced, plain_rd_cost = [], distortion.rd_cost
    monkeypatch.setattr(
        distortion, "rd_cost", lambda coded, *rest: priced.append(coded.parameters) or plain_rd_cost(coded, *rest)
    )
    coded = backend.encode(model, image, backend.Options(80, effort=3, max_seconds=5.0))
    assert seen[0][0] == 80 and 0 < seen[0][1] < 5.0 and "search" in coded.seconds
    lower = bytes((72,))
    assert priced == [lower, None, *[lower] * len(search.SEARCHED_MULTIPLIERS)]
    backend.encode(model, image, backend.Options(80, effort=3, max_seconds=1e-6))
    assert seen[1][1] < 0.1
    assert [base_rate.search_base(base, 20_000) for base in (0, 29, 30, 60, 110, 155)] == [0, 29, 27, 54, 98, 138]
    # Where the cheapest of plain files has latents of a lower rate, a search is at that of the file all the same.
    seen.clear()
    priced.clear()
    monkeypatch.setattr(base_rate, "default_base", lambda *anything: TUNING.lower_base)
    backend.encode(model, image, backend.Options(190, effort=3))
    assert priced == [None, bytes((140,)), *[None] * len(search.SEARCHED_MULTIPLIERS)] and seen[0][0] == 190
    priced.clear()
    for index, base in ((230, None), (231, bytes((140,)))):
        backend.encode(model, image, backend.Options(index, effort=3))
        assert priced == [*dict.fromkeys((base, bytes((140,)))), *[base] * len(search.SEARCHED_MULTIPLIERS)]
        priced.clear()
    monkeypatch.setattr(base_rate, "default_base", lambda *anything: 60)
    monkeypatch.setattr(mode_decision, "is_screen_content", lambda image: True)
    backend.encode(model, image, backend.Options(190, effort=3))
    assert set(priced[-len(search.SEARCHED_MULTIPLIERS) :]) == {bytes((60,))}
