"""lambda, quality and rate index: three names of one axis. Standard library only.

lambda is the price of a bit in J = D / (2 * 0.001) + lambda * R, where D is the sum of squared errors of samples in
[0, 1] and R are bits. It runs from 0.1 (largest file) to 20 (smallest). The rate index 0..255 of a file is its
quantised logarithm, which rises with quality: lambda = 20 * (0.1 / 20) ** (index / 255). Some codecs also have rate
indices below 0, which stand for larger lambdas and smaller files.
"""

import math

from latcodec.errors import OptionError

LAMBDA_MIN, LAMBDA_MAX = 0.1, 20.0
LIKELIHOOD_VARIANCE = 0.001
METRICS = ("mse", "ms-ssim")  # the distortions that weights are trained for
# The weight of 1 - MS-SSIM beside 255^2 MSE, at which the field's two series of models meet: CompressAI trains its
# pairs (MSE, MS-SSIM) with (lc, l) = (.0018, 2.40), (.0035, 4.58), (.0067, 8.73), (.013, 16.64), (.025, 31.73),
# (.0483, 60.50), (.0932, 115.37), (.18, 220), whose quotients lie in 1222 ... 1333. So an equal lambda means about
# equal bits, whichever the metric.
MS_SSIM_WEIGHT = 1280.0
MAX_INDEX = 255
LOWEST_INDEX = -35  # of codecs that have rate indices below 0
RATE_STEP = 5  # between the rate indices whose integers a weights file holds
# The bits that a squared error of one quantiser step counts as in RDOQ, where the weights have no value of their own.
STEP_ERROR_BITS = 60.0
Z_STEP_ERROR_BITS = 24.0  # the same of hyper-latents, whose error costs bits of latents; found by trial at every rate


def lambda_of_index(index: float) -> float:
    """Return the lambda of a rate index, 255 or below; fractions of an index are allowed."""
    return LAMBDA_MAX * (LAMBDA_MIN / LAMBDA_MAX) ** (index / MAX_INDEX)


def index_of_lambda(lmbda: float, lowest_index: int = 0) -> int:
    """Return the nearest rate index, lowest_index..255, of a lambda; raises OptionError outside their range."""
    largest = lambda_of_index(lowest_index)
    if not LAMBDA_MIN <= lmbda <= largest * (1 + 1e-4):  # a lambda that was printed is accepted
        raise OptionError(f"lambda {lmbda:g} is outside {LAMBDA_MIN:g} ... {math.floor(largest)}")
    return round(MAX_INDEX * math.log(lmbda / LAMBDA_MAX) / math.log(LAMBDA_MIN / LAMBDA_MAX))


def lambda_of_quality(quality: float) -> float:
    """Return the lambda of a quality in 1..100; raises OptionError outside."""
    if not 1 <= quality <= 100:
        raise OptionError(f"quality {quality:g} is outside 1 ... 100")
    return LAMBDA_MAX * (LAMBDA_MIN / LAMBDA_MAX) ** ((quality - 1) / 99)


def distortion_weight(lmbda: float) -> float:
    """Return the lc of the field's other convention, L = bpp + lc * 255^2 * MSE, for a lambda.

    J per pixel is 3 * MSE / (2 * s2) + lambda * bpp, with MSE of samples in [0, 1]; dividing by
    lambda gives lc = 3 / (2 * s2 * 255^2 * lambda) = 0.02307 / lambda.
    """
    return 3 / (2 * LIKELIHOOD_VARIANCE * 255**2 * lmbda)
