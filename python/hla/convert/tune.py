"""Stage 5: the exchanged model learns as a whole.

What falls is half the flow-matching loss plus the mean squared distance to the teacher's velocity. Maps are always
trained; of the transformer's weights what --train says. What is kept in the end is the running average of the trained
tensors; low-rank changes are added to the weights they change. Writes the folder hla/ (adapter.py).
"""

import copy
import json
import math
import time
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from .. import diffusers as hla_diffusers
from . import model
from .choose import PROBES_AT_ONCE, exchange, read_choice
from .distil import rate
from .job import Job, generator, replace, write_json

AVERAGE = 0.998  # what the running average keeps in a step
MAPS_FASTER = 3.0  # learning rate of maps against that of weights


def run(job: Job) -> None:
    options = job.options
    choice = read_choice(job)
    folder = job.claim(
        "tune", after="choose", blocks=choice["blocks"], train=options.train, rank=options.lora_rank,
        steps=options.tune_steps, batch=options.batch, rate=options.tune_rate, seed=options.seed,
    )  # fmt: skip
    if (folder / "result.json").exists():
        return
    teacher, clips = model.load_transformer(job), model.load_clips(job)
    student = Student(job, teacher, choice["blocks"])
    state, step = folder / "state.pt", 0
    if state.exists():
        step = student.load_state(torch.load(state, map_location=job.device, weights_only=True))
        job.log(f"tune: goes on at step {step}")
    if options.compile:
        for transformer in (teacher, student.transformer):
            transformer.compile_repeated_blocks(dynamic=False)
    saved = time.monotonic()
    while step < options.tune_steps:
        losses = student.step(clips.batch(options.batch, generator(options.seed, 4, step)), teacher, step)
        step += 1
        if step % 50 == 0 or step == options.tune_steps:
            with (folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps([step, *losses]) + "\n")
            text = "flow {:.4f}, teacher's {:.4f}, distance {:.4f}".format(*losses)
            job.progress("tune: step", step, options.tune_steps, text)
        if time.monotonic() - saved >= options.save_seconds:
            replace(state, lambda partial: torch.save(student.state(step), partial))
            saved = time.monotonic()
    student.take_average()
    student.merge()
    hla_diffusers.save_adapter(student.transformer, options.output, with_weights=student.changed, dtype=torch.bfloat16)
    write_json(folder / "result.json", evaluate(job, teacher, clips))
    state.unlink(missing_ok=True)


def evaluate(job: Job, teacher: nn.Module, clips) -> Dict[str, float]:
    """Losses of what was written, on the probes that the choice was measured on."""
    probes = clips.probes(job.options.probes, PROBES_AT_ONCE, generator(job.options.seed, 3))
    goals = model.velocities(teacher, probes)
    hla_diffusers.load_adapter(teacher, job.options.output)
    flow, distance = model.losses(model.velocities(teacher, probes), goals, probes)
    teacher_loss, _ = model.losses(goals, goals, probes)
    job.log(f"tune: loss {flow:.4f}, {flow / teacher_loss:.3f} times the teacher's {teacher_loss:.4f}")
    return {"loss": flow, "distance": distance, "teacher_loss": teacher_loss}


class LowRank(nn.Module):
    """Of a weight W [O, I]: W + B A with A [r, I], B [O, r] (Hu et al., arXiv 2106.09685), B zero at first."""

    def __init__(self, weight: torch.Tensor, rank: int, seed: torch.Generator):
        super().__init__()
        rows, columns = weight.shape
        start = torch.randn(rank, columns, generator=seed) / math.sqrt(columns)
        self.a = nn.Parameter(start.to(weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


class Student:
    """The exchanged model, the tensors of it that are trained, their optimizer and their average."""

    def __init__(self, job: Job, teacher: nn.Module, blocks: List[str]):
        options = job.options
        self.rate, self.steps = options.tune_rate, options.tune_steps
        self.transformer = copy.deepcopy(teacher)
        exchange(job, self.transformer, blocks)
        self.low_rank: List[nn.Linear] = []
        maps = hla_diffusers.map_tensors(self.transformer)
        weights, self.changed = self._weights(options.train, options.lora_rank, options.seed)
        self.trained = {**maps, **weights}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        groups = [{"params": list(some.values())} for some in (weights, maps) if some]
        for group, factor in zip(groups, [1.0, MAPS_FASTER] if weights else [MAPS_FASTER]):
            group["factor"] = factor
        if not groups:
            raise ValueError("nothing to train: no block was exchanged, and --train maps trains only maps")
        fused = job.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)
        self.average = {name: tensor.detach().clone() for name, tensor in self.trained.items()}

    def _weights(self, train: str, rank: int, seed: int):
        """Parameters trained beside the maps, by name, and the names of the model's own tensors that they change."""
        own = {n: p for n, p in self.transformer.named_parameters() if ".attn1.processor." not in n}
        if train == "all":
            return own, list(own)
        if train == "attention":
            chosen = {name: p for name, p in own.items() if ".attn1." in name}
            return chosen, list(chosen)
        parameters: Dict[str, nn.Parameter] = {}
        changed = []
        if train == "lora":
            for i, (name, layer) in enumerate(self.transformer.named_modules()):
                if isinstance(layer, nn.Linear) and (".attn1." in name or ".ffn." in name):
                    low_rank = LowRank(layer.weight, rank, generator(seed, 5, i))
                    parametrize.register_parametrization(layer, "weight", low_rank)
                    self.low_rank.append(layer)
                    changed.append(name + ".weight")
                    parameters.update({f"{name}.a": low_rank.a, f"{name}.b": low_rank.b})
        return parameters, changed

    def step(self, noisy, teacher: nn.Module, step: int) -> List[float]:
        """One step; the flow-matching losses of student and teacher, and the distance between their velocities."""
        with torch.no_grad():
            goal = model.velocity(teacher, noisy)
        found = model.velocity(self.transformer, noisy)
        flow, distance = F.mse_loss(found, noisy.target), F.mse_loss(found, goal)
        (0.5 * flow + distance).backward()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"] * rate(step, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        keep = min(AVERAGE, (1 + step) / (10 + step))
        live = [tensor.detach() for tensor in self.trained.values()]
        torch._foreach_lerp_(list(self.average.values()), live, 1 - keep)
        return [flow.item(), F.mse_loss(goal, noisy.target).item(), distance.item()]

    def state(self, step: int) -> dict:
        trained = {name: tensor.detach() for name, tensor in self.trained.items()}
        return {"step": step, "trained": trained, "average": self.average, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state(self, state: dict) -> int:
        for name, tensor in self.trained.items():
            tensor.copy_(state["trained"][name])
            self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    @torch.no_grad()
    def take_average(self) -> None:
        for name, tensor in self.trained.items():
            tensor.copy_(self.average[name])

    def merge(self) -> None:
        """Low-rank changes become part of the weights."""
        for layer in self.low_rank:
            parametrize.remove_parametrizations(layer, "weight")
