"""Neural networks evaluated in exact integers, for the networks that choose probabilities.

Encoder and decoder must compute the same table indices, so the result must not depend on the device, the number of
threads, the order of summation, the memory format or the library's version. Weights and activations are therefore
integers carried in float64. Every partial sum stays below 2**53 and each layer ends in a rounding, so every sum has one
exact value.

Activations are fixed point with `FRACTION_BITS` bits after the point. The weights of a layer have `shift` such bits, so
one layer computes floor(sum * 2**-shift + 1/2), clamped to +-LIMIT. All factors are powers of two, which float64
applies exactly.

Source: Balle, Johnston, Minnen 2019, "Integer networks for data compression with latent-variable models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from latcodec.errors import WeightsError

FRACTION_BITS = 12  # bits after the point of activations
WEIGHT_BITS = 16  # bits of the largest weight of a layer, its sign included
SMALL_WEIGHT_BITS = 8  # bits of the largest weight of each output channel, where `quantise` makes small weights
LIMIT = 2**23 - 1  # largest magnitude of activations: 2048
TILE_POSITIONS = 2**11  # output positions computed at once: torch copies the whole receptive field of each
_EXACT = 2**52  # one bit under float64's 2**53, for the half that rounding adds


@dataclass(frozen=True)
class Layer:
    """One convolution and the activation that follows it.

    Attributes:
        transposed: Whether the convolution is transposed.
        stride: Its stride in both directions.
        weight: float64 tensor of integers, [out, in, k, k], or [in, out, k, k] if transposed; k is odd and the padding
            is k // 2.
        bias: float64 [out], integers with shift + FRACTION_BITS bits after the point.
        shift: Number of bits after the point of the weights.
        slope_shift: A leaky ReLU with slope 2**-slope_shift follows; 0 means that no activation follows.
    """

    transposed: bool
    stride: int
    weight: torch.Tensor
    bias: torch.Tensor
    shift: int
    slope_shift: int


class IntegerNet:
    """A sequence of layers, made by `quantise` or `IntegerNet.from_arrays`.

    Args:
        layers: The layers in order.

    Raises:
        WeightsError: If a sum could exceed the integers that float64 represents exactly.
    """

    def __init__(self, layers: list[Layer]):
        for number, layer in enumerate(layers):
            axes = (0, 2, 3) if layer.transposed else (1, 2, 3)
            largest = layer.weight.abs().sum(axes).max().item() * LIMIT + layer.bias.abs().max().item()
            if largest * 2 >= _EXACT:
                raise WeightsError(f"integer network: layer {number} could reach {largest:.3g}, over 2**51")
        self.layers = layers

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the network, in horizontal tiles so that only one tile is held as floats.

        Args:
            x: Integers [C, h, w], fixed point with FRACTION_BITS bits; values beyond +-LIMIT are clamped.

        Returns:
            int64 [C', h', w'], fixed point with FRACTION_BITS bits, within +-LIMIT.
        """
        height = x.shape[1]
        scale, halo = self._scale_and_halo()
        if any(layer.stride > 1 and not layer.transposed for layer in self.layers):
            return self._run(x)
        tile_rows = max(4, TILE_POSITIONS // max(1, scale**2 * x.shape[2]))
        if tile_rows >= height:
            return self._run(x)
        out = None
        for top in range(0, height, tile_rows):
            first, end = max(0, top - halo), min(height, top + tile_rows)
            tile = self._run(x[:, first : min(height, end + halo)])
            if out is None:
                out = np.empty((len(tile), scale * height, tile.shape[2]), np.int64)
            out[:, scale * top : scale * end] = tile[:, scale * (top - first) : scale * (end - first)]
        return out

    def _scale_and_halo(self) -> tuple[int, int]:
        """Return the upsampling factor, and how many rows of the input beyond its own an output row depends on."""
        scale, halo = 1, 0
        for layer in self.layers:
            scale *= layer.stride if layer.transposed else 1
            halo += -(-(layer.weight.shape[-1] // 2) // scale)  # rounded up, at most a little too large
        return scale, halo

    def _run(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            h = torch.from_numpy(np.ascontiguousarray(x)).to(torch.float64, copy=True).clamp_(-LIMIT, LIMIT)[None]
            for layer in self.layers:
                padding = layer.weight.shape[-1] // 2
                if layer.transposed:
                    h = F.conv_transpose2d(h, layer.weight, layer.bias, layer.stride, padding, layer.stride - 1)
                else:
                    h = F.conv2d(h, layer.weight, layer.bias, layer.stride, padding)
                h = h.round_()  # corrects an inexact convolution algorithm: the true value is an integer
                if layer.slope_shift:
                    h = torch.maximum(h, h * 2.0**-layer.slope_shift)
                h = h.mul_(2.0**-layer.shift).add_(0.5).floor_().clamp_(-LIMIT, LIMIT)
            return h[0].to(torch.int64).numpy()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to store.

        Returns:
            For each layer n: "n.weight" int16, "n.bias" int64 and "n.kind" int32 [4], which holds transposed, stride,
            shift and slope_shift. If the weights of each output channel are multiples of one unit and the quotients fit
            8 bits, "n.weight" holds the quotients as int8 and "n.unit", uint16 [out], the units.
        """
        arrays = {}
        for n, layer in enumerate(self.layers):
            weight = layer.weight.numpy().astype(np.int32)
            unit = _common_divisor(weight, layer.transposed)
            small = weight // _broadcast_to_weight(unit, layer.transposed)
            is_small = np.array_equal(small, small.astype(np.int8))
            if is_small:
                arrays[f"{n}.unit"] = unit.astype(np.uint16)
            arrays[f"{n}.weight"] = small.astype(np.int8) if is_small else weight.astype(np.int16)
            arrays[f"{n}.bias"] = layer.bias.numpy().astype(np.int64)
            arrays[f"{n}.kind"] = np.array([layer.transposed, layer.stride, layer.shift, layer.slope_shift], np.int32)
        return arrays

    def to_floats(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the parameters of the float layers that this network approximates.

        Args:
            names: The name of each layer.

        Returns:
            "NAME.weight" and "NAME.bias" of each layer, float32.
        """
        floats = {}
        for name, layer in zip(names, self.layers, strict=True):
            floats[f"{name}.weight"] = (layer.weight * 2.0**-layer.shift).float()
            floats[f"{name}.bias"] = (layer.bias * 2.0 ** -(layer.shift + FRACTION_BITS)).float()
        return floats

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> IntegerNet:
        """Rebuild a network from the arrays of `to_arrays`.

        Units of powers of two may be stored as their exponents, "n.up", instead of "n.unit".

        Raises:
            WeightsError: If an array is missing, or a sum could exceed the exact integers of float64.
        """
        layers = []
        try:
            for n in range(sum(name.endswith(".kind") for name in arrays)):
                transposed, stride, shift, slope_shift = (int(v) for v in arrays[f"{n}.kind"])
                weight, bias = (
                    torch.from_numpy(arrays[f"{n}.{name}"].astype(np.float64)) for name in ("weight", "bias")
                )
                unit = arrays[f"{n}.unit"] if f"{n}.unit" in arrays else 2.0 ** arrays.get(f"{n}.up", np.zeros(1))
                weight *= torch.from_numpy(_broadcast_to_weight(np.asarray(unit, np.float64), bool(transposed)))
                layers.append(Layer(bool(transposed), stride, weight, bias, shift, slope_shift))
        except KeyError as error:
            raise WeightsError(f"integer network: {error} is missing") from None
        return cls(layers)


def quantise(network: nn.Sequential, small: bool = False) -> IntegerNet:
    """Convert a float network of convolutions, transposed convolutions and leaky ReLUs to integers.

    Args:
        network: The network; kernels are odd squares with padding k // 2, slopes are powers of two.
        small: Whether weights become 8-bit integers times one unit per output channel, which halves their stored size.

    Raises:
        WeightsError: If the network has any other layer.
    """
    layers: list[Layer] = []
    for module in network:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            _check_exact(module)
            weight = module.weight.detach().double()
            largest = weight.abs().max().item() or 1.0  # a layer of zeros still has its bias
            shift = WEIGHT_BITS - 1 - int(np.ceil(np.log2(largest + 1e-12)))
            integers = torch.round(weight * 2.0**shift).clamp(-(2.0**15), 2.0**15 - 1)
            transposed = isinstance(module, nn.ConvTranspose2d)
            integers = _to_small_weights(integers, transposed) if small else integers
            bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach()
            fixed_bias = torch.round(bias.double() * 2.0 ** (shift + FRACTION_BITS))
            layers.append(Layer(transposed, module.stride[0], integers, fixed_bias, shift, 0))
        elif (slope_shift := _slope_shift(module)) and layers and not layers[-1].slope_shift:
            layers[-1] = replace(layers[-1], slope_shift=slope_shift)
        else:
            raise WeightsError(f"integer network: cannot run {module} exactly")
    return IntegerNet(layers)


def _broadcast_to_weight(per_output: np.ndarray, transposed: bool) -> np.ndarray:
    """Return values of the output channels, [out], in a shape that broadcasts against a layer's weights."""
    return per_output[None, :, None, None] if transposed else per_output[:, None, None, None]


def _common_divisor(weight: np.ndarray, transposed: bool) -> np.ndarray:
    """Return the greatest common divisor of the weights of each output channel, int32 [out]; 1 if all are 0."""
    by_output = np.moveaxis(weight, 1 if transposed else 0, 0).reshape(weight.shape[transposed], -1)
    return np.maximum(np.gcd.reduce(by_output, 1), 1)


def _to_small_weights(integers: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Round weights, float64 integers, to multiples of one unit per output channel that fit SMALL_WEIGHT_BITS bits."""
    largest = integers.abs().amax((0, 2, 3) if transposed else (1, 2, 3)).clamp_min(1)
    most = 2 ** (SMALL_WEIGHT_BITS - 1) - 1
    unit = (largest / most).ceil()
    unit = torch.from_numpy(_broadcast_to_weight(unit.numpy(), transposed))
    return (integers / unit).round().clamp(-most, most) * unit


def _check_exact(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Raise WeightsError unless the convolution has the geometry that `IntegerNet` runs."""
    side, stride = module.kernel_size[0], module.stride[0]
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    output = (stride - 1,) * 2 if isinstance(module, nn.ConvTranspose2d) else (0, 0)
    expected = ((side, side), (stride, stride), (side // 2, side // 2), (1, 1), 1, "zeros")
    if geometry != expected or side % 2 == 0 or module.output_padding != output:
        raise WeightsError(f"integer network: cannot run {module} exactly")


def _slope_shift(module: nn.Module) -> int:
    """Return the slope_shift of a ReLU or leaky ReLU whose slope is a power of two, 0 for anything else."""
    if isinstance(module, nn.ReLU):
        return 63  # any negative sum, under 2**52, becomes 0
    if isinstance(module, nn.LeakyReLU) and 2.0**-52 <= module.negative_slope < 1:
        mantissa, exponent = np.frexp(module.negative_slope)
        return 1 - int(exponent) if mantissa == 0.5 else 0
    return 0


def shift_round(x: np.ndarray, bits: int) -> np.ndarray:
    """Return floor(x / 2**bits + 1/2), computed exactly.

    Args:
        x: int64, any shape.
        bits: 1 or more.
    """
    out = x + (1 << (bits - 1))
    out >>= bits
    return out
