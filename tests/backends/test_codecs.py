"""What every codec of the table must do; a new row gets these tests for nothing."""

import copy
import inspect
import zlib
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
import pytest
import torch
from skimage import data
from torch_threads import threads

from latcodec import api, backends, container
from latcodec.backends.hyperprior.network import Config, Hyperprior
from latcodec.backends.loading import load_model
from latcodec.entropy.integer_net import IntegerNet
from latcodec.entropy.tables import Tables
from latcodec.errors import DriftError, FormatError, OptionError, VersionError, WeightsError
from latcodec.metrics import psnr_db
from latcodec.nn import tiling
from latcodec.nn.layers import conv, deconv
from latcodec.nn.symbol_costs import SCALES_PER_NAT
from latcodec.rates import index_of_lambda
from latcodec.settings import read_options, split_codec

pytestmark = pytest.mark.usefixtures("one_thread")

FIVE_LAMBDAS = (20, 5.3, 1.4, 0.38, 0.1)


@pytest.fixture(params=backends.BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


@pytest.fixture
def module(backend):
    return import_module(backend.module)


@pytest.fixture
def model(backend):
    return load_model(backend, None, None, "cpu")


def crop(name: str = "astronaut", height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [height, width, 3] out of the middle of a photograph: the astronaut's face, the cat's."""
    top, left = {"astronaut": (60, 180), "chelsea": (80, 120)}[name]
    return np.ascontiguousarray(getattr(data, name)()[top : top + height, left : left + width])


def gray_crop(height: int = 64, width: int = 96) -> np.ndarray:
    return np.repeat(crop(height=height, width=width)[:, :, 1:2], 3, 2)


def encoded(module, model, image: np.ndarray, lmbda: float = 1.0, gray: bool = False, **options):
    """(payload, what the encoder said); the payload has been through the file's bytes."""
    index = index_of_lambda(lmbda)
    coded = module.encode(model, image, module.Options(index, **options))
    height, width = image.shape[:2]
    wire_id = next(b.wire_id for b in backends.BACKENDS if b.module == module.__name__)
    payload = container.Payload(
        wire_id, model.weights_id, index, width, height, gray, 8 * image.itemsize, coded.integers_crc, coded.streams,
        parameters=coded.parameters,
    )  # fmt: skip
    return container.unpack(container.pack(payload)), coded


def bytes_of(payload: container.Payload) -> int:
    return len(container.pack(payload))


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_rate_and_quality_rise_together(module, model, name):
    image = crop(name)
    payloads = [encoded(module, model, image, lmbda)[0] for lmbda in FIVE_LAMBDAS]
    sizes = [bytes_of(p) for p in payloads]
    quality = [psnr_db(image, module.decode(model, p)) for p in payloads]
    assert sizes == sorted(set(sizes)) and quality == sorted(set(quality))
    assert sizes[-1] > 4 * sizes[0]
    assert quality[-1] > quality[0] + 8
    assert quality[0] > 24 and quality[-1] > 34
    assert 8 * sizes[0] < 0.5 * 64 * 96 and 8 * sizes[-1] < 4 * 64 * 96


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (17, 31), (65, 15), (16, 16), (64, 64)])
def test_odd_sizes(module, model, size):
    image = crop(height=size[0], width=size[1])
    payload, _ = encoded(module, model, image, 0.2)
    decoded = module.decode(model, payload)
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert psnr_db(image, decoded) > 25
    assert bytes_of(payload) < 32 + image.size + 200


def test_padding_costs_no_visible_bits(module, model):
    whole = bytes_of(encoded(module, model, crop(height=64, width=64))[0])
    padded = bytes_of(encoded(module, model, crop(height=49, width=49))[0])
    assert padded < 1.05 * whole


@pytest.mark.parametrize("depth", [8, 16])
def test_gray_stays_exactly_gray(module, model, depth):
    image = gray_crop() if depth == 8 else gray_crop().astype(np.uint16) * 257
    decoded = module.decode(model, encoded(module, model, image, 0.3, gray=True)[0])
    assert np.array_equal(decoded[..., 0], decoded[..., 1]) and np.array_equal(decoded[..., 0], decoded[..., 2])
    assert psnr_db(image, decoded, 2**depth - 1) > 31


def test_sixteen_bits(module, model):
    image = crop().astype(np.uint16) * 257
    payload, _ = encoded(module, model, image, 0.3)
    decoded = module.decode(model, payload)
    assert decoded.dtype == np.uint16 and decoded.shape == image.shape
    assert psnr_db(image, decoded, 65535) > 31
    assert len(np.unique(decoded % 257)) > 100, "these are 8-bit values times 257"


def latents_of(module, model, image: np.ndarray, index: int = 100):
    """Latents at a rate index, if the codec's analysis knows it."""
    latents = module.analyse(model, image)
    return latents.at(index) if hasattr(latents, "at") else latents


def test_sixteen_bits_are_not_cut_before_the_network(module, model):
    image = crop().astype(np.uint16) * 257
    other = np.minimum(image, 65279) + np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint16)
    assert not torch.equal(latents_of(module, model, image).y, latents_of(module, model, other).y)


@pytest.mark.parametrize("value", [0, 255])
def test_flat_pictures(backend, module, model, value):
    image = np.full((48, 48, 3), value, np.uint8)
    lossy = {"lossless": False} if hasattr(module, "without_loss") else {}
    payload, _ = encoded(module, model, image, **lossy)
    error = np.abs(module.decode(model, payload).astype(int) - value)
    assert error.mean() < 4 and error.max() < 30  # the transforms see zeros, a mid gray, beyond the border
    assert bytes_of(payload) < 150


def test_noise_is_no_trouble(module, model):
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    payload, coded = encoded(module, model, image, 0.1)
    assert psnr_db(image, module.decode(model, payload)) > 11  # 10.8 would be flat gray
    assert abs(8 * bytes_of(payload) - coded.estimated_bits) < 0.005 * coded.estimated_bits + 320


def test_same_picture_same_bytes(module, model):
    first, again = (container.pack(encoded(module, model, crop())[0]) for _ in range(2))
    assert first == again


def test_latents_coded_at_another_rate_before_change_nothing(module, model):
    latents = module.analyse(model, crop())
    module.code(model, latents, module.Options(250))
    coded = module.code(model, latents, module.Options(100))
    assert coded.streams == module.encode(model, crop(), module.Options(100)).streams


@pytest.mark.parametrize("lmbda", FIVE_LAMBDAS)
@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_rate_is_the_file(module, model, name, lmbda):
    payload, coded = encoded(module, model, crop(name), lmbda)
    assert abs(8 * bytes_of(payload) - coded.estimated_bits) < 0.005 * coded.estimated_bits + 320


def test_verify_decodes_and_no_verify_writes_the_same(module, model):
    verified = module.encode(model, crop(), module.Options(128, verify=True))
    plain = module.encode(model, crop(), module.Options(128, verify=False))
    assert verified.streams == plain.streams and verified.integers_crc == plain.integers_crc


# Drift: one file, many ways of computing.


@pytest.fixture
def file_of_one_thread(module, model):
    payload, coded = encoded(module, model, crop(height=70, width=90), 0.3)
    return payload, coded, module.decode(model, payload)


def assert_same_picture(decoded: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(decoded.astype(int) - expected.astype(int)).max() <= 1


def test_two_threads_decode_what_one_encoded(module, model, file_of_one_thread):
    payload, _, expected = file_of_one_thread
    with threads(2):
        assert_same_picture(module.decode(model, payload), expected)


def test_one_thread_decodes_what_two_encoded(module, model):
    with threads(2):
        payload, _ = encoded(module, model, crop(), 0.3)
        expected = module.decode(model, payload)
    assert_same_picture(module.decode(model, payload), expected)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # flags() of torch itself sets a switch for Intel's GPUs
def test_without_mkldnn(module, model, file_of_one_thread):
    payload, _, expected = file_of_one_thread
    with torch.backends.mkldnn.flags(enabled=False):
        assert_same_picture(module.decode(model, payload), expected)
        other, _ = encoded(module, model, crop(height=70, width=90), 0.3)
    module.decode(model, other)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_memory_formats(module, model, file_of_one_thread, memory_format):
    payload, _, expected = file_of_one_thread
    other = copy.copy(model)
    other.network = copy.deepcopy(model.network).to(memory_format=memory_format)
    assert_same_picture(module.decode(other, payload), expected)


def test_synthesis_in_bfloat16_is_no_drift(module, model, file_of_one_thread):
    payload, _, expected = file_of_one_thread
    other = copy.copy(model)
    other.autocast = True
    decoded = module.decode(other, payload)
    assert not np.array_equal(decoded, expected), "autocast did nothing"
    assert psnr_db(decoded, expected) > 40


@pytest.mark.gpu
def test_cuda_decodes_what_the_cpu_encoded_and_back(backend, module, model, file_of_one_thread):
    payload, _, expected = file_of_one_thread
    other = load_model(backend, None, None, "cuda")
    assert_same_picture(module.decode(other, payload), expected)
    theirs, _ = encoded(module, other, crop(), 0.3)
    assert_same_picture(module.decode(model, theirs), module.decode(other, theirs))


# Files that are not what the encoder wrote, their checksum repaired.


def test_every_truncated_stream_is_told(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32))
    expected = module.decode(model, payload)

    def decoded(number: int, stream: bytes) -> np.ndarray:
        streams = (*payload.streams[:number], stream, *payload.streams[number + 1 :])
        return module.decode(model, replace(payload, streams=streams))

    for number, stream in enumerate(payload.streams):
        survived = []
        for other in [stream[:length] for length in range(len(stream))] + [stream + b"\0" * 4]:
            # The range coder may read a last word of zeros, there or not, as what follows the end: nothing is lost.
            try:
                assert np.array_equal(decoded(number, other), expected)
                survived.append(len(other))
            except (DriftError, FormatError):
                pass
        assert set(survived) <= {len(stream) - 4, len(stream) + 4}
        for more in (b"\0", b"\0" * 8, b"\xff" * 8, stream):
            with pytest.raises((DriftError, FormatError)):
                decoded(number, stream + more)


def test_wrong_number_of_streams(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32))
    with pytest.raises(FormatError, match="streams"):
        module.decode(model, replace(payload, streams=payload.streams * 2))
    with pytest.raises(FormatError):
        module.decode(model, replace(payload, parameters=bytes(9)))


def test_another_rate_index_is_told(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32), 0.5)
    for index in {0, payload.rate_index - 1, payload.rate_index + 1, 255}:
        # Parameters may not fit another index.
        with pytest.raises(DriftError if payload.parameters is None else (DriftError, FormatError)):
            module.decode(model, replace(payload, rate_index=index))


def test_another_size_is_told(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32))
    for width, height in ((64, 32), (16, 32), (32, 100), (1, 1), (4000, 4000)):
        with pytest.raises((DriftError, FormatError)):
            module.decode(model, replace(payload, width=width, height=height))


def test_another_integers_crc_is_told(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32))
    with pytest.raises(DriftError, match="integers CRC"):
        module.decode(model, replace(payload, integers_crc=payload.integers_crc ^ 1))


def test_unknown_weights_are_told(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32))
    other = bytes(b ^ 0xFF for b in payload.weights_id)
    with pytest.raises(WeightsError, match=other.hex()):
        api.decode_picture(container.pack(replace(payload, weights_id=other)), device="cpu")


def test_unknown_wire_id_is_told(module, model):
    payload, _ = encoded(module, model, crop(height=32, width=32))
    with pytest.raises(VersionError, match="backend id: 250"):
        api.decode_picture(container.pack(replace(payload, backend_id=250)))


def _rates_changed(name):
    def change(model):
        table = getattr(model.rates, name).copy()
        table[:, 0] += 1
        if name not in ("z_mean", "z_row", "z2_mean", "z2_bits", "jump_row"):  # a unit is less than most roundings
            table += table // 50
        model.rates = replace(model.rates, **{name: table})

    return change


def _hyper_changed(model):
    first = model.hyper.layers[-1]
    bias = first.bias.clone()
    bias[0] += 2.0 ** (first.shift + 6)  # 2**6 steps of 2**-12 in the first mean
    model.hyper = IntegerNet([*model.hyper.layers[:-1], replace(first, bias=bias)])


def _tables_changed(model):
    weights = model.tables.weights.copy()
    for row in range(model.tables.num_tables):
        start = model.tables.offsets[row]
        centre = start + weights[start : model.tables.offsets[row + 1]].argmax()
        weights[centre] -= 2**12
        weights[start] += 2**12
    model.tables = Tables(weights, model.tables.offsets, model.tables.minimums)


def _row_scale_changed(model):
    model.row_scale = model.row_scale + 40


def _z_corrections_changed(model):
    first, *others = model.contexts["z_corrections"]
    layer = first.layers[-1]
    changed = IntegerNet([*first.layers[:-1], replace(layer, bias=layer.bias + 2.0 ** (layer.shift + 6))])
    model.contexts = model.contexts | {"z_corrections": [changed, *others]}


_NETWORK_AND_TABLES = {"hyper": _hyper_changed, "tables": _tables_changed}
_CHANGES = {name: _rates_changed(name) for name in ("z_mean", "mean_gain", "scale_offset")} | _NETWORK_AND_TABLES
_ROW_CHANGES = _CHANGES | {"z_row": _rates_changed("z_row")}
_PLN_CHANGES = {name: _rates_changed(name) for name in ("z2_mean", "z2_bits", "jump_row", "mean_gain", "scale_offset")}
_PLN_CHANGES |= _NETWORK_AND_TABLES | {"row_scale": _row_scale_changed}


def _context_changed(name):
    def change(model):
        values = getattr(model.contexts, name).copy()
        values[values > 0] += values[values > 0] // 20 + 1
        model.contexts = replace(model.contexts, **{name: values})

    return change


_NC_VAE_CHANGES = {name: _context_changed(name) for name in ("scale", "mean", "own_scale", "unit", "floor", "bounds")}
_NC_VAE_CHANGES |= {"tables": _tables_changed}
PERTURBED = {"hyperprior": _ROW_CHANGES, "vbq": _ROW_CHANGES, "pln": _PLN_CHANGES, "nc-vae": _NC_VAE_CHANGES}
_OF_CONTEXTS = ("context_gain", "z_gain", "z_scale_offset", "z_inverse_gain")
PERTURBED["hyperprior-context"] = _CHANGES | {name: _rates_changed(name) for name in _OF_CONTEXTS}
PERTURBED["hyperprior-context"] |= {"z_corrections": _z_corrections_changed}


def test_a_platform_that_computes_something_else_is_told(backend, module, model):
    payload, _ = encoded(module, model, crop(), 0.1)
    for name, change in PERTURBED[backend.name].items():
        other = copy.copy(model)
        change(other)
        with pytest.raises(DriftError):
            module.decode(other, payload)
            pytest.fail(f"{name} was changed and nobody noticed")
    module.decode(model, payload)


def test_verify_notices_a_decoder_that_differs(module, model, monkeypatch):
    right = module.decode_integers

    def wrong(*arguments):
        found = right(*arguments)
        array = found.values if hasattr(found, "values") else getattr(getattr(found, "y", found), "symbols", None)
        array = found[1] if array is None else array
        array.flat[0] += 1
        return found

    monkeypatch.setattr(module, "decode_integers", wrong)
    with pytest.raises(DriftError):
        module.encode(model, crop(height=32, width=32), module.Options(100))
    module.encode(model, crop(height=32, width=32), module.Options(100, verify=False))


def test_integers_are_those_of_always():
    """Frozen: a change of the integer path that keeps encoder and decoder in step still breaks every old file."""
    model = load_model(backends.by_name("hyperprior"), None, None, "cpu")
    rng = np.random.default_rng(5)
    for index in (0, 100, 255):
        symbols = rng.integers(-9, 10, (model.rates.z_mean.shape[1], 2, 3)).astype(np.int32)
        means, rows = model.prior_of_y(symbols, index, (7, 11))
        z = (symbols.astype(object) * 64) + model.rates.z_mean[index].astype(object)[:, None, None]
        fixed = (z * model.rates.z_inverse_gain[index].astype(object)[:, None, None] + 2**11) // 2**12
        out = model.hyper(fixed.astype(np.int64))[:, :7, :11].astype(object)
        half = len(out) // 2
        gain = model.rates.mean_gain[index].astype(object)[:, None, None]
        offset = model.rates.scale_offset[index].astype(object)[:, None, None]
        rows_per_nat = round(63 / np.log(256 / 0.08) * 4096)
        expected_rows = np.clip(((out[half:] + offset) * rows_per_nat + 2**23) // 2**24, 0, 63)
        assert np.array_equal(means, (out[:half] * gain + 2**21) // 2**22)
        assert np.array_equal(rows, expected_rows.ravel().astype(np.int64))


# Strips.


@pytest.fixture
def tall():
    picture = crop(height=288, width=48)
    return torch.from_numpy(np.vstack([picture, picture[::-1]])).permute(2, 0, 1)[None].float() / 255


def halo_of(model) -> int:
    """What the codec gives its tiles: those with residual blocks reach further than 2 latents."""
    return model.halo() if hasattr(model, "halo") else 2


def analysis_of(model):
    """Pictures to latents at one rate, where the codec's analysis knows it."""
    if "rate" not in inspect.signature(model.network.analysis).parameters:
        return model.network.analysis
    rate = model.at_rate(model.operating_point(100))
    return lambda x: model.network.analysis(x, rate)


def test_analysis_in_tiles_is_that_of_the_whole(model, tall, monkeypatch):
    analysis = analysis_of(model)
    with torch.inference_mode():
        whole = analysis(tall)
        monkeypatch.setattr(tiling, "TILE_LATENTS", 3)
        calls = []
        network = lambda part: calls.append(part.shape[2]) or analysis(part)  # noqa: E731
        parts = tiling.run_in_tiles(network, tall, 16, 1, halo_of(model))
    assert len(calls) > 1 and max(calls) <= 6 * halo_of(model) * 16 < tall.shape[2]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def synthesis_of(model):
    """Latents to pictures at one rate, where the codec's synthesis knows it."""
    if "rate" not in inspect.signature(model.network.synthesis).parameters:
        return model.network.synthesis
    rate = model.at_rate(model.operating_point(100))
    return lambda y: model.network.synthesis(y, rate)


def test_synthesis_in_tiles_is_that_of_the_whole(model, tall, monkeypatch):
    synthesis = synthesis_of(model)
    with torch.inference_mode():
        y = analysis_of(model)(tall)
        whole = synthesis(y)
        monkeypatch.setattr(tiling, "TILE_LATENTS", 3)
        calls = []
        network = lambda part: calls.append(part.shape[2]) or synthesis(part)  # noqa: E731
        parts = tiling.run_in_tiles(network, y, 1, 16, halo_of(model))
    assert len(calls) > 1 and max(calls) <= 6 * halo_of(model) < y.shape[2]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_a_smaller_halo_would_be_seen(model, tall, monkeypatch):
    with torch.inference_mode():
        y = analysis_of(model)(tall)
        monkeypatch.setattr(tiling, "TILE_LATENTS", 12)
        parts = tiling.run_in_tiles(synthesis_of(model), y, 1, 16, 1)
        assert (parts - synthesis_of(model)(y)).abs().max() > 1e-4


def test_strips_of_every_height(monkeypatch):
    torch.manual_seed(0)
    down, up = torch.nn.Sequential(conv(3, 4), conv(4, 4)), torch.nn.Sequential(deconv(4, 4), deconv(4, 3))
    with torch.inference_mode():
        for cells in range(1, 40):
            x = torch.rand(1, 3, 4 * cells, 8)
            monkeypatch.setattr(tiling, "TILE_LATENTS", 10**9)
            y = tiling.run_in_tiles(down, x, 4, 1, 3)
            whole = tiling.run_in_tiles(up, y, 1, 4, 3)
            monkeypatch.setattr(tiling, "TILE_LATENTS", 1)
            torch.testing.assert_close(tiling.run_in_tiles(down, x, 4, 1, 3), y, rtol=0, atol=1e-5)
            torch.testing.assert_close(tiling.run_in_tiles(up, y, 1, 4, 3), whole, rtol=0, atol=1e-5)


def test_a_picture_in_tiles_makes_the_same_file(module, model, monkeypatch):
    image = crop(height=240, width=48)
    whole, _ = encoded(module, model, image)
    expected = module.decode(model, whole)
    monkeypatch.setattr(tiling, "TILE_LATENTS", 3)
    assert_same_picture(module.decode(model, whole), expected)
    assert abs(bytes_of(encoded(module, model, image)[0]) - bytes_of(whole)) <= 8


def test_exported_integers_are_close_to_the_float_network(backend, module):
    if backend.name != "hyperprior":
        pytest.skip("export of the hyperprior")
    from latcodec.train.export.tables import logistic_tables
    from latcodec.weights import Weights

    torch.manual_seed(1)
    network = Hyperprior(Config(widths=(8, 8, 8), latent=12, hyper_width=16, hyper_latent=6, knots=3)).eval()
    with torch.no_grad():
        network.h_s[-1].bias.normal_()
        network.z_mean.normal_()
    tensors = module.export(network, logistic_tables(module.sigmas()))
    fingerprint = f"{zlib.crc32(b'x'):08x}" * 8
    model = module.Model(Weights("w", fingerprint, "hyperprior", module.stored_config(network), tensors))
    symbols = np.random.default_rng(0).integers(-4, 5, (6, 2, 2)).astype(np.int32)
    for index in (0, 77, 255):
        means, rows = model.prior_of_y(symbols, index, (8, 8))
        with torch.no_grad():
            rate = network.at_rate(torch.tensor([index / 255]))
            z_hat = torch.from_numpy(symbols)[None] + rate["z_mean"]
            m, log_scale = network.h_s(z_hat / rate["z_log_gain"].exp()).chunk(2, 1)
            mu = (m * rate["mean_log_gain"].exp())[0].numpy()
            log_sigma = (log_scale + rate["scale_offset"])[0].numpy()
        # z_mean is rounded to 1/64, and h_s and the gain pass that on.
        assert np.abs(means / 64 - mu).max() < 1 / 64 + 0.02 * float(rate["mean_log_gain"].exp().max())
        expected = np.clip((log_sigma - np.log(0.08)) * SCALES_PER_NAT, 0, 63)
        assert np.abs(rows.reshape(expected.shape) - expected).max() < 0.8


def test_the_table_is_sound():
    ids, names = [b.wire_id for b in backends.BACKENDS], [b.name for b in backends.BACKENDS]
    assert len(set(ids)) == len(ids) and len(set(names)) == len(names)
    assert all(1 <= i <= 255 for i in ids)
    assert (1, "hyperprior") in zip(ids, names, strict=True), "files out there name these numbers"


def test_a_name_carries_options():
    assert split_codec("vbq:quantizer=uniform, prior = hyper") == (
        "vbq",
        {"quantizer": "uniform", "prior": "hyper"},
    )
    assert split_codec("vbq") == ("vbq", {})


@pytest.mark.parametrize("name", ["vbq:", "vbq:quantizer", "vbq:=1", "vbq:a=,b=1"])
def test_a_name_with_broken_options(name):
    with pytest.raises(OptionError, match="key=value"):
        split_codec(name)


@dataclass(frozen=True)
class _Options:
    kappa: int = 14
    select: str = "best"
    share: float = 0.5
    fast: bool = False


def test_options_are_read_as_their_fields_types():
    given = {"kappa": "12", "select": "sample", "share": "1e-1", "fast": "yes"}
    assert read_options(_Options, given) == _Options(12, "sample", 0.1, True)


@pytest.mark.parametrize(
    "given, text", [({"kapa": "1"}, "kappa, select, share, fast"), ({"kappa": "x"}, "int"), ({"fast": "maybe"}, "bool"),
                    ({"verify": "0"}, "unknown")])  # fmt: skip
def test_wrong_options_are_told(given, text):
    with pytest.raises(OptionError, match=text):
        read_options(_Options, given)
