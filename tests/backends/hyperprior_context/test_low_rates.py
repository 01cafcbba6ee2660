"""Below rate index 0: integers against floats, files and what they say, and who has no such rates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from latcodec import api as codec
from latcodec import backends, container, rates
from latcodec.backends import loading
from latcodec.backends.common.distortion import rd_cost
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context.network import LATENT_FUNCTIONS, Config, ContextHyperprior
from latcodec.backends.hyperprior_context.wire import NEGATIVE_RATE_TAG
from latcodec.bench.contenders import LAMBDAS, Settings, learned
from latcodec.container import Payload
from latcodec.errors import FormatError, OptionError, WeightsError
from latcodec.nn.layers import interpolate_knots
from latcodec.rates import LOWEST_INDEX
from latcodec.train.export.tables import logistic_tables
from latcodec.train.init import low_rates as start_low
from latcodec.train.init.klt import start_from_klt
from latcodec.train.settings import TrainSettings
from latcodec.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = Config(widths=(8, 12, 16), blocks=(0, 1, 1), latent=24, hyper_width=16, hyper_latent=8, context_width=16,
                knots=3, lowest_index=LOWEST_INDEX)  # fmt: skip


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:192, 100:292])


@pytest.fixture(scope="module")
def network(photograph) -> ContextHyperprior:
    torch.manual_seed(0)
    network = ContextHyperprior(NARROW)
    x = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    with torch.no_grad():
        network.h_s[-1].weight.mul_(10)
        for last in (*network.corrections, *network.z_corrections):
            last.weight.normal_(std=0.1)
    return network.eval()


def weights_of(network: ContextHyperprior) -> Weights:
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    return Weights(Path("test"), "0" * 64, "hyperprior-context", backend.stored_config(network), tensors)


@pytest.fixture(scope="module")
def model(network) -> backend.Model:
    return backend.Model(weights_of(network))


def test_the_first_knot_stands_below_zero():
    knots = torch.tensor([[8.0], [4.0], [2.0], [1.0]])
    found = interpolate_knots(knots, torch.tensor([-0.3, -0.2, -0.1, 0.0, 0.25, 0.5, 1.0, 1.5]), -0.2)
    assert found.flatten().tolist() == pytest.approx([8, 8, 6, 4, 3, 2, 1, 1])


def written(coded, width: int, height: int) -> Payload:
    return Payload(
        backend_id=5, weights_id=b"0000", rate_index=0, width=width, height=height, gray=False, depth=8,
        integers_crc=coded.integers_crc, streams=coded.streams, parameters=coded.parameters,
    )  # fmt: skip


@pytest.mark.parametrize("index", [LOWEST_INDEX, -34, -13, -1])
def test_integers_cost_and_show_what_the_floats_say(network, model, photograph, index):
    coded = backend.encode(model, photograph, backend.Options(index))
    assert coded.parameters == bytes((NEGATIVE_RATE_TAG, -index))
    x = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = network(x, torch.tensor([index / 255]), noise=False)
    expected = (out["y_bits"] + out["z_bits"]).item()
    assert abs(coded.estimated_bits - expected) < 0.01 * expected + 64
    decoded = backend.decode(model, written(coded, 192, 192))
    x_hat = (out["x_hat"][0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(decoded - x_hat).mean() < 1.5  # a symbol that fixed point decides shows more at coarse steps


def test_odd_sizes_and_parameters_that_say_nothing(model, photograph):
    coded = backend.encode(model, photograph[:150, :131], backend.Options(-20))
    file = written(coded, 131, 150)
    assert backend.decode(model, file).shape == (150, 131, 3)
    with pytest.raises(FormatError, match="rate index -36"):
        backend.decode(model, replace(file, parameters=bytes((NEGATIVE_RATE_TAG, 36))))
    with pytest.raises(FormatError, match="beside 7"):
        backend.decode(model, replace(file, rate_index=7))


def test_rates_from_zero_on_are_what_they_were(network, model, photograph):
    """One knot more in front changes nothing behind it: neither integers nor pictures."""
    old = ContextHyperprior(replace(NARROW, lowest_index=0)).eval()
    state = network.state_dict()
    cut = (*LATENT_FUNCTIONS, *(k for k in state if k.startswith("stage_")))
    old.load_state_dict({k: v[1:] if k in cut else v for k, v in state.items()})
    before = backend.Model(weights_of(old))
    for index in (0, 3, 128, 255):
        one, other = (backend.encode(m, photograph, backend.Options(index)) for m in (before, model))
        assert one.streams == other.streams and one.integers_crc == other.integers_crc
        assert other.parameters is None


def test_lower_rates_are_added_to_weights_that_have_none(photograph):
    """They say nothing new from index 0 on; below, files get smaller and worse, by less than their price."""
    torch.manual_seed(0)
    old = ContextHyperprior(replace(NARROW, lowest_index=0))
    x = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255
    old.start_from_latent_std(start_from_klt(old.g_a, old.g_s, x - 0.5))
    found = weights_of(old.eval())
    config, tensors = start_low.extended(found, (("lift", "0.02"),))
    assert config["lowest_index"] == LOWEST_INDEX and config["lift"] == 0.02
    extended = replace(found, config=config | {"lift": found.config["lift"]}, tensors=tensors)
    before, after = backend.Model(found), backend.Model(extended)
    latents = backend.analyse(before, photograph)
    for index in (0, 77, 255):
        one, other = (backend.code(m, latents, backend.Options(index)) for m in (before, after))
        assert one.streams == other.streams and one.integers_crc == other.integers_crc
    prices, sizes = [], []
    for index, shown_at in ((LOWEST_INDEX, LOWEST_INDEX), (-10, -10), (0, 0), (0, LOWEST_INDEX)):
        coded = backend.code(after, latents, backend.Options(index))
        decoded = backend.shown(after, coded, index, (192, 192), False, 8)
        prices.append(rd_cost(coded, decoded, photograph, shown_at))
        sizes.append(len(coded.streams[0]))
    assert sizes[0] < sizes[1] < sizes[2] and prices[0] < prices[3]
    with pytest.raises(OptionError, match="end at rate index 0"):
        start_low.extended(extended)
    with pytest.raises(OptionError, match="end at rate index 0"):
        start_low.extended(replace(found, backend="vbq"))


def test_weights_with_rows_of_other_rates_are_refused(network):
    found = weights_of(network)
    some = {k: v[-LOWEST_INDEX // 5 :] if k.startswith("rates.") else v for k, v in found.tensors.items()}
    for name in ("rates.mean_gain", "details.rates.bias"):
        of = weights_of(ContextHyperprior(replace(NARROW, details=64))) if name.startswith("details") else found
        with pytest.raises(WeightsError, match="20 rows, not those of indices from"):
            backend.Model(replace(of, tensors=of.tensors | {name: of.tensors[name][:20]}))
    with pytest.raises(WeightsError, match="52 rows, not those of indices from -35 on"):
        backend.Model(replace(found, tensors=some))


@pytest.mark.parametrize("lowest", [-34, 5, -40])
def test_lowest_indices_that_make_no_sense(lowest):
    with pytest.raises(ValueError, match="lowest_index"):
        replace(NARROW, lowest_index=lowest)


def test_lambda_goes_as_far_as_the_codec():
    assert rates.index_of_lambda(40, LOWEST_INDEX) == -33
    assert rates.index_of_lambda(41, LOWEST_INDEX) == -35
    assert rates.index_of_lambda(41.3864, LOWEST_INDEX) == LOWEST_INDEX  # as it is printed
    with pytest.raises(OptionError, match=r"outside 0.1 ... 41"):
        rates.index_of_lambda(41.4, LOWEST_INDEX)


def test_training_draws_the_rates_of_its_network():
    settings = TrainSettings("hyperprior-context", (), "")
    assert settings.t_range(LOWEST_INDEX) == (LOWEST_INDEX / 255, 1.0)
    low, high = replace(settings, lambda_range=(40.0, 20.0)).t_range(LOWEST_INDEX)
    assert low == pytest.approx(-33.36 / 255, abs=1e-4) and high == pytest.approx(0, abs=1e-9)
    with pytest.raises(OptionError, match="--lambda-range: 40"):
        replace(settings, lambda_range=(40.0, 20.0)).t_range()


def test_files_below_lambda_20(photograph):
    """Of the shipped weights: smaller than at lambda 20, as told; a size that only they reach is reached."""
    usual, small = (codec.encode(photograph, lmbda=value) for value in (20, 40))
    assert len(small) < 0.8 * len(usual)
    said = codec.info(small)
    assert (said["rate_index"], said["quality"]) == (-33, 0.0) and said["lambda"] == pytest.approx(39.7, abs=0.1)
    assert container.unpack(small).rate_index == 0
    difference = codec.decode(small).astype(int) - photograph
    assert np.square(difference).mean() < 255**2 * 10**-2.2
    searched = codec.encode_picture(
        codec_picture(photograph), codec.EncodeSettings(size_bytes=(len(small) + len(usual)) // 2)
    )
    assert LOWEST_INDEX < searched.rate_index < 0 and not searched.missed


def codec_picture(pixels: np.ndarray):
    from latcodec.images import Picture

    return Picture(pixels, False)


def test_other_codecs_end_at_lambda_20(photograph):
    with pytest.raises(OptionError, match=r"lambda 40 is outside 0.1 ... 20"):
        codec.encode(photograph, codec="hyperprior", lmbda=40)


def test_weights_that_end_at_lambda_20_say_so(photograph, network, monkeypatch):
    old = weights_of(ContextHyperprior(replace(NARROW, lowest_index=0)))
    monkeypatch.setattr(loading, "load_model", lambda *_: backend.Model(old))
    with pytest.raises(OptionError, match="with these weights it ends at 20"):
        codec.encode(photograph, lmbda=40)


def test_a_bench_begins_where_the_codec_does():
    settings = Settings()
    assert settings.values_of(learned("hyperprior-context", settings)) == (40.0, *LAMBDAS)
    assert settings.values_of(learned("hyperprior", settings)) == LAMBDAS
    assert len(Settings(rates=3).values_of(learned("hyperprior-context", settings))) == 3
    assert len(Settings(rates=8).values_of(learned("hyperprior-context", settings))) == 8
    with pytest.raises(OptionError, match="hyperprior: lambda 40"):
        learned("hyperprior", Settings(lambdas=(40.0, 1.0)))


def test_what_says_a_lower_rate_is_not_larger_than_what_it_saves():
    """Four bytes say it, which files of a dot, whole words, have or have not to spare: where not, a target is met
    without."""
    dearer = 0
    for colour in ((200, 40, 90), (90, 200, 210), (128, 60, 60), (10, 10, 10)):
        dot = np.full((1, 1, 3), colour, np.uint8)
        plain, lower = (len(codec.encode(dot, lmbda=lmbda)) for lmbda in (20, 41))
        dearer += lower > plain
        for given in ({"size_bytes": 1}, {"psnr": 1.0}, {"size_bytes": min(plain, lower)}):
            data = codec.encode_picture(codec_picture(dot), codec.EncodeSettings(**given)).data
            assert len(data) == min(plain, lower)
    assert dearer, "no colour shows it"


@pytest.mark.parametrize("written, said", [(0, (1, 255)), (0, (1, 36)), (7, (1, 5)), (0, (0, 5)), (0, (5,)), (0, ())])
def test_parameters_that_say_no_lower_rate(written, said):
    def rate_index(codec_name: str, header_index: int, parameters: bytes) -> int:
        payload = Payload(5, b"abcd", header_index, 4, 4, False, 8, 0, (b"",), parameters=parameters)
        return backends.by_name(codec_name).wire_format.rate_index_of(payload)

    assert rate_index("hyperprior-context", written, bytes(said)) == written
    assert rate_index("hyperprior", 0, bytes((1, 5))) == 0
    assert rate_index("hyperprior-context", 0, bytes((1, 35))) == -35


def test_a_drawing_without_loss_has_the_rate_its_file_says():
    page = np.full((64, 64, 3), 255, np.uint8)
    page[::9] = 0
    encoded = codec.encode_picture(codec_picture(page), codec.EncodeSettings(lmbda=41))
    said = codec.info(encoded.data)
    assert said["lossless"] and (encoded.rate_index, encoded.lmbda) == (said["rate_index"], said["lambda"]) == (0, 20)


def test_a_lambda_out_of_range_is_told_before_a_picture_is_read():
    with pytest.raises(OptionError, match="lambda 40 is outside"):
        codec.EncodeSettings("vbq", lmbda=40)
