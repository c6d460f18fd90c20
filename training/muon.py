"""The optimizer: Muon for matrices (Jordan et al. 2024), AdamW for embeddings, router and norms.

It keeps fp32 masters; the model itself holds bf16 copies, in the last steps quantized ones, so
that gradients are those of the shipped weights (straight-through estimation).
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from model import MoEModel
from quantize import bits_of, fake_quantize
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerOptions:
    """Learning rates at the peak, momenta and decay."""

    muon_lr: float = 6e-3
    adam_lr: float = 3e-3
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1


@dataclass
class Group:
    """Weights of one shape and one treatment, their masters and moments stacked."""

    weights: list[nn.Parameter]
    bits: int | None
    muon: bool
    master: Tensor
    first: Tensor
    second: Tensor | None

    def gradient(self) -> Tensor:
        """Return the stacked gradients in fp32 and drop them from the weights."""
        gradients = [weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return torch.stack([gradient for gradient in gradients if gradient is not None]).float()


def orthogonalise(update: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices, by five Newton-Schulz steps in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x


class Optimizer:
    """Owns the masters and the moments; `step` updates them and rewrites the model's weights."""

    def __init__(self, model: MoEModel, options: OptimizerOptions) -> None:
        """Stack the model's weights by shape and copy them into fp32 masters."""
        self.options = options
        self.count = 0
        members: dict[tuple[object, ...], list[nn.Parameter]] = defaultdict(list)
        for name, weight in model.named_parameters():
            muon = weight.ndim == 3 or (weight.ndim == 2 and "self_attn" in name)
            members[weight.shape, bits_of(name, weight.ndim), muon].append(weight)
        self.groups = []
        for (_, bits, muon), weights in members.items():
            master = torch.stack([weight.detach().float() for weight in weights])
            second = None if muon else torch.zeros_like(master)
            first = torch.zeros_like(master)
            kept_bits = bits if isinstance(bits, int) else None
            self.groups.append(Group(weights, kept_bits, bool(muon), master, first, second))

    @torch.no_grad()
    def step(self, rate: float, quantized: bool) -> None:
        """Update every weight; `rate` scales the peak learning rates. Gradients are dropped."""
        self.count += 1
        for group in self.groups:
            if group.muon:
                self._muon(group, rate * self.options.muon_lr)
            else:
                self._adam(group, rate * self.options.adam_lr)
        self.write_back(quantized)

    @torch.no_grad()
    def write_back(self, quantized: bool) -> None:
        """Rewrite the model's weights from the masters, as bf16 or as they will be quantized."""
        for group in self.groups:
            copies = group.master.to(group.weights[0].dtype)
            if quantized and group.bits is not None:
                copies = fake_quantize(copies, group.bits)
            for weight, copy in zip(group.weights, copies, strict=True):
                weight.copy_(copy)

    def _muon(self, group: Group, lr: float) -> None:
        gradient = group.gradient()
        group.first.lerp_(gradient, 1 - self.options.momentum)
        update = orthogonalise(gradient.lerp(group.first, self.options.momentum))
        size = 0.2 * max(update.shape[-2:]) ** 0.5
        group.master.mul_(1 - lr * self.options.weight_decay).sub_(update, alpha=lr * size)

    def _adam(self, group: Group, lr: float) -> None:
        assert group.second is not None
        gradient = group.gradient()
        gradient *= (1.0 / gradient.norm().clamp_min(1e-6)).clamp_max(1.0)
        fast, slow = self.options.betas
        group.first.lerp_(gradient, 1 - fast)
        group.second.lerp_(gradient.square(), 1 - slow)
        mean = group.first / (1 - fast**self.count)
        spread = (group.second / (1 - slow**self.count)).sqrt() + 1e-8
        group.master.sub_(mean / spread * lr)
