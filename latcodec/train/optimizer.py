"""Muon for convolution weights, Adam for the rest, behind one optimiser.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": the momentum of a weight
matrix is replaced by its nearest semi-orthogonal matrix (five Newton-Schulz steps). Step 0.2 * sqrt(max dimension):
Liu et al. 2025, "Muon is scalable for LLM training".
"""

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix of a float32 [rows, columns] matrix, to bf16 precision."""
    x = matrix.bfloat16()
    transposed = x.shape[0] > x.shape[1]
    if transposed:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if transposed else x).float()


class MuonAdam(torch.optim.Optimizer):
    """4-D parameters step with Muon (momentum .95, Nesterov), all others with Adam (.9, .99), at one learning rate."""

    def __init__(self, model: nn.Module, lr: float):
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr = group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if p.dim() == 4:
                    momentum = state.setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.05)
                    update = p.grad.lerp(momentum, 0.95).flatten(1)
                    update = orthogonalise(update) * (0.2 * max(update.shape) ** 0.5)
                    p.add_(update.view_as(p), alpha=-lr)
                else:
                    first = state.setdefault("first", torch.zeros_like(p))
                    second = state.setdefault("second", torch.zeros_like(p))
                    count = state["count"] = state.get("count", 0) + 1
                    first.lerp_(p.grad, 0.1)
                    second.lerp_(p.grad.square(), 0.01)
                    scale = (second / (1 - 0.99**count)).sqrt_().add_(1e-8)
                    p.addcdiv_(first, scale, value=-lr / (1 - 0.9**count))
