"""What training pays for symbols, beside what files pay."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latcodec.backends.common import rdoq as pricing
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior, loss
from latcodec.backends.hyperprior_context.quadtree import NUM_STEPS
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.nn.layers import logistic_bits, round_straight_through
from latcodec.nn.symbol_costs import (
    NUM_SCALES,
    TABLE_GROUPS,
    logistic_costs,
    picture_bits,
    rdoq_straight_through,
    symbol_bits,
    table_position,
)
from latcodec.train.checkpoint import averaged_network, restore, write
from latcodec.train.export.tables import logistic_tables, quantize_pmf
from latcodec.train.init.source import initialise, read_source
from latcodec.train.init.widen import widened
from latcodec.train.step import TrainState
from latcodec.weights import Weights, save

CPU = torch.device("cpu")
SMALL = Config(
    blocks=(0, 0, 1), widths=(8, 12, 16), latent=16, hyper_width=16, hyper_latent=8, context_width=8, knots=3
)
NETWORK = ContextHyperprior(SMALL)


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Of y, details and z, each its own: zeros are cheaper than the logistic says, those of z dearer."""
    base, pmfs = logistic_tables(backend.sigmas()), []
    for row in range(base.num_tables):
        pmf = base.weights[base.offsets[row] : base.offsets[row + 1]].astype(np.float64)
        pmf[-base.minimums[row]] *= (3.0, 2.0, 0.5)[row // NUM_SCALES]
        pmfs.append(pmf)
    return quantize_pmf(pmfs, base.minimums.tolist())


def exported(tables: Tables) -> dict[str, np.ndarray]:
    return backend.export(NETWORK, tables)


@pytest.fixture(scope="module")
def of_y(tables) -> torch.Tensor:
    return pricing.bits_of_tables(tables, CPU)[:NUM_SCALES]


@pytest.fixture
def some() -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals and their scales, float32 [1, 2000, 1, 1], of every size that is priced, and a little below the first
    row and above the last."""
    torch.manual_seed(0)
    sigma = torch.exp(torch.rand(1, 2000, 1, 1) * 8.5 - 2.8)
    return (sigma * 1.5 * torch.randn_like(sigma)).clamp(-63, 63), sigma


def test_rows_are_those_of_files():
    sigma = torch.from_numpy(backend.sigmas()[:NUM_SCALES]).float()
    assert torch.allclose(table_position(sigma), torch.arange(64.0), atol=1e-4)
    assert table_position(torch.tensor([0.01, 1e4])).tolist() == [0, 63]


def test_before_any_table_is_fitted_symbols_cost_what_the_logistic_says():
    found, fitted = logistic_costs(), pricing.bits_of_tables(logistic_tables(backend.sigmas()), CPU)
    near = fitted < 11  # dearer ones have a share of outliers and 24 bits at most
    assert found.shape == fitted.shape and near.sum() > 10000
    assert (found - fitted)[near].abs().max() < 0.4
    assert torch.allclose(found[:, 63], fitted[:, 63], atol=0.002)


def test_symbols_cost_what_their_tables_say(tables, of_y, some):
    rows = torch.arange(2000) % NUM_SCALES
    symbols = some[0].flatten().round()
    found = symbol_bits(symbols, rows.float(), of_y)
    expected = pricing.symbol_bits(symbols.int().numpy(), rows.numpy().astype(np.uint16), tables)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rounding_by_price_takes_the_cheaper_and_keeps_the_gradient(of_y, some):
    residual, sigma = some[0].clamp(-30, 30).requires_grad_(), some[1]
    found = rdoq_straight_through(residual, sigma, of_y, 6.0)
    nearest = residual.detach().round()
    inner = nearest - nearest.sign()

    def cost(symbols: torch.Tensor) -> torch.Tensor:
        error = (residual.detach() - symbols).square()
        return symbol_bits(symbols, table_position(sigma), of_y) + 6 * error

    expected = torch.where(cost(inner) < cost(nearest), inner, nearest)
    assert torch.allclose(found, expected, atol=1e-5) and 100 < (expected != nearest).sum() < 1900
    found.sum().backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))


def test_bits_are_those_of_tables_and_scales_learn_from_them(of_y, some):
    residual, sigma = some[0].requires_grad_(), some[1].requires_grad_()
    quantised = round_straight_through(residual)
    bits = picture_bits(residual, quantised, sigma, of_y, noise=True)
    exact = symbol_bits(quantised.detach(), table_position(sigma), of_y)
    assert bits.shape == (1,) and torch.allclose(bits, exact.sum()[None], rtol=1e-6)
    bits.sum().backward()
    assert torch.allclose(sigma.grad, torch.autograd.grad(exact.sum(), sigma)[0]) and sigma.grad.abs().max() > 0


@pytest.mark.parametrize("noise", [True, False])
def test_residuals_learn_from_the_logistic(of_y, some, noise):
    residual, sigma = some[0].requires_grad_(), some[1]
    torch.manual_seed(3)
    quantised = round_straight_through(residual)
    picture_bits(residual, quantised, sigma, of_y, noise).sum().backward()
    torch.manual_seed(3)
    at = (residual.detach() + torch.rand_like(residual) - 0.5 if noise else quantised.detach()).requires_grad_()
    expected = torch.autograd.grad(logistic_bits(at, sigma).sum(), at)[0]
    assert torch.allclose(residual.grad, expected) and expected.abs().max() > 0


def test_symbols_beyond_the_priced_ones_cost_what_the_logistic_says(of_y):
    symbols = torch.tensor([-500.0, 64, 100]).view(1, 3, 1, 1)
    sigma = torch.full_like(symbols, 150).requires_grad_()
    bits = picture_bits(symbols, symbols, sigma, of_y, noise=False)
    assert torch.allclose(bits, logistic_bits(symbols, sigma).sum()[None])
    bits.sum().backward()
    assert sigma.grad[0, 0] < 0 < sigma.grad[0, 1], "a wider scale for the large one, a narrower for the small one"


def test_kinds_lie_where_files_have_their_rows(tables):
    model = backend.Model(Weights(Path("test"), "0" * 64, "test", backend.stored_config(NETWORK), exported(tables)))
    numbers = {"z": 0, "y": 1, "residual": 1 + NUM_STEPS}  # of the prices of `transmit`
    assert {kind: model.first_row(n) // NUM_SCALES for kind, n in numbers.items()} == {
        kind: place for place, kind in enumerate(TABLE_GROUPS)
    }


def test_what_is_no_number_stays_none(of_y):
    nan, one = torch.full((1, 1, 1, 1), math.nan), torch.ones(1, 1, 1, 1)
    for residual, sigma in ((nan, one), (one, nan), (nan, nan)):
        quantised = rdoq_straight_through(residual.clone().requires_grad_(), sigma, of_y, 8.0)
        assert picture_bits(residual.clone().requires_grad_(), quantised, sigma, of_y, noise=True).isnan().all()
    network = ContextHyperprior(SMALL)
    with torch.no_grad():
        network.g_a[0].weight[0, 0, 0, 0] = math.nan
    assert loss(network, torch.rand(1, 3, 64, 64), torch.tensor([0.5]))["loss"].isnan()


def test_a_wider_network_pays_the_same(tables):
    old = ContextHyperprior(SMALL)
    old.prices.copy_(pricing.bits_of_tables(tables, CPU))
    assert torch.equal(widened(old, replace(SMALL, blocks=(0, 1, 1))).prices, old.prices)


def test_checkpoints_without_prices(tmp_path):
    """They are exported as they are; a run goes on from their averages alone."""
    network = ContextHyperprior(SMALL)
    old = {name: value for name, value in network.state_dict().items() if name != "prices"}
    state = {"codec": "hyperprior-context", "config": json.dumps(backend.stored_config(network)), "ema": old}
    write(state, tmp_path / "ema.pt")
    found = averaged_network(tmp_path / "ema.pt", "hyperprior-context")
    assert torch.equal(found.prices, logistic_costs())
    write(state | {"model": old}, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match="older version.*--init"):
        restore(TrainState(network, None, {}), "hyperprior-context", tmp_path / "checkpoint.pt")


def test_what_residual_blocks_add_is_kept_in_eight_bits(tables):
    tensors = exported(tables)
    small = {name for name, value in tensors.items() if name.startswith("float.g_") and value.dtype == np.int8}
    assert small == {f"float.{part}.{n}.f.{k}.weight" for part, n in (("g_a", 6), ("g_s", 1)) for k in (0, 2, 4)}


def test_training_pays_what_the_tables_of_its_start_say(tables, of_y, tmp_path):
    """They are no part of a weights file, which has the tables."""
    tensors = exported(tables)
    assert not [name for name in tensors if "prices" in name]
    save(tmp_path / "weights.safetensors", "hyperprior-context", backend.stored_config(NETWORK), "test", tensors)
    started = ContextHyperprior(SMALL)
    assert not torch.equal(started.prices_of("y"), of_y)
    taken, total = initialise(started, "hyperprior-context", read_source(tmp_path / "weights.safetensors"))
    assert taken == total
    every = pricing.bits_of_tables(tables, CPU)
    for number, kind in enumerate(TABLE_GROUPS):
        assert torch.equal(started.prices_of(kind), every[number * NUM_SCALES :][:NUM_SCALES])
    assert torch.equal(read_source(tmp_path / "weights.safetensors").tensors["prices"], every)
