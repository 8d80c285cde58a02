"""Stage 4: each block gets a candidate or keeps softmax, by what the exchange costs in loss and saves in operations.

Measured for every block and candidate: the mean squared distance of the velocity to the teacher's on probes when this
block alone is exchanged. The sum of these over the blocks stands for the loss of exchanging them together (it leaves
out how the errors of blocks add up or cancel), and is made least within the budget, exactly.
"""

import json
import math
from typing import Dict, List, Sequence, Tuple

import numpy as np
from torch import nn

from . import candidates, model
from .distil import read_maps
from .job import Job, generator, write_json

UNITS = 20000  # steps of cost that the budget is divided into
PROBES_AT_ONCE = 4


def run(job: Job) -> None:
    options = job.options
    folder = job.claim("choose", after="distil", probes=options.probes, seed=options.seed)
    if (folder / "choice.json").exists() and read_choice(job)["budget"] == options.budget:
        return
    transformer, clips = model.load_transformer(job), model.load_clips(job)
    probes = draw_probes(job, clips)
    goals = model.velocities(transformer, probes)
    losses = measure(job, transformer, probes, goals)
    T, D = model.tokens(transformer, clips.latents), model.head_width(transformer)
    shares = {name: candidates.share(name, T, D) for name in (*options.candidates, candidates.SOFTMAX)}
    chosen = knapsack([{**block, candidates.SOFTMAX: 0.0} for block in losses], shares, options.budget)
    exchange(job, transformer, chosen)
    teacher, _ = model.losses(goals, goals, probes)
    flow, distance = model.losses(model.velocities(transformer, probes), goals, probes)
    choice = {
        "budget": options.budget, "blocks": chosen, "tokens": T, "shares": shares, "measured": losses,
        "share": sum(shares[name] for name in chosen) / len(chosen),
        "teacher_loss": teacher, "loss": flow, "distance": distance,
    }  # fmt: skip
    write_json(folder / "choice.json", choice)
    job.log(
        f"choose: {' '.join(chosen)}; {100 * choice['share']:.1f} % of softmax attention's operations; loss {flow:.4f},"
        f" the teacher's {teacher:.4f}"
    )


def draw_probes(job: Job, clips):
    return clips.probes(job.options.probes, PROBES_AT_ONCE, generator(job.options.seed, 3))


def read_choice(job: Job) -> dict:
    file = job.folder("choose") / "choice.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: run the stage choose first")
    return json.loads(file.read_text())


def exchange(job: Job, transformer: nn.Module, chosen: Sequence[str]) -> None:
    """Gives each block the attention chosen, with the maps that were fitted for it."""
    blocks = [candidates.parse(name) for name in chosen]
    maps = [read_maps(job, i)[name] if block else {} for i, (name, block) in enumerate(zip(chosen, blocks))]
    model.install(transformer, blocks, maps)


def measure(job: Job, transformer: nn.Module, probes, goals) -> List[Dict[str, float]]:
    """For each block and candidate, the distance that exchanging it alone makes; kept as soon as it is known."""
    file = job.folder("choose") / "measured.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    blocks, names = len(transformer.blocks), job.options.candidates
    for i in range(blocks):
        for name in names:
            key = f"{i} {name}"
            if key not in known:
                exchange(job, transformer, [name if k == i else candidates.SOFTMAX for k in range(blocks)])
                known[key] = model.losses(model.velocities(transformer, probes), goals, probes)[1]
                write_json(file, known)
        job.progress("choose: blocks measured", i + 1, blocks)
    return [{name: known[f"{i} {name}"] for name in names} for i in range(blocks)]


def knapsack(losses: Sequence[Dict[str, float]], shares: Dict[str, float], budget: float) -> List[str]:
    """One name a block, the sum of losses[block][name] least while the mean of shares[name] stays within budget.

    Exact but for rounding costs up to 1 / UNITS of the budget: best[c] is the least sum at cost c or below, block by
    block.
    """
    total = budget * len(losses)
    costs = {name: math.ceil(share / total * UNITS - 1e-9) for name, share in shares.items()}
    best, picks = np.zeros(UNITS + 1), []
    for block in losses:
        options: List[Tuple[str, np.ndarray]] = []
        for name, loss in block.items():
            sums = np.full(UNITS + 1, np.inf)
            if math.isfinite(loss) and costs[name] <= UNITS:
                sums[costs[name] :] = best[: UNITS + 1 - costs[name]] + loss
            options.append((name, sums))
        picks.append((options, np.argmin([sums for _, sums in options], axis=0)))
        best = np.min([sums for _, sums in options], axis=0)
    if not math.isfinite(best[UNITS]):
        least = sum(min(shares[name] for name in block) for block in losses) / len(losses)
        raise ValueError(f"--budget {budget} is less than the cheapest candidates take, {least:.4f}")
    left, chosen = UNITS, []
    for options, pick in reversed(picks):
        name = options[pick[left]][0]
        chosen.append(name)
        left -= costs[name]
    return chosen[::-1]
