"""The small networks that decide bits, evaluated in exact integers.

Weights and activations are integers carried in float64, every partial sum stays under 2**53, and each layer ends in a
rounding, so neither device, thread count, summation order, memory format nor library version can change a result: an
integer sum has one value. Activations are fixed point with `FRACTION_BITS` bits after the point; a layer's weights have
`shift` of them, so one layer is floor(sum * 2**-shift + 1/2), clamped to +-LIMIT. All factors are powers of two, which
float64 applies exactly.

Source: the idea is Balle, Johnston, Minnen 2019, "Integer networks for data compression with latent-variable models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from latcodec.errors import WeightsError

FRACTION_BITS = 12  # of activations
WEIGHT_BITS = 16  # of the largest weight of a layer, its sign included
SMALL_BITS = 8  # of the largest weight of each output channel, where a layer is to be small
LIMIT = 2**23 - 1  # of activations: +-2048
BAND = 2**11  # about how many positions are computed at once: torch gathers all that each of them sees
_EXACT = 2**52  # one bit under float64's 2**53, for the half that rounding adds


@dataclass(frozen=True)
class Layer:
    """One convolution and what follows it.

    transposed: a transposed convolution. weight: float64 tensor of integers, [out, in, k, k], or [in, out, k, k] if
    transposed; odd kernel, padding k // 2. bias: float64 [out], integers at scale 2**(shift + FRACTION_BITS).
    slope_shift: a leaky ReLU with slope 2**-slope_shift follows; 0 means none.
    """

    transposed: bool
    stride: int
    weight: torch.Tensor
    bias: torch.Tensor
    shift: int
    slope_shift: int


class IntegerNet:
    """A sequence of layers; build it with `from_arrays` or `quantise`."""

    def __init__(self, layers: list[Layer]):
        for number, layer in enumerate(layers):
            axes = (0, 2, 3) if layer.transposed else (1, 2, 3)
            largest = layer.weight.abs().sum(axes).max().item() * LIMIT + layer.bias.abs().max().item()
            if largest * 2 >= _EXACT:
                raise WeightsError(f"integer network: layer {number} could reach {largest:.3g}, over 2**51")
        self.layers = layers

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the network: integers [C, h, w] -> int64 [C', h', w'], both fixed point with FRACTION_BITS.

        It goes through bands of rows, each with all that its outputs see, so that only one of them is held as floats.
        """
        height, reach, times = x.shape[1], 0, 1
        for layer in self.layers:
            times *= layer.stride if layer.transposed else 1
            reach += -(-(layer.weight.shape[-1] // 2) // times)  # rows of x, or a little more than it sees
        if any(layer.stride > 1 and not layer.transposed for layer in self.layers):
            return self._run(x)
        rows = max(4, BAND // max(1, times**2 * x.shape[2]))
        if rows >= height:
            return self._run(x)
        out = None
        for top in range(0, height, rows):
            first, end = max(0, top - reach), min(height, top + rows)
            band = self._run(x[:, first : min(height, end + reach)])
            if out is None:
                out = np.empty((len(band), times * height, band.shape[2]), np.int64)
            out[:, times * top : times * end] = band[:, times * (top - first) : times * (end - first)]
        return out

    def _run(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            h = torch.from_numpy(np.ascontiguousarray(x)).to(torch.float64, copy=True).clamp_(-LIMIT, LIMIT)[None]
            for layer in self.layers:
                padding = layer.weight.shape[-1] // 2
                if layer.transposed:
                    h = F.conv_transpose2d(h, layer.weight, layer.bias, layer.stride, padding, layer.stride - 1)
                else:
                    h = F.conv2d(h, layer.weight, layer.bias, layer.stride, padding)
                h = h.round_()  # absorbs an inexact algorithm: the true value is an integer
                if layer.slope_shift:
                    h = torch.maximum(h, h * 2.0**-layer.slope_shift)
                h = h.mul_(2.0**-layer.shift).add_(0.5).floor_().clamp_(-LIMIT, LIMIT)
            return h[0].to(torch.int64).numpy()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays to store: per layer n, "n.weight" int16, "n.bias" int64 and "n.kind" int32 [4]; weights that in each
        output channel are multiples of a number, which fit 8 bits, are int8, to be multiplied by it, "n.unit", uint16
        [out]; in older files by 2**"n.up", uint8."""
        arrays = {}
        for n, layer in enumerate(self.layers):
            weight = layer.weight.numpy().astype(np.int32)
            unit = _common_divisor(weight, layer.transposed)
            small = weight // _along(unit, layer.transposed)
            is_small = np.array_equal(small, small.astype(np.int8))
            if is_small:
                arrays[f"{n}.unit"] = unit.astype(np.uint16)
            arrays[f"{n}.weight"] = small.astype(np.int8) if is_small else weight.astype(np.int16)
            arrays[f"{n}.bias"] = layer.bias.numpy().astype(np.int64)
            arrays[f"{n}.kind"] = np.array([layer.transposed, layer.stride, layer.shift, layer.slope_shift], np.int32)
        return arrays

    def to_floats(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Parameters of the float layers that these ones approximate, float32: NAME.weight and NAME.bias of each."""
        floats = {}
        for name, layer in zip(names, self.layers, strict=True):
            floats[f"{name}.weight"] = (layer.weight * 2.0**-layer.shift).float()
            floats[f"{name}.bias"] = (layer.bias * 2.0 ** -(layer.shift + FRACTION_BITS)).float()
        return floats

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> IntegerNet:
        """Rebuild from `to_arrays`; raises WeightsError if something is missing or could overflow."""
        layers = []
        try:
            for n in range(sum(name.endswith(".kind") for name in arrays)):
                transposed, stride, shift, slope_shift = (int(v) for v in arrays[f"{n}.kind"])
                weight, bias = (
                    torch.from_numpy(arrays[f"{n}.{name}"].astype(np.float64)) for name in ("weight", "bias")
                )
                unit = arrays[f"{n}.unit"] if f"{n}.unit" in arrays else 2.0 ** arrays.get(f"{n}.up", np.zeros(1))
                weight *= torch.from_numpy(_along(np.asarray(unit, np.float64), bool(transposed)))
                layers.append(Layer(bool(transposed), stride, weight, bias, shift, slope_shift))
        except KeyError as error:
            raise WeightsError(f"integer network: {error} is missing") from None
        return cls(layers)


def quantise(network: nn.Sequential, small: bool = False) -> IntegerNet:
    """Turn a float network of convolutions, transposed convolutions and leaky ReLUs into an IntegerNet.

    small: weights of 8 bits times a number of each output channel, which take half the room in a file.
    Raises WeightsError for any other layer, or a slope that is not a power of two.
    """
    layers: list[Layer] = []
    for module in network:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            _check(module)
            weight = module.weight.detach().double()
            largest = weight.abs().max().item() or 1.0  # a layer of zeros still has its bias
            shift = WEIGHT_BITS - 1 - int(np.ceil(np.log2(largest + 1e-12)))
            bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach()
            transposed = isinstance(module, nn.ConvTranspose2d)
            integers = torch.round(weight * 2.0**shift).clamp(-(2.0**15), 2.0**15 - 1)
            layers.append(
                Layer(
                    transposed,
                    module.stride[0],
                    _rounded(integers, transposed) if small else integers,
                    torch.round(bias.double() * 2.0 ** (shift + FRACTION_BITS)),
                    shift,
                    0,
                )
            )
        elif (slope_shift := _slope_shift(module)) and layers and not layers[-1].slope_shift:
            last = layers.pop()
            layers.append(Layer(last.transposed, last.stride, last.weight, last.bias, last.shift, slope_shift))
        else:
            raise WeightsError(f"integer network: cannot run {module} exactly")
    return IntegerNet(layers)


def _along(per_output: np.ndarray, transposed: bool) -> np.ndarray:
    """A value of each output channel, [out], in the shape that multiplies a layer's weights."""
    return per_output[None, :, None, None] if transposed else per_output[:, None, None, None]


def _common_divisor(weight: np.ndarray, transposed: bool) -> np.ndarray:
    """The greatest number that divides all weights of an output channel, int32 [out]; 1 if they are 0."""
    of_outputs = np.moveaxis(weight, 1 if transposed else 0, 0).reshape(weight.shape[transposed], -1)
    return np.maximum(np.gcd.reduce(of_outputs, 1), 1)


def _rounded(integers: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Weights, float64 integers, rounded to multiples of a number of each output channel that fit SMALL_BITS bits."""
    largest = integers.abs().amax((0, 2, 3) if transposed else (1, 2, 3)).clamp_min(1)
    most = 2 ** (SMALL_BITS - 1) - 1
    unit = (largest / most).ceil()
    unit = torch.from_numpy(_along(unit.numpy(), transposed))
    return (integers / unit).round().clamp(-most, most) * unit


def _check(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    side, stride = module.kernel_size[0], module.stride[0]
    plain = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    output = (stride - 1,) * 2 if isinstance(module, nn.ConvTranspose2d) else (0, 0)
    expected = ((side, side), (stride, stride), (side // 2, side // 2), (1, 1), 1, "zeros")
    if plain != expected or side % 2 == 0 or module.output_padding != output:
        raise WeightsError(f"integer network: cannot run {module} exactly")


def _slope_shift(module: nn.Module) -> int:
    """The slope_shift of a ReLU or leaky ReLU, 0 for anything else."""
    if isinstance(module, nn.ReLU):
        return 63  # any negative sum, under 2**52, becomes 0
    if isinstance(module, nn.LeakyReLU) and 2.0**-52 <= module.negative_slope < 1:
        mantissa, exponent = np.frexp(module.negative_slope)
        return 1 - int(exponent) if mantissa == 0.5 else 0
    return 0


def shift_round(x: np.ndarray, bits: int) -> np.ndarray:
    """floor(x / 2**bits + 1/2) of int64 arrays, exactly."""
    out = x + (1 << (bits - 1))
    out >>= bits
    return out
