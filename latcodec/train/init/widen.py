r"""A trained context hyperprior with more latents, residual blocks or wider contexts, which at first does what it did.

python -m latcodec.train.init.widen weights/hyperprior-context.safetensors start.pt -O latent=288 \
    -O blocks=0,1,1 PICTURES
latcodec train --codec hyperprior-context --init start.pt ...

What the new latents say is fitted: the correction of the first stage of synthesis that takes most of the error of a
picture away is found by gradient, for some hundred crops, and predicted from the features of analysis by reduced-rank
regression (Izenman 1975): its leading directions are the taps of synthesis, the regression those of analysis.
"""

import math
from dataclasses import asdict
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.backends.hyperprior_context.quadtree import NUM_STEPS
from latcodec.errors import OptionError, WeightsError
from latcodec.nn.layers import GDN, ResidualBottleneck
from latcodec.nn.symbol_costs import with_symbol_costs
from latcodec.train import data
from latcodec.train.init.command import StartRequest, run_command
from latcodec.train.init.source import read_source
from latcodec.train.settings import config_of

CODEC = "hyperprior-context"
CROPS, SIDE_PX, BATCH = 96, 256, 4
TRAINED_STEPS = 240
LEARNING_RATE = 1e-3
LOUDNESS = 0.1  # of the new latents' first taps: a direction of descent, not a solution
RIDGE = 1e-3
QUIET = 0.1  # how far what has nothing to say yet starts from 0, beside what starts anew
MAIN = (nn.Conv2d, nn.ConvTranspose2d, GDN)
GROWING = {"latent", "blocks", "context_width"}


@torch.no_grad()
def widened(old: ContextHyperprior, config: Config) -> ContextHyperprior:
    """A network of `config` that does what `old` does; its new latents still say nothing. Raises OptionError."""
    before, kept = asdict(old.config), asdict(config)
    changed = {name for name in kept if kept[name] != before[name]}
    fewer = any(a < b for a, b in zip(config.blocks, old.config.blocks, strict=True))
    if changed - GROWING or fewer or any(kept[name] < before[name] for name in GROWING - {"blocks"}):
        raise OptionError(f"only {', '.join(sorted(GROWING))} can grow")
    if config.details or old.config.details:
        raise OptionError("widen the base alone, details=0: they end its rates below the highest")
    new, count, total = ContextHyperprior(config), old.config.latent, config.latent
    for part in ("g_a", "g_s"):
        layers = [[m for m in getattr(network, part) if isinstance(m, MAIN)] for network in (old, new)]
        for was, now in zip(*layers, strict=True):
            for name, value in now.state_dict().items():
                source = was.state_dict()[name]
                value.zero_()
                value[tuple(slice(side) for side in source.shape)] = source
        for was, now in zip(*(_blocks(getattr(network, part)) for network in (old, new)), strict=True):
            for one, other in zip(was, now, strict=False):  # those of `now` that are left do nothing yet
                other.load_state_dict(one.state_dict())
    for was, now in zip(old.h_a, new.h_a, strict=True):
        for name, value in now.named_parameters():
            source = dict(was.named_parameters())[name]
            value.zero_()
            value[tuple(slice(side) for side in source.shape)] = source
    both = torch.cat([torch.arange(count), total + torch.arange(count)])  # means, then log scales
    new.h_s[0].load_state_dict(old.h_s[0].state_dict())
    new.h_s[2].weight[:, :count], new.h_s[2].bias[:count] = old.h_s[2].weight, old.h_s[2].bias
    new.h_s[4].weight.mul_(QUIET)
    new.h_s[4].weight[both] = 0
    new.h_s[4].weight[both, :count], new.h_s[4].bias[both] = old.h_s[4].weight, old.h_s[4].bias
    for step in range(1, NUM_STEPS):
        was, now = ([getattr(n, part)[step - 1] for part in ("from_seen", "from_first", "corrections")]
                    for n in (old, new))  # fmt: skip
        seen = torch.cat([k * total + torch.arange(count) for k in range(step)])
        width = was[0].out_channels  # more of them begin at random, unheard
        now[0].weight[:width] = now[1].weight[:width] = now[2].weight[:] = 0
        now[0].weight[:width, seen], now[0].bias[:width] = was[0].weight, was[0].bias
        now[1].weight[:width, both], now[1].bias[:width] = was[1].weight, was[1].bias
        now[2].weight[both, :width], now[2].bias[both] = was[2].weight, was[2].bias
    new.prices.copy_(old.prices)
    for name, value in new.named_parameters():
        if name.startswith(("y_", "context_log", "mean_log", "scale_")):
            value[..., :count] = old.get_parameter(name)
        elif name.startswith(("z_", "stage_", "look_")):
            value.copy_(old.get_parameter(name))
    for was, now in zip(_branch_gains(old), _branch_gains(new), strict=True):
        for one, other in zip(was, now, strict=False):
            other.copy_(one)
    return new


def _branch_gains(network: ContextHyperprior) -> list[list[Tensor]]:
    """The gains of the branches of each stage of g_a, then of g_s, in order; none if those do not know the rate."""
    gains, blocks = iter(getattr(network, "branch_gain", ())), network.config.blocks
    return [list(islice(gains, n)) for n in (*blocks, *reversed(blocks))]


def _blocks(part: nn.Sequential) -> list[list[ResidualBottleneck]]:
    """The residual blocks of each stage of g_a or g_s, in order."""
    stages: list[list[ResidualBottleneck]] = [[]]
    for layer in part:
        if isinstance(layer, ResidualBottleneck):
            stages[-1].append(layer)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            stages.append([])
    return stages


def _through(network: ContextHyperprior) -> Tensor:
    """What the gains of both sides make of latents at the highest rate, [C, 1, 1]."""
    return (network.y_log_gain[-1] + network.y_log_inverse_gain[-1]).exp()[:, None, None]


def _highest(network: ContextHyperprior) -> dict[str, Tensor]:
    return network.at_rate(torch.ones(1))


def wanted_change(network: ContextHyperprior, x: Tensor) -> tuple[Tensor, Tensor]:
    """For x float32 [B, 3, H, W]: features before the last stage of analysis; the descent direction of the squared
    error at the output of the first stage of synthesis [B, c, H/8, W/8]."""
    with torch.no_grad():
        features = network.features(x, _highest(network))
        first = network.g_s[0](network.g_a[-1](features) * _through(network))
    first.requires_grad_()
    error = (network.synthesis_after_first(first, _highest(network)) - x).square().sum()
    return features, -torch.autograd.grad(error, first)[0]


@torch.no_grad()
def fit_new_latents(network: ContextHyperprior, count: int, crops: list[Tensor], say=print) -> None:
    """Give the latents from `count` on something to say, fitted on crops float32 [B, 3, H, W]; set their gains."""
    last, first = network.g_a[-1], network.g_s[0]
    kernel, wanted = last.kernel_size[0], last.out_channels - count
    gram = cross = weight = None
    mean_x = mean_t = 0
    for x in crops:
        with torch.enable_grad():
            features, change = wanted_change(network, x)
        rows = F.unfold(features, kernel, padding=kernel // 2, stride=2).transpose(1, 2).flatten(0, 1).double()
        targets = F.pixel_unshuffle(change, 2).flatten(2).transpose(1, 2).flatten(0, 1).double()
        gram = rows.T @ rows + (0 if gram is None else gram)
        cross = rows.T @ targets + (0 if cross is None else cross)
        mean_x, mean_t, weight = mean_x + rows.sum(0), mean_t + targets.sum(0), (weight or 0) + len(rows)
    mean_x, mean_t = mean_x / weight, mean_t / weight
    gram, cross = gram / weight - torch.outer(mean_x, mean_x), cross / weight - torch.outer(mean_x, mean_t)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    regression = torch.linalg.solve(gram, cross)  # [window, 4 c]
    explained, directions = torch.linalg.eigh(regression.T @ cross)
    directions = directions.flip(1)[:, :wanted]
    say(f"{wanted} directions hold {float(explained[-wanted:].sum() / explained.sum()):.3f} of what can be predicted")
    taps = (regression @ directions).T.reshape(wanted, -1, kernel, kernel)
    last.weight[count:] = taps.float()
    last.bias[count:] = -(mean_x @ (regression @ directions)).float()
    start = kernel // 2
    first.weight[count:, :, start : start + 2, start : start + 2] = directions.T.reshape(
        wanted, first.out_channels, 2, 2
    ).float()
    _train_new(network, count, crops, say)
    _set_gains(network, count, crops[0])


@torch.enable_grad()
def _train_new(network: ContextHyperprior, count: int, crops: list[Tensor], say) -> None:
    """What the new latents say and how they are heard, by the squared error of latents that are not rounded."""
    trained = [network.g_a[-1].weight, network.g_a[-1].bias, network.g_s[0].weight]
    first = network.g_s[0].weight
    with torch.no_grad():
        first[count:] *= LOUDNESS
    for p in trained:
        p.requires_grad_()
    optimizer, rate = torch.optim.Adam(trained, lr=LEARNING_RATE, betas=(0.9, 0.99)), _highest(network)
    for step in range(TRAINED_STEPS):
        x = crops[step % len(crops)]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / TRAINED_STEPS)
        shown = network.synthesis(network.analysis(x, rate) * _through(network), rate)
        error = (shown - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        for p in trained:
            p.grad[:count] = 0
        optimizer.step()
        if step % 20 == 0:
            say(f"step {step}: {-10 * math.log10(error.item()):.2f} dB")
    network.requires_grad_(False)


def _set_gains(network: ContextHyperprior, count: int, x: Tensor) -> None:
    """Steps of the new latents cost as much error as those of the others do; their prior is as wide as they are."""
    rate = _highest(network)
    y = network.analysis(x, rate)
    start = y * network.y_log_gain[-1].exp()[:, None, None]
    inverse = network.y_log_inverse_gain[-1].exp()[:, None, None]
    before = network.synthesis(start * inverse, rate)
    energy = []
    for channel in range(y.shape[1]):  # error of a step of the size that the channel's own spread has
        moved = start.clone()
        size = y[:, channel].std() * 0.2
        moved[:, channel] += torch.randn_like(moved[:, channel]) * size * network.y_log_gain[-1, channel].exp()
        after = network.synthesis(moved * inverse, rate)
        energy.append(((after - before).square().mean() / size.square()).sqrt())
    energy = torch.stack(energy)  # of one unit of y
    old_steps = (-network.y_log_gain[:, :count]).exp() * energy[:count]
    typical = old_steps.square().mean(1, keepdim=True).sqrt()
    gains = (energy[count:] / typical).log()
    std = y[:, count:].std((0, 2, 3)).clamp_min(1e-3).log()
    network.y_log_gain[:, count:] = gains
    network.y_log_inverse_gain[:, count:] = -gains
    network.y_log_std[count:] = std
    network.mean_log_gain[:, count:] = gains + std
    network.scale_offset[:, count:] = gains + std
    network.context_log_gain[:, count:] = -gains - std


def start(request: StartRequest) -> ContextHyperprior:
    """Return the network of a request, wider as its options say, its new latents fitted to pictures.

    Raises:
        WeightsError: The source is not of this codec.
        OptionError: The options change what cannot grow.
    """
    source = read_source(request.source)
    if source.codec != CODEC:
        raise WeightsError(f"{request.source}: weights of {source.codec}, not of {CODEC}")
    base_alone = (("details", "0"),)
    old = ContextHyperprior(config_of(CODEC, Config, source.config, base_alone))
    tensors = with_symbol_costs(source.tensors, old.state_dict())
    old.load_state_dict({k: v.float() for k, v in tensors.items() if k in old.state_dict()})
    network = widened(old, config_of(CODEC, Config, source.config, (*base_alone, *request.options)))
    network.requires_grad_(False)
    if network.config.latent > old.config.latent:
        fit_new_latents(network, old.config.latent, _batches(list(request.pictures)))
    return network


def _batches(paths: list[str]) -> list[Tensor]:
    """Crops of pictures, float32 [B, 3, s, s] in 0..1 each."""
    pictures = list(islice(data.sample(paths, CROPS, SIDE_PX), CROPS))
    batches = []
    for number in range(math.ceil(len(pictures) / BATCH)):
        crops, _ = data.Crops(pictures[number * BATCH : (number + 1) * BATCH], 0).batch(number, BATCH, SIDE_PX)
        batches.append(torch.from_numpy(crops).float() / 255)
    return batches


if __name__ == "__main__":
    run_command(CODEC, start, __doc__)
