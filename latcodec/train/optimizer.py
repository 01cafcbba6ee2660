"""Muon for convolution weights, Adam for the rest, behind one optimiser.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": the momentum of a weight
matrix is replaced by its nearest semi-orthogonal matrix (five Newton-Schulz steps). Step 0.2 * sqrt(max dimension):
Liu et al. 2025, "Muon is scalable for LLM training".
"""

import torch
from torch import Tensor, nn

STREAMS = 8  # of CUDA: the matrices of Muon are small and independent


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix of a float32 [rows, columns] matrix, roughly: singular values in 0.7 ... 1.2.

    Each Newton-Schulz step multiplies by a polynomial of the Gram matrix. Those commute, so they are multiplied with
    one another, small as they are, and meet the long matrix once at the end.
    """
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / (x.norm() + 1e-7)
    gram, product = x @ x.T, None
    for _ in range(steps):
        factor = -4.7750 * gram + 2.0315 * gram @ gram
        factor.diagonal().add_(3.4445)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if transposed else x


class MuonAdam(torch.optim.Optimizer):
    """4-D parameters step with Muon (momentum .95, Nesterov), all others with Adam (.9, .99), at one learning rate.

    The learning rate and Adam's counts are tensors on the device and every state exists from the start, so that a step
    can be recorded in a CUDA graph.
    """

    def __init__(self, model: nn.Module, lr: float):
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": lr})
        parameters = self.param_groups[0]["params"]
        for p in parameters:
            if p.dim() == 4:
                self.state[p]["momentum"] = torch.zeros_like(p)
            else:
                self.state[p] |= {"first": torch.zeros_like(p), "second": torch.zeros_like(p)}
                self.state[p]["count"] = torch.zeros((), device=p.device)
        device = parameters[0].device
        self._lr = torch.tensor(lr, dtype=torch.float32, device=device)
        self._streams = [torch.cuda.Stream(device) for _ in range(STREAMS)] if device.type == "cuda" else []

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next step."""
        self.param_groups[0]["lr"] = lr
        self._lr.fill_(lr)

    @torch.no_grad()
    def step(self, closure=None):
        trained = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        matrices = sorted((p for p in trained if p.dim() == 4), key=lambda p: -p.numel())
        if self._streams:
            current = torch.cuda.current_stream()
            for number, stream in enumerate(self._streams):
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    for p in matrices[number :: len(self._streams)]:
                        self._muon(p)
        else:
            for p in matrices:
                self._muon(p)
        for p in trained:
            if p.dim() != 4:
                self._adam(p)
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)

    def _muon(self, p: Tensor) -> None:
        momentum = self.state[p]["momentum"]
        momentum.lerp_(p.grad, 0.05)
        update = p.grad.lerp(momentum, 0.95).flatten(1)
        update = orthogonalise(update) * (0.2 * max(update.shape) ** 0.5)
        p.sub_(update.view_as(p) * self._lr)

    def _adam(self, p: Tensor) -> None:
        first, second, count = (self.state[p][name] for name in ("first", "second", "count"))
        count += 1
        first.lerp_(p.grad, 0.1)
        second.lerp_(p.grad.square(), 0.01)
        scale = (second / (1 - 0.99**count)).sqrt_().add_(1e-8)
        p.sub_((self._lr / (1 - 0.9**count)) * (first / scale))

    def clone_state(self) -> list[dict[str, Tensor]]:
        """A copy of what `restore_state` brings back in place."""
        return [{k: v.clone() for k, v in self.state[p].items()} for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def restore_state(self, saved: list[dict[str, Tensor]]) -> None:
        """Overwrite the state, tensors kept, with a copy that `clone_state` made."""
        for p, state in zip(self.param_groups[0]["params"], saved, strict=True):
            for name, value in state.items():
                self.state[p][name].copy_(value)
