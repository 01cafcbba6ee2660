"""What coded sampling cost and gave, level by level: the figures of `encode -v`."""

import numpy as np

ACTIVE_BITS = 0.01  # a channel with less information per position than this is not active


class Level:
    """Sums over the dimensions of a level; add parts of it, then ask for the summary."""

    def __init__(self, channels: int):
        self.kl_bits = 0.0
        self.squared_error = self.expected_error = 0.0
        self.dimensions = self.coded = 0
        self.channel_bits = np.zeros(channels)

    def add(self, bits: np.ndarray, scale: np.ndarray, evidence: np.ndarray, sample: np.ndarray) -> None:
        """Arrays [C, h, w] in units of the evidence's standard deviation.

        bits: allocated, 0 where nothing is coded; scale: standard deviation of the prior; evidence and sample: distance
        from the prior's mean, which may have jumped.
        """
        coded = bits > 0
        left = np.where(coded, 1 / (1 + np.square(scale)), 1.0)
        kl = 0.5 * (-np.log(left) - (1 - left) + (1 - left) * left * evidence**2)
        self.kl_bits += float(kl.sum()) / np.log(2)
        self.squared_error += float(np.square(evidence - sample)[coded].sum())
        # Of an exact posterior sample: its mean is (1 - left) of the evidence, its variance 1 - left.
        self.expected_error += float((np.square(left * evidence) + 1 - left)[coded].sum())
        self.dimensions += coded.size
        self.coded += int(coded.sum())
        self.channel_bits += kl.sum((1, 2)) / np.log(2)

    def summary(self, level: int, file_bits: float, jump_bits: float) -> dict[str, float]:
        """KL to the priors that were sampled from, bits of the jumps that moved them, file in bits, and its ratio to
        the sum of both; rho: the squared distance of the sample from the evidence over what it would be for an exact
        posterior sample, so 1 for that; dimensions, those coded, and active channels."""
        positions = max(1, self.dimensions // len(self.channel_bits))
        information = self.kl_bits + jump_bits
        return {
            "level": level,
            "kl_bits": round(float(self.kl_bits), 1),
            "jump_bits": round(float(jump_bits), 1),
            "file_bits": round(float(file_bits), 1),
            "ratio": round(float(file_bits / max(information, 1e-9)), 4),
            "rho": round(self.squared_error / max(self.expected_error, 1e-9), 4),
            "dimensions": self.dimensions,
            "coded_dimensions": self.coded,
            "active_units": int((self.channel_bits > ACTIVE_BITS * positions).sum()),
        }
