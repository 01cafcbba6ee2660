"""lambda, quality and rate index name one axis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latcodec import rates
from latcodec.errors import OptionError


def test_ends_of_the_axis():
    assert rates.lambda_of_index(0) == 20
    assert rates.lambda_of_index(255) == pytest.approx(0.1)
    assert rates.lambda_of_quality(1) == 20
    assert rates.lambda_of_quality(100) == pytest.approx(0.1)
    assert rates.index_of_lambda(20) == 0
    assert rates.index_of_lambda(0.1) == 255


def test_every_index_survives_its_lambda():
    assert [rates.index_of_lambda(rates.lambda_of_index(i)) for i in range(256)] == list(range(256))


@given(st.floats(0.1, 20))
def test_index_is_the_nearest(lmbda):
    index = rates.index_of_lambda(lmbda)
    half_a_step = (20 / 0.1) ** (0.5 / 255) * (1 + 1e-9)
    assert 1 / half_a_step <= rates.lambda_of_index(index) / lmbda <= half_a_step


@given(st.floats(1, 99.9))
def test_lambda_falls_with_quality(quality):
    assert rates.lambda_of_quality(quality + 0.1) < rates.lambda_of_quality(quality)


@pytest.mark.parametrize("lmbda", [0, 0.0999, 20.01, -1, float("inf"), float("nan")])
def test_lambda_out_of_range(lmbda):
    with pytest.raises(OptionError, match="outside"):
        rates.index_of_lambda(lmbda)


@pytest.mark.parametrize("quality", [0, 0.99, 100.01, -3, float("nan")])
def test_quality_out_of_range(quality):
    with pytest.raises(OptionError, match="outside"):
        rates.lambda_of_quality(quality)


def test_the_fields_other_convention():
    for lmbda, lc in ((12.8, 0.0018), (1.77, 0.013), (0.25, 0.0932)):
        assert rates.distortion_weight(lmbda) == pytest.approx(lc, rel=0.015)
