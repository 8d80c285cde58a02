"""The optimizer of all stages, its learning rate over a stage, and the average of the weights that is kept."""

import math

import torch
from stage import DEVICE


def rate(fraction: float, warmup: float = 0.02) -> float:
    """Learning-rate factor: linear up, then flat, then linear down to zero over the last 60 %."""
    return min(1.0, fraction / warmup) * min(1.0, max(0.0, (1 - fraction) / 0.6))


class Optimizer:
    """Muon (orthogonalised momentum, Jordan et al. 2024) for matrices and convolutions, AdamW for the rest."""

    def __init__(self, matrices, others, matrix_lr=2e-3, lr=1e-3):
        self.matrices, self.matrix_lr, self.lr = list(matrices), matrix_lr, lr
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        by_shape: dict = {}
        for i, p in enumerate(self.matrices):
            by_shape.setdefault(p.flatten(1).shape, []).append(i)
        self.alike = list(by_shape.values())
        self.adam = torch.optim.AdamW(list(others), lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=DEVICE == "cuda")

    def state_dict(self):
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        for mine, saved in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])

    def parameters(self):
        return self.matrices + [p for group in self.adam.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, factor: float):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.lr * factor
        self.adam.step()
        gradients = [p.grad for p in self.matrices]
        torch._foreach_lerp_(self.momentum, gradients, 0.05)
        updates = list(torch._foreach_lerp(gradients, self.momentum, 0.95))
        for rows in self.alike:
            whole = orthogonalise(torch.stack([updates[i].flatten(1) for i in rows]))
            whole *= 0.2 * math.sqrt(max(whole.shape[1:])) * self.matrix_lr * factor
            for i, update in zip(rows, whole.float(), strict=True):
                updates[i] = update.view(self.matrices[i].shape)
        torch._foreach_mul_(self.matrices, 1 - 0.01 * self.matrix_lr * factor)
        torch._foreach_sub_(self.matrices, updates)
        for p in self.parameters():
            p.grad = None


def orthogonalise(g):
    """Newton-Schulz iteration towards the nearest orthogonal matrices, [n, rows, columns]."""
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).bfloat16()
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Average:
    """Exponential moving average of tensors, warmed up."""

    def __init__(self, tensors: dict, decay=0.999):
        self.live, self.decay, self.count = tensors, decay, 0
        self.mean = {name: t.detach().clone() for name, t in tensors.items()}

    @torch.no_grad()
    def update(self):
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.mean.values()), [t.detach() for t in self.live.values()], 1 - decay)

    def state_dict(self):
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]
        for name, value in state["mean"].items():
            self.mean[name].copy_(value)
