"""The network with a heavy analysis and a light synthesis."""

import pytest
import torch

from latcodec.backends.hyperprior_context.asymmetric import AsymmetricHyperprior, Config, GatedBlock, loss

SMALL = {"latent": 64, "analysis_width": 64, "analysis_blocks_8": 1, "analysis_blocks_16": 1, "renderer_blocks": 1,
         "hyper_width": 32, "hyper_latent": 32, "context_width": 32, "z_context_width": 16}  # fmt: skip


def network(**changed) -> AsymmetricHyperprior:
    torch.manual_seed(1)
    return AsymmetricHyperprior(Config(**SMALL | changed))


def smooth_pictures(count: int = 4, side: int = 128) -> torch.Tensor:
    coarse = torch.rand(count, 3, side // 16, side // 16, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def test_a_block_is_the_identity_before_training():
    h = torch.randn(2, 16, 5, 7)
    for block in (GatedBlock(16), GatedBlock(16, 1, 2)):
        assert torch.equal(block(h, torch.zeros(1, block.a.out_channels, 1, 1)), h)


def test_training_starts_from_a_block_transform_that_shows_the_picture():
    model, x = network(), smooth_pictures()
    model.start_from_klt(x - 0.5)
    rate = model.at_rate(torch.full((1,), 0.5))
    with torch.no_grad():
        shown = model.synthesis(model.analysis(x, rate), rate)
    error = (shown - x).square().mean()
    assert shown.shape == x.shape
    assert error < 0.02 * (x - x.mean()).square().mean()


def test_the_loss_falls_and_every_parameter_has_a_gradient():
    model, x = network(), smooth_pictures()
    model.start_from_latent_std(model.start_from_klt(x - 0.5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    t = torch.tensor([0.0, 0.3, 0.6, 0.9])
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        value = loss(model, x, t)["loss"]
        value.backward()
        losses.append(value.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_rate_changes_what_blocks_do():
    model, x = network(), smooth_pictures(1)
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, GatedBlock):
                block.b.weight.normal_(std=0.1)
        for knots in model.block_scale.values():
            knots[-1] = 0.05
        low, high = (model.analysis(x, model.at_rate(torch.full((1,), t))) for t in (0.0, 1.0))
    assert not torch.allclose(low, high)


def multiplications(model: torch.nn.Module, size: dict[str, float]) -> float:
    """Multiply-accumulates a pixel of the convolutions of a module; size: share of the pixels, by name of a part."""
    found = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            found += layer.weight.numel() * size[name.split(".")[0]]
    return found


def test_the_synthesis_stays_light():
    model = AsymmetricHyperprior(Config())
    sixteenth, eighth, quarter = 1 / 256, 1 / 64, 1 / 16
    shares = {"blocks_16": sixteenth, "expand": sixteenth, "renderer": quarter, "patches": quarter}
    synthesis = multiplications(model.g_s, shares)
    shares = {"patches": eighth, "blocks_8": eighth, "squares": sixteenth, "blocks_16": sixteenth}
    analysis = multiplications(model.g_a, shares)
    assert synthesis < 15_000
    assert analysis < 60_000


def test_a_renderer_too_narrow_for_its_patches_is_refused():
    with pytest.raises(ValueError, match="renderer_width"):
        Config(renderer_width=32)
