"""What coded sampling cost and gave, level by level: the figures of `encode -v`."""

import numpy as np

from latcodec.latents.coded_sampling import BIT

ACTIVE_BITS = 0.01  # a channel with less information per position than this is not active


class Level:
    """Sums over the dimensions of a level; add parts of it, then ask for the summary."""

    def __init__(self, channels: int):
        self.kl_bits = 0.0
        self.squared_error = self.expected_error = 0.0
        self.dimensions = self.coded = 0
        self.channel_bits = np.zeros(channels)

    def add(self, bits: np.ndarray, evidence: np.ndarray, sample: np.ndarray) -> None:
        """bits: expected information [C, h, w], 1/256 bit; evidence and sample: float64 [C, h, w], distance from the
        prior's mean in standard deviations of the evidence."""
        nats = bits * (np.log(2) / BIT)
        left = np.exp(-2 * nats)
        kl = nats - 0.5 * (1 - left) + 0.5 * (1 - left) * left * evidence**2
        coded = bits > 0
        self.kl_bits += float(kl.sum()) / np.log(2)
        self.squared_error += float(np.square(evidence - sample)[coded].sum())
        # Of an exact posterior sample: its mean is (1 - left) of the evidence, its variance 1 - left.
        self.expected_error += float((np.square(left * evidence) + 1 - left)[coded].sum())
        self.dimensions += bits.size
        self.coded += int(coded.sum())
        self.channel_bits += kl.sum((1, 2)) / np.log(2)

    def summary(self, level: int, file_bits: float) -> dict[str, float]:
        """KL and file in bits and their ratio; rho: the squared distance of the sample from the evidence over what it
        would be for an exact posterior sample, so 1 for that; dimensions, those coded, and active channels."""
        positions = max(1, self.dimensions // len(self.channel_bits))
        return {
            "level": level,
            "kl_bits": round(self.kl_bits, 1),
            "file_bits": round(file_bits, 1),
            "ratio": round(file_bits / max(self.kl_bits, 1e-9), 4),
            "rho": round(self.squared_error / max(self.expected_error, 1e-9), 4),
            "dimensions": self.dimensions,
            "coded_dimensions": self.coded,
            "active_units": int((self.channel_bits > ACTIVE_BITS * positions).sum()),
        }
