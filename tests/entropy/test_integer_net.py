"""Integer networks against an independent reference in NumPy integers: equality, not closeness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_threads import threads

from latcodec.entropy import integer_net
from latcodec.entropy.integer_net import FRACTION_BITS, LIMIT, IntegerNet, Layer, quantise, shift_round
from latcodec.errors import WeightsError
from latcodec.nn.layers import conv, deconv, leaky

NETWORKS = {
    "conv": lambda: [conv(4, 6)],
    "pointwise": lambda: [conv(5, 9, 1, 1)],
    "deconv": lambda: [deconv(4, 6)],
    "leaky": lambda: [conv(3, 5, 3, 1), leaky(), conv(5, 4, 3, 1), leaky(1), conv(4, 2)],
    "synthesis": lambda: [deconv(6, 8), leaky(), deconv(8, 7), leaky(), conv(7, 10, 1, 1)],
    "large weights": lambda: [conv(4, 6), leaky(), deconv(6, 3)],
}


def network(name: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(*NETWORKS[name]())
    if name == "large weights":
        with torch.no_grad():
            layers[0].weight.mul_(300)  # activations reach the clamp
    return layers.eval()


def fixed_point(shape: tuple[int, ...], seed: int, spread: float = 2.0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, spread, shape)
    return np.rint(x * 2**FRACTION_BITS).astype(np.int64)


def reference(net: IntegerNet, x: np.ndarray) -> np.ndarray:
    """The specification of integer_net, int64 all the way; shares no code with it."""
    x = np.clip(x, -LIMIT, LIMIT)
    for layer in net.layers:
        weight = layer.weight.numpy().astype(np.int64)
        side, stride, pad = weight.shape[-1], layer.stride, weight.shape[-1] // 2
        if layer.transposed:
            h, w = x.shape[1:]
            out = np.zeros((weight.shape[1], stride * (h + side), stride * (w + side)), np.int64)
            for dy in range(side):
                for dx in range(side):
                    part = np.einsum("ihw,io->ohw", x, weight[:, :, dy, dx])
                    out[:, dy : dy + stride * h : stride, dx : dx + stride * w : stride] += part
            out = out[:, pad : pad + stride * h, pad : pad + stride * w]
        else:
            padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))[:, ::stride, ::stride]
            out = np.einsum("ihwyx,oiyx->ohw", windows, weight)
        out = out + layer.bias.numpy().astype(np.int64)[:, None, None]
        if layer.slope_shift:
            # A negative value is divided by 2**(slope_shift + shift) at once: nothing is rounded in between.
            negative = (out + (1 << (layer.shift + layer.slope_shift - 1))) >> (layer.shift + layer.slope_shift)
        else:
            negative = (out + (1 << (layer.shift - 1))) >> layer.shift
        positive = (out + (1 << (layer.shift - 1))) >> layer.shift
        x = np.clip(np.where(out < 0, negative, positive), -LIMIT, LIMIT)
    return x


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_integer_reference(name, seed):
    net = quantise(network(name, seed))
    channels = net.layers[0].weight.shape[0 if net.layers[0].transposed else 1]
    for shape in ((channels, 5, 8), (channels, 1, 1), (channels, 12, 3)):
        x = fixed_point(shape, seed)
        assert np.array_equal(net(x), reference(net, x))


def test_exact_integers():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_((torch.arange(9.0).view(1, 1, 3, 3) - 4) / 8)
        layer.bias.fill_(-0.25)
    net = quantise(nn.Sequential(layer, leaky()))
    assert net.layers[0].weight.flatten().tolist() == [4096 * n for n in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
    assert (net.layers[0].shift, net.layers[0].bias.tolist()) == (15, [-1024 * 2**15])
    x = np.array([[[-3000, -2000, -1000], [0, 1000, 2000]]])
    assert net(x).tolist() == [[[-97, 601, 226], [726, 1726, 226]]]


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_change_nothing(name, monkeypatch):
    net = quantise(network(name))
    channels = net.layers[0].weight.shape[0 if net.layers[0].transposed else 1]
    x = fixed_point((channels, 37, 5), 4)
    whole = net(x)
    monkeypatch.setattr(integer_net, "TILE_POSITIONS", 1)
    ran = []
    monkeypatch.setattr(net, "_run", lambda part, run=net._run: ran.append(part.shape[1]) or run(part))
    assert np.array_equal(net(x), whole)
    tiled = all(layer.transposed or layer.stride == 1 for layer in net.layers)
    assert len(ran) == (10 if tiled else 1) and (not tiled or max(ran) < 37)


def test_equals_the_reference_at_the_limits():
    for name in NETWORKS:
        net = quantise(network(name))
        channels = net.layers[0].weight.shape[0 if net.layers[0].transposed else 1]
        x = np.random.default_rng(1).choice([-LIMIT, LIMIT, 3 * LIMIT, -(2**40)], (channels, 6, 6))
        assert np.array_equal(net(x), reference(net, x))


def test_activations_are_clamped():
    net = quantise(network("large weights"))
    first = IntegerNet(net.layers[:1])
    out = first(np.full((4, 8, 8), LIMIT))
    assert out.max() == LIMIT and out.min() == -LIMIT


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # flags() of torch itself sets a switch for Intel's GPUs
@pytest.mark.parametrize("name", NETWORKS)
def test_threads_and_mkldnn_change_nothing(name):
    net = quantise(network(name))
    channels = net.layers[0].weight.shape[0 if net.layers[0].transposed else 1]
    x = fixed_point((channels, 24, 17), 3)
    results = []
    for count in (1, 2):
        for enabled in (True, False):
            with threads(count), torch.backends.mkldnn.flags(enabled=enabled):
                results.append(net(x))
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", ["conv", "deconv", "leaky", "synthesis"])
def test_close_to_the_float_network(name):
    floats = network(name).double()
    net = quantise(floats)
    channels = net.layers[0].weight.shape[0 if net.layers[0].transposed else 1]
    x = fixed_point((channels, 8, 8), 5)
    # The error that rounding can cause at most, layer by layer: that of the input through the weights' L1 norm, half a
    # unit of each weight times the largest activation, half a unit of the bias and half a unit of the output.
    bound, activations = 0.0, torch.from_numpy(x / 2.0**FRACTION_BITS)[None]
    numbers = iter(net.layers)
    with torch.no_grad():
        for module in floats:
            if isinstance(module, nn.LeakyReLU):
                activations = module(activations)
                continue
            layer = next(numbers)
            axes = (0, 2, 3) if layer.transposed else (1, 2, 3)
            taps = module.weight[:, 0].numel() if layer.transposed else module.weight[0].numel()
            # The largest weight may be cut by one unit where rounding would give 2**15.
            bound = bound * module.weight.abs().sum(axes).max().item()
            bound += taps * 2.0**-layer.shift * (activations.abs().max().item() + bound)
            bound += 2.0 ** -(layer.shift + FRACTION_BITS + 1) + 2.0 ** -(FRACTION_BITS + 1)
            activations = module(activations)
    error = np.abs(net(x) / 2.0**FRACTION_BITS - activations[0].numpy()).max()
    assert error <= bound
    assert error < 2e-3


def test_stored_arrays_give_the_same_network():
    net = quantise(network("synthesis"))
    arrays = net.to_arrays()
    assert {a.dtype.name for a in arrays.values()} == {"int16", "int64", "int32"}
    x = fixed_point((6, 4, 4), 7)
    assert np.array_equal(IntegerNet.from_arrays(arrays)(x), net(x))
    del arrays["1.bias"]
    del arrays["1.weight"], arrays["1.kind"]
    with pytest.raises(WeightsError, match="missing"):
        IntegerNet.from_arrays(arrays)


@pytest.mark.parametrize("name", ["conv", "deconv", "synthesis"])
def test_small_weights_take_half_the_room(name):
    floats = network(name)
    small, large = quantise(floats, small=True), quantise(floats)
    arrays = small.to_arrays()
    kinds = {k: v.dtype.name for k, v in arrays.items() if k.endswith(("weight", "unit"))}
    assert set(kinds.values()) == {"int8", "uint16"}
    channels = small.layers[0].weight.shape[0 if small.layers[0].transposed else 1]
    x = fixed_point((channels, 6, 5), 2)
    assert np.array_equal(IntegerNet.from_arrays(arrays)(x), small(x))
    assert np.array_equal(small(x), reference(small, x))
    for ours, theirs in zip(small.layers, large.layers, strict=True):
        axis = 1 if ours.transposed else 0
        largest = theirs.weight.abs().amax(tuple(i for i in range(4) if i != axis), keepdim=True)
        assert ((ours.weight - theirs.weight).abs() <= (largest / 127 + 1) / 2).all()


@pytest.mark.parametrize("largest", [2.0**15 - 1, 32763.0, 1.0])
def test_small_weights_of_every_size_are_stored(largest):
    weight = torch.zeros(3, 3, 1, 1)  # nothing in the last channel
    weight[0, 0], weight[1, 1] = largest, -largest
    layer = conv(3, 3, 1, 1)
    layer.weight.data.copy_(weight / 2**15)
    net = quantise(torch.nn.Sequential(layer), small=True)
    assert torch.equal(IntegerNet.from_arrays(net.to_arrays()).layers[0].weight, net.layers[0].weight)


def test_files_whose_units_are_powers_of_two_are_read():
    arrays = quantise(network("conv"), small=True).to_arrays()
    layers = [name.removesuffix(".unit") for name in arrays if name.endswith(".unit")]
    for n in layers:
        arrays[f"{n}.up"] = np.arange(len(arrays[f"{n}.unit"]), dtype=np.uint8) % 8
        arrays[f"{n}.unit"] = 2 ** arrays[f"{n}.up"].astype(np.uint16)
    older = {name: value for name, value in arrays.items() if not name.endswith(".unit")}
    x = fixed_point((IntegerNet.from_arrays(arrays).layers[0].weight.shape[1], 6, 5), 2)
    assert layers and np.array_equal(IntegerNet.from_arrays(older)(x), IntegerNet.from_arrays(arrays)(x))


def test_possible_overflow_is_refused():
    weight = torch.full((1, 2**14, 1, 1), 2.0**15)
    for transposed in (False, True):
        layer = Layer(transposed, 1, weight.transpose(0, 1) if transposed else weight, torch.zeros(1), 15, 0)
        with pytest.raises(WeightsError, match="layer 0 could reach"):
            IntegerNet([layer])
    with pytest.raises(WeightsError, match="layer 0 could reach"):
        IntegerNet([Layer(False, 1, torch.ones(1, 1, 1, 1), torch.full((1,), 2.0**52), 15, 0)])
    IntegerNet([Layer(False, 1, weight[:, : 2**10], torch.zeros(1), 15, 0)])


UNSUPPORTED = {
    "tanh": lambda: [conv(2, 3), nn.Tanh()],
    "slope 0.3": lambda: [conv(2, 3), nn.LeakyReLU(0.3)],
    "slope 2": lambda: [conv(2, 3), nn.LeakyReLU(2.0)],
    "activation first": lambda: [leaky(), conv(2, 3)],
    "two activations": lambda: [conv(2, 3), leaky(1), leaky(2)],
    "groups": lambda: [nn.Conv2d(4, 4, 3, 1, 1, groups=2)],
    "dilation": lambda: [nn.Conv2d(4, 4, 3, 1, 1, dilation=2)],
    "no padding": lambda: [nn.Conv2d(4, 4, 3, 1, 0)],
    "reflection": lambda: [nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect")],
    "two strides": lambda: [nn.Conv2d(4, 4, 3, (1, 2), 1)],
    "oblong kernel": lambda: [nn.Conv2d(4, 4, (3, 1), 1, (1, 0))],
    "no output padding": lambda: [nn.ConvTranspose2d(4, 4, 5, 2, 2)],
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_run_exactly_is_refused(name):
    with pytest.raises(WeightsError, match="integer network"):
        quantise(nn.Sequential(*UNSUPPORTED[name]()))


@pytest.mark.parametrize("small", [False, True])
def test_weights_of_zero_leave_the_bias(small):
    zero = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        zero.weight.zero_()
        zero.bias.copy_(torch.tensor([0.25, -3.0]))
    found = quantise(nn.Sequential(zero), small)(fixed_point((3, 4, 5), 2))
    assert np.array_equal(found, np.broadcast_to([[[2**FRACTION_BITS // 4]], [[-3 * 2**FRACTION_BITS]]], (2, 4, 5)))


def test_no_bias_is_a_bias_of_zero():
    torch.manual_seed(0)
    bare = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
    zero = nn.Conv2d(3, 4, 3, 1, 1)
    with torch.no_grad():
        zero.weight.copy_(bare.weight)
        zero.bias.zero_()
    x = fixed_point((3, 4, 4), 0)
    assert np.array_equal(quantise(nn.Sequential(bare))(x), quantise(nn.Sequential(zero))(x))


def test_relu_runs_exactly():
    torch.manual_seed(0)
    first = conv(3, 5, 3, 1)
    x = fixed_point((3, 6, 6), 1)
    plain, rectified = quantise(nn.Sequential(first)), quantise(nn.Sequential(first, nn.ReLU()))
    assert np.array_equal(rectified(x), np.maximum(plain(x), 0))


def test_shift_round_of_halves_and_negatives():
    x = np.array([-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5], np.int64)
    assert shift_round(x, 1).tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]
    assert shift_round(x, 2).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert shift_round(np.array([2**61 + 1, -(2**61) - 1]), 61).tolist() == [1, -1]


@given(st.integers(-(2**61), 2**61), st.integers(1, 60))
def test_shift_round_is_exact(value, bits):
    expected = math.floor((2 * value + 2**bits) // 2 ** (bits + 1))
    assert shift_round(np.array([value], np.int64), bits).tolist() == [expected]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_what_a_network_is_given_stays_as_it_is(dtype):
    x = np.full((3, 4, 5), 2**31 - 1, dtype)
    limited = np.full((3, 4, 5), integer_net.LIMIT, np.int64)
    net = quantise(network("leaky"))
    assert np.array_equal(net(x), net(limited)) and (x == 2**31 - 1).all()
