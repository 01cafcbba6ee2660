"""The context model: what each step may see, integers against floats, both directions on odd sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.fixed_point import GAIN_BITS, MEAN_BITS, SCALE_ROWS, table_index_of_scale
from latcodec.backends.common.mean_scale import MeanScaleRelaxedRD
from latcodec.backends.common.pixels import latent_shapes
from latcodec.backends.common.rate_tables import interpolate_rates
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context import step_coder
from latcodec.backends.hyperprior_context.entropy_model import (
    CodedIntegers,
    CodedLatents,
    StepPrediction,
    run_entropy_model,
)
from latcodec.backends.hyperprior_context.export import MAX_EQUALISATION, equalised
from latcodec.backends.hyperprior_context.model import NUM_TABLES, Z_TABLE
from latcodec.backends.hyperprior_context.network import MAX_CONTEXT_GAIN, SIGMA_MIN, Config, ContextHyperprior, loss
from latcodec.backends.hyperprior_context.quadtree import (
    NUM_STEPS,
    coding_order,
    gather_valid,
    merge_quadtree,
    split_quadtree,
    valid_masks,
)
from latcodec.backends.hyperprior_context.reconstruction import (
    MAX_RECONSTRUCTION_OFFSET,
    fade,
    reconstruction_offset,
    with_reconstruction_offset,
)
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.container import Payload
from latcodec.entropy.integer_net import FRACTION_BITS, quantise
from latcodec.errors import DriftError, WeightsError
from latcodec.train.export.tables import logistic_tables
from latcodec.train.init.klt import start_from_klt
from latcodec.train.settings import choose_trained
from latcodec.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = Config(
    widths=(8, 12, 16), blocks=(0, 1, 1), latent=24, hyper_width=16, hyper_latent=8, context_width=16, knots=3
)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return data.astronaut()[:192, 100:292]


@pytest.fixture(scope="module")
def network(photograph) -> ContextHyperprior:
    torch.manual_seed(0)
    network = ContextHyperprior(NARROW)
    x = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    with torch.no_grad():
        network.h_s[-1].weight.mul_(10)  # a fresh network predicts next to nothing
        for last in (*network.corrections, *network.z_corrections):
            last.weight.normal_(std=0.1)
        for knots in (*network.stage_gain, *network.stage_bias):
            knots.normal_(std=0.05)
    return network.eval()


@pytest.fixture(scope="module")
def model(network) -> backend.Model:
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    return backend.Model(Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(network), tensors))


def payload(coded, index: int, width: int, height: int) -> Payload:
    return Payload(
        backend_id=1, weights_id=b"0000", rate_index=index, width=width, height=height, gray=False, depth=8,
        integers_crc=coded.integers_crc, streams=coded.streams,
    )  # fmt: skip


def test_the_order_codes_every_latent_once_and_diagonals_first():
    order = coding_order(8)
    assert sorted(order.tolist()) == list(range(32))
    for step in range(NUM_STEPS):
        part = order.view(NUM_STEPS, -1)[step]
        assert sorted((part // 4).tolist()) == list(range(8))  # every channel once
        assert set((part % 4).tolist()) == {0, 1, 2, 3}  # every position, in another quarter of the channels
    step_of = {int(place): number for number, part in enumerate(order.view(NUM_STEPS, -1)) for place in part}
    for channel in range(8):
        second = next(p for p in range(4) if step_of[4 * channel + p] == 1)
        first = next(p for p in range(4) if step_of[4 * channel + p] == 0)
        assert first ^ second == 3  # diagonal neighbours


@pytest.mark.parametrize("index", [0, 100, 255])
def test_integers_cost_what_the_floats_say(network, model, photograph, index):
    coded = backend.encode(model, photograph, backend.Options(index))
    x = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = network(x, torch.tensor([index / 255]), noise=False)
    expected = (out["y_bits"] + out["z_bits"]).item()
    assert abs(coded.estimated_bits - expected) < 0.01 * expected + 64
    decoded = backend.decode(model, payload(coded, index, 192, 192))
    x_hat = (out["x_hat"][0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(decoded - x_hat).mean() < 0.6


def test_symbols_are_rounded_by_price_as_in_training(network, photograph):
    """The encoder's are the float network's, but for those that fixed point decides; many are not the nearest."""
    dear = ContextHyperprior(replace(NARROW, step_error_bits=2.0)).eval()
    dear.load_state_dict(network.state_dict())
    model = backend.Model(
        Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(dear),
                backend.export(dear, logistic_tables(backend.sigmas())))
    )  # fmt: skip
    coded = backend.encode(model, photograph, backend.Options(100))
    latents = backend.analyse(model, photograph)
    of_floats = []
    with torch.no_grad():
        for by_price in (True, False):
            _, prices = dear.transmit(
                latents.y[None], latents.z[None], dear.at_rate(torch.tensor([100 / 255])), torch.round,
                rdoq=by_price,
            )  # fmt: skip
            of_floats.append(torch.cat([quantised for _, quantised, _ in prices[1:]], 1)[0].numpy())
    other, not_nearest = ((coded.symbols != symbols).mean() for symbols in of_floats)
    assert 5 * other < not_nearest and not_nearest > 0.05


def test_hyper_latents_are_rounded_by_price_as_in_training(network, photograph):
    """As above, of z, in whose steps an error may count otherwise."""
    found = {}
    for bits in (0.0, 1.0):
        priced = ContextHyperprior(replace(NARROW, step_error_bits=1.0, z_step_error_bits=bits)).eval()
        priced.load_state_dict(network.state_dict())
        with torch.no_grad():
            priced.z_log_gain.add_(3.0)  # or all of it is 0
        model = backend.Model(
            Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(priced),
                    backend.export(priced, logistic_tables(backend.sigmas())))
        )  # fmt: skip
        latents = backend.analyse(model, photograph)
        rate = model.operating_point(100)
        coded = backend.encode_at(model, latents, backend.Options(100), model.step_error_bits(), rate)
        with torch.no_grad():
            _, prices = priced.transmit(latents.y[None], latents.z[None], model.at_rate(rate), torch.round,
                                        rdoq=True)  # fmt: skip
        inside = np.concatenate(valid_masks(len(latents.z), latents.z.shape[1:]))
        of_floats = torch.cat(split_quadtree(prices[0][1], priced.z_order), 1)[0].numpy()[inside]
        found[bits] = z_symbols(coded)
        assert (found[bits] != of_floats).mean() < 0.02
    assert np.abs(found[1.0]).sum() < 0.95 * np.abs(found[0.0]).sum()
    assert (np.sign(found[1.0]) * np.sign(found[0.0]) >= 0).all()


def test_channels_that_contexts_would_hear_too_loudly_are_not_sent(network, photograph, monkeypatch):
    loud = ContextHyperprior(network.config)
    loud.load_state_dict(network.state_dict())
    with torch.no_grad():
        loud.context_log_gain[:, 3] = np.log(1.1 * TUNING.skip_context_gain)
        loud.y_log_gain[:, 3] += 3.0  # or it is 0 in any case
    model = backend.Model(
        Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(loud),
                backend.export(loud, logistic_tables(backend.sigmas())))
    )  # fmt: skip
    found = []
    for times in (1, 2):
        tuning = replace(TUNING, skip_context_gain=times * TUNING.skip_context_gain)
        monkeypatch.setattr(step_coder, "TUNING", tuning)
        symbols = backend.encode(model, photograph, backend.Options(100)).symbols
        found.append([symbols.reshape(NUM_STEPS, NARROW.latent, -1)[:, channel].any() for channel in (3, 4)])
    assert found == [[False, True], [True, True]]


def test_without_a_price_of_errors_symbols_are_the_nearest(network, photograph, monkeypatch):
    plain = ContextHyperprior(replace(NARROW, step_error_bits=0.0)).eval()
    plain.load_state_dict(network.state_dict())
    monkeypatch.setattr(pricing, "rdoq", lambda *given: pytest.fail("rounded by price"))
    model = backend.Model(
        Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(plain),
                backend.export(plain, logistic_tables(backend.sigmas())))
    )  # fmt: skip
    backend.encode(model, photograph, backend.Options(100))
    latents = backend.analyse(model, photograph)
    rate = plain.at_rate(torch.tensor([100 / 255]))
    with torch.no_grad():
        results = [
            plain.transmit(latents.y[None], latents.z[None], rate, torch.round, rdoq=by_price)[0]
            for by_price in (True, False)
        ]
    assert torch.equal(*results)


def test_symbols_of_size_one_are_lifted_where_they_are_rare():
    symbols = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0], requires_grad=True)
    shown = with_reconstruction_offset(symbols, torch.full((5,), 0.5), torch.tensor(0.03))
    assert shown.tolist() == pytest.approx([-2, -1.12, 0, 1.12, 3])  # .03 / .25
    shown.sum().backward()
    assert symbols.grad.tolist() == [1.0] * 5
    halfway = with_reconstruction_offset(torch.tensor([0.5, 1.5]), torch.ones(2), torch.tensor(0.03))
    assert halfway.tolist() == pytest.approx([0.515, 1.515])
    assert reconstruction_offset(torch.tensor([0.08, 1.0]), torch.tensor(0.03)).tolist() == pytest.approx(
        [MAX_RECONSTRUCTION_OFFSET, 0.03]
    )
    places = fade(torch.tensor([0.0, 190 / 255, 222.5 / 255, 1.0]))
    assert places.tolist() == pytest.approx([1, 1, 0.5, 0])


@pytest.mark.parametrize(("size", "index"), [((192, 192), 0), ((65, 40), 100), ((17, 31), 230)])
def test_pictures_show_symbols_as_the_float_network_does(network, model, photograph, size, index):
    """Of the same integers: latents lifted by the spread of their rows, as far as those tell it."""
    coded = backend.encode(model, np.ascontiguousarray(photograph[: size[0], : size[1]]), backend.Options(index))
    shown = backend.shown(model, coded, index, size, False, 8)
    rate = model.at_rate(model.operating_point(index))
    shape, _ = latent_shapes(size[1], size[0])
    inside = np.concatenate(valid_masks(NARROW.latent, shape))
    sigma = torch.full(coded.symbols.shape, SIGMA_MIN)
    sigma[torch.from_numpy(inside)] = torch.from_numpy(backend.sigmas()[coded.rows]).float()
    symbols = torch.from_numpy(coded.symbols).float()
    latents = with_reconstruction_offset(symbols, sigma, rate["lift"][0]) + torch.from_numpy(coded.means) / 2**6
    y = merge_quadtree([latents[None]], network.inverse_order)[:, :, : shape[0], : shape[1]]
    y = y * rate["y_log_inverse_gain"].exp()
    with torch.no_grad():
        x_hat = model.network.synthesis(y, rate)
    expected = (x_hat[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()[: size[0], : size[1]]
    assert np.abs(shown - expected).max() <= 1
    y = coded.integers.y
    widest = replace(y, table_index=np.full_like(y.table_index, SCALE_ROWS - 1))  # so wide that nothing is lifted
    plain = replace(coded, integers=replace(coded.integers, y=widest))
    assert size != (192, 192) or (backend.shown(model, plain, index, size, False, 8) != shown).any()


@pytest.mark.parametrize("bits", [-1.0, float("nan"), float("inf")])
def test_prices_and_amounts_that_make_no_sense_are_refused(bits):
    for name in ("step_error_bits", "z_step_error_bits", "lift", "nearer"):
        with pytest.raises(ValueError, match=f"^{name}"):
            ContextHyperprior(replace(NARROW, **{name: bits}))


@pytest.mark.parametrize("index", [0, 100, 255])
def test_means_and_rows_of_z_are_those_of_the_floats(network, model, photograph, index):
    """Of the symbols that were coded, on a side with an odd number of them."""
    image = np.ascontiguousarray(photograph[:, :129])
    coded = decode_walk(model, backend.encode(model, image, backend.Options(index)), index, image)
    symbols = iter(torch.from_numpy(part)[None].float() for part in np.split(coded.z.symbols, NUM_STEPS))
    z = backend.analyse(model, image).z[None]
    with torch.no_grad():
        rate = network.at_rate(torch.tensor([index / 255]))
        _, (residual, _, sigma) = network.transmit_z(z, rate, lambda residual: next(symbols))
        scaled, residual, sigma = (
            torch.cat(split_quadtree(planes, network.z_order), 1)
            for planes in (z * rate["z_log_gain"].exp(), residual, sigma)
        )
    inside = np.concatenate(valid_masks(z.shape[1], z.shape[2:]))
    means = (scaled - residual)[0].numpy()
    assert np.abs(coded.z.means / 2.0**MEAN_BITS - means)[inside].max() < 0.02
    assert np.abs(np.log(backend.sigmas()[coded.z.table_index] / sigma[0].numpy()[inside])).max() < 0.15  # 0.128 apart
    assert len(coded.z.table_index) == z.numel() < inside.size and np.abs(means[8:]).max() > 0.05


def with_other_tables_of_z(network) -> backend.Model:
    """In which every hyper-latent costs 5 bits or more."""
    tables = logistic_tables(np.concatenate([backend.sigmas()[:Z_TABLE], np.full(SCALE_ROWS, 20.0)]))
    tensors = backend.export(network, tables)
    return backend.Model(Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(network), tensors))


def test_hyper_latents_have_tables_of_their_own(network, model, photograph):
    """What codes, counts, bounds and searches them takes the same rows."""
    dear, image = with_other_tables_of_z(network), np.ascontiguousarray(photograph[:, :129])
    shape = (-(-image.shape[0] // 64), -(-image.shape[1] // 64))
    coded = [backend.encode(one, image, backend.Options(0)) for one in (model, dear)]
    assert np.array_equal(coded[0].rows, coded[1].rows) and coded[0].rows.max() < SCALE_ROWS
    count = NARROW.hyper_latent * shape[0] * shape[1]
    for one in coded:
        tables_of_z = one.integers.z.table_index
        assert len(z_symbols(one)) == len(tables_of_z) == count
        assert Z_TABLE <= tables_of_z.min() and tables_of_z.max() < NUM_TABLES == dear.tables.num_tables
    assert coded[1].estimated_bits > coded[0].estimated_bits + 3 * count
    rate = dear.operating_point(0)
    assert dear.min_bits_of_z(rate, shape) > model.min_bits_of_z(rate, shape) + count / 4 * 3
    latents = backend.analyse(model, image)
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    bits = [
        float(MeanScaleRelaxedRD(one, rate).transmit((latents.y[None], latents.z[None]), torch.round, x)[1])
        for one in (model, dear)
    ]
    assert bits[1] > bits[0] + 3 * count


def test_weights_without_tables_of_hyper_latents_are_refused(network):
    tensors = backend.export(network, logistic_tables(backend.sigmas()[:Z_TABLE]))
    with pytest.raises(WeightsError, match="there are 128 tables, not 192"):
        backend.Model(Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(network), tensors))


def test_hyper_latents_that_a_search_found_are_rounded_with_what_it_says(model):
    of_z = model.network.config.z_step_error_bits
    assert [model.z_step_error_bits(bits) for bits in (0.0, of_z / 2, 2 * of_z)] == [0.0, of_z, 2 * of_z]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 1), (3, 4)])
def test_min_bits_of_z(model, shape):
    """They are those of the first step's symbols: what the tables charge for the cheapest of each row."""
    inside = valid_masks(NARROW.hyper_latent, shape)[0]
    channels = np.nonzero(inside)[0]
    ends = model.tables.offsets
    rows = table_index_of_scale(np.zeros(len(channels), np.int64), model.rates.z_scale_offset[40][channels])
    least = [model.tables.bits[ends[row] : ends[row + 1]].min() for row in rows]
    assert sum(least) == pytest.approx(model.min_bits_of_z(model.operating_point(40), shape)) and sum(least) > 0


def z_symbols(coded: backend.Coded) -> np.ndarray:
    """The symbols of z that are coded."""
    z = coded.integers.z
    return gather_valid(z.symbols, z.valid_mask())


def decode_walk(model, coded, index: int, image: np.ndarray) -> CodedIntegers:
    shape = tuple(-(-side // 16) for side in image.shape[:2])
    return backend.decode_integers(model, coded.streams[0], model.operating_point(index), shape)


@pytest.mark.parametrize("size", [(1, 1), (16, 17), (33, 47), (64, 65), (100, 191)])
@pytest.mark.parametrize("index", [0, 255])
def test_odd_sizes(model, photograph, size, index):
    image = np.ascontiguousarray(photograph[: size[0], : size[1]])
    coded = backend.encode(model, image, backend.Options(index, lossless=False))  # so small a picture has few colours
    decoded = backend.decode(model, payload(coded, index, size[1], size[0]))
    assert decoded.shape == image.shape
    assert coded.rows.size == 24 * -(-size[0] // 16) * -(-size[1] // 16)  # nothing beyond the picture is coded


def test_other_integers_are_drift(model, photograph):
    coded = backend.encode(model, photograph, backend.Options(90))
    with pytest.raises(DriftError, match="integers CRC"):
        backend.decode(model, replace(payload(coded, 90, 192, 192), integers_crc=coded.integers_crc ^ 1))


def test_a_step_sees_the_steps_before_and_no_other(model):
    """Other symbols in step k change means of later steps alone."""

    for of_z in (True, False):
        plain = means_of_run(model, of_z, None)
        for changed in range(NUM_STEPS):
            other = means_of_run(model, of_z, changed)
            assert (other[: changed + 1] == plain[: changed + 1]).all()
            assert changed == NUM_STEPS - 1 or (other[changed + 1] != plain[changed + 1]).any()


def means_of_run(model, of_z: bool, changed: int | None) -> np.ndarray:
    """Means of each step of z or y, with one changed step of it."""
    coder = ConstantCoder(changed if of_z else None, None if of_z else changed)
    integers = run_entropy_model(model, model.operating_point(128), (11, 13), coder)
    return (integers.z if of_z else integers.y).means.reshape(NUM_STEPS, -1)


class ConstantCoder:
    """A step coder whose symbols are 0, and 5 in one step of z or of y."""

    def __init__(self, changed_z_step: int | None, changed_y_step: int | None):
        self.changed_z_step, self.changed_y_step = changed_z_step, changed_y_step

    def code_z_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        return np.where(prediction.valid_mask, 5 * (step == self.changed_z_step), 0)

    def code_y_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        return np.where(prediction.valid_mask, 5 * (step == self.changed_y_step), 0)

    def begin_residual(self, y: CodedLatents) -> tuple[np.ndarray, int]:
        pytest.fail("these weights have no residual layer")


def test_synthesis_knows_the_rate(network):
    y = torch.randn(2, 24, 3, 4) * 0.1
    with torch.no_grad():
        both = network.synthesis(y, network.at_rate(torch.tensor([0.0, 0.75])))
        for n, t in enumerate((0.0, 0.75)):
            alone = network.synthesis(y[n : n + 1], network.at_rate(torch.tensor([t])))
            assert torch.allclose(both[n : n + 1], alone, atol=1e-5)
            h = y[n : n + 1]
            knot = int(t * 2)  # 0.75 lies between the second knot and the third
            for layer in network.g_s[:-1]:
                h = layer(h)
                if isinstance(layer, torch.nn.ConvTranspose2d):
                    stage = [16, 12, 8].index(h.shape[1])
                    share = t * 2 - knot
                    gain, bias = (
                        ((1 - share) * knots[stage][knot] + share * knots[stage][knot + 1])[None, :, None, None]
                        for knots in (network.stage_gain, network.stage_bias)
                    )
                    h = (1 + gain) * h + bias
            assert torch.allclose(alone, network.g_s[-1](h) + 0.5, atol=1e-5)
    assert (both[0] - network.synthesis(y, network.at_rate(torch.tensor([0.75, 0.75])))[0]).abs().max() > 1e-3


def test_every_parameter_learns(photograph):
    torch.manual_seed(1)
    network = ContextHyperprior(NARROW)
    x = torch.from_numpy(photograph[:128, :128].copy()).permute(2, 0, 1)[None].float().expand(2, -1, -1, -1) / 255
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    # Residual blocks and corrections start with a zero: their inner weights learn once it has moved.
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("f.4.weight") or name.startswith(("corrections", "z_corrections")):
                p.normal_(std=0.01)
        network.z_log_gain.add_(2)  # or each z is rounded to 0, and networks that see only 0 learn nothing
    loss(network, x, torch.tensor([0.3, 0.9]))["loss"].backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name


def test_what_only_costs_bits_learns_the_same_without_the_picture(photograph, monkeypatch):
    """Means and scales of y change what a picture costs and nothing that it shows: rounding is straight through."""
    x = torch.from_numpy(photograph[:128, :128].copy()).permute(2, 0, 1)[None].float() / 255
    gradients, heard, synthesis = [], [], ContextHyperprior.synthesis
    for shortened in (True, False):
        torch.manual_seed(1)
        network = ContextHyperprior(NARROW)
        network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
        choose_trained(network, "from_seen,from_first,corrections,h_s,mean_log_gain,scale_offset")

        def spied(network, y, *rest, shortened: bool = shortened) -> torch.Tensor:
            heard.append(y.requires_grad)
            return synthesis(network, y, *rest)

        monkeypatch.setattr(ContextHyperprior, "synthesis", spied)
        if not shortened:
            network.y_log_gain.requires_grad_()
        torch.manual_seed(2)
        loss(network, x, torch.tensor([0.6]))["loss"].backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    assert heard == [False, True] and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        scale = gradients[1][name].abs().max()
        assert torch.allclose(gradient, gradients[1][name], atol=1e-4 * float(scale)), name


def test_no_step_is_heard_louder_than_networks_were_trained_with(photograph):
    """Neither by the float networks nor by those of integers; what is not as loud is heard as it is."""
    torch.manual_seed(4)
    network = ContextHyperprior(NARROW).eval()
    before = network.at_rate(torch.tensor([0.0, 0.5]))["context_log_gain"].exp()
    with torch.no_grad():
        network.context_log_gain[:, 3] += 12
    after = network.at_rate(torch.tensor([0.0, 0.5]))["context_log_gain"].exp()
    assert torch.allclose(after[:, 3], torch.tensor(MAX_CONTEXT_GAIN)) and before[:, 3].max() < MAX_CONTEXT_GAIN
    assert torch.equal(after[:, :3], before[:, :3]) and torch.equal(after[:, 4:], before[:, 4:])
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    units = interpolate_rates(tensors["rates.context_gain"], 0) / 2.0 ** (GAIN_BITS + FRACTION_BITS - MEAN_BITS)
    assert units.max() <= MAX_CONTEXT_GAIN * 1.001 and units[:, 3].min() > 0.99 * MAX_CONTEXT_GAIN / MAX_EQUALISATION


def test_weights_that_fill_their_bits_do_the_same_and_lose_less(photograph):
    """Some latents are heard ten times as loud by the context networks as the rest."""
    torch.manual_seed(3)
    network = ContextHyperprior(replace(NARROW, details=16, detail_width=16)).eval()
    with torch.no_grad():
        for last in (*network.corrections, *network.details.to_scales):
            last.weight.normal_(std=0.1)
        for layer in network.from_seen:
            layer.weight[:, ::6] *= 10
        network.context_log_gain[:, ::4] += 9  # above what is heard
    x = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
    t = torch.tensor([0.5])
    same = equalised(network)
    with torch.no_grad():
        for one, other in zip(network(x, t, noise=False).values(), same(x, t, noise=False).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    lost = []
    for one in (network, same):
        layer = one.from_seen[2]
        small = quantise(torch.nn.Sequential(layer), small=True).to_floats(["x"])["x.weight"]
        heard = one.at_rate(t)["context_log_gain"].exp().flatten().repeat(3)[:, None, None]
        lost.append(float(((small - layer.weight) * heard).square().mean().detach()))
    assert lost[1] < 0.5 * lost[0]
    assert not torch.equal(network.from_seen[0].weight, same.from_seen[0].weight)
