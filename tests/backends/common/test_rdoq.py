"""What symbols cost, at integers and between them, and the quantisation that weighs it against the error."""

import math

import numpy as np
import pytest
import torch

from latcodec import backends
from latcodec.backends.common.rdoq import bits_of_tables, rdoq, relaxed_bits, symbol_bits
from latcodec.backends.loading import load_model
from latcodec.entropy.range_coder import ideal_bits


@pytest.fixture(params=["hyperprior", "hyperprior-context", "nc-vae"])
def model(request):
    return load_model(backends.by_name(request.param), None, None, "cpu")


def test_rdoq_chooses_the_cheaper_of_two(model):
    tables = model.tables
    rng = np.random.default_rng(0)
    table_index = rng.integers(tables.num_tables - 40, tables.num_tables - 14, 5000).astype(np.uint16)
    residual = (rng.standard_normal(5000) * 3).astype(np.float32)
    chosen = rdoq(residual, table_index, tables, 4.0)
    nearest = np.rint(residual).astype(np.int32)
    inner = nearest - np.sign(nearest)

    def cost(symbols):
        return symbol_bits(symbols, table_index, tables) + 4.0 * np.square(residual - symbols)

    expected = np.where(cost(inner) < cost(nearest), inner, nearest)
    assert np.array_equal(chosen, expected) and 50 < (chosen != nearest).sum() < 4000
    assert symbol_bits(nearest, table_index, tables).sum() == pytest.approx(
        ideal_bits(nearest, table_index, tables), rel=1e-6
    )


def test_relaxed_bits_are_the_tables_at_integers_and_smooth_between(model):
    if not hasattr(model, "first_row"):
        pytest.skip("the codec does not interpolate between tables")
    table_bits = bits_of_tables(model.tables, torch.device("cpu"))
    for row in (0, 17, 40, 63):
        place = torch.full((21,), float(row))
        symbols = torch.arange(-10.0, 11)
        exact = symbol_bits(symbols.int().numpy(), np.full(21, row), model.tables)
        assert np.allclose(relaxed_bits(symbols, place, table_bits).numpy(), exact, atol=1e-3)
        # On the way from one integer to the next there is no jump, in the slope neither.
        x = torch.linspace(-3, 3, 601, requires_grad=True)
        bits = relaxed_bits(x, torch.full_like(x, float(row)), table_bits)
        slope = torch.autograd.grad(bits.sum(), x)[0]
        assert bits.diff().abs().max() < 0.02 * (bits.max() - bits.min()) and bits.min() > -0.5
        assert slope.diff().abs().max() < 0.05 * (slope.max() - slope.min())
    place = torch.tensor([20.0, 20.25, 21.0])
    low, between, high = relaxed_bits(torch.full((3,), 2.0), place, table_bits).tolist()
    assert between == pytest.approx(0.75 * low + 0.25 * high, rel=1e-5)
    far = torch.tensor([1e6, -1e6, 62.0, -62.0], requires_grad=True)
    bits = relaxed_bits(far, torch.full((4,), 63.0), table_bits)
    slope = torch.autograd.grad(bits.sum(), far)[0]
    assert torch.isfinite(bits).all() and bits[0] > bits[2] > 0 and (slope * far.sign() > 0).all()
    assert relaxed_bits(torch.full((1,), math.nan), torch.full((1,), math.nan), table_bits).isnan().all()


def test_escapes_are_priced_as_they_are_coded(model):
    tables, rng = model.tables, np.random.default_rng(4)
    table_index = rng.integers(0, tables.num_tables, 300).astype(np.uint16)
    symbols = (rng.standard_normal(300) * 10.0 ** rng.integers(0, 6, 300)).astype(np.int32)
    assert symbol_bits(symbols, table_index, tables).sum() == pytest.approx(ideal_bits(symbols, table_index, tables))
