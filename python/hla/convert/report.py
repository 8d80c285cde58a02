"""Stage 6: report/index.html of the work folder: losses, the choice by block, tuning, clips beside the teacher's."""

import json
import statistics
import time
from html import escape
from typing import Dict, List, Tuple

import torch
from torch import nn

from .. import diffusers as hla_diffusers
from . import figures, model
from .candidates import SOFTMAX
from .choose import read_choice
from .clips import Noisy, full_text
from .distil import read_errors
from .job import Job, generator, replace

STYLE = (
    "body{font:14px sans-serif;max-width:960px;margin:2em auto}td,th{padding:2px 10px;text-align:right}"
    "img{max-width:100%}"
)


def run(job: Job) -> None:
    options = job.options
    result_file = job.folder("tune") / "result.json"
    if not result_file.exists():
        raise FileNotFoundError(f"{result_file} does not exist: run the stage tune first")
    folder = job.claim("report", after="tune", samples=options.samples)
    choice, result = read_choice(job), json.loads(result_file.read_text())
    clips, transformer = model.load_clips(job), model.load_transformer(job)
    speed, sheets = {}, {}
    noisy = clips.probes(1, 1, generator(options.seed, 6))[0]
    for name in ("softmax", "converted"):
        if name == "converted":
            hla_diffusers.load_adapter(transformer, options.output)
        speed[name] = seconds(lambda: model.velocities(transformer, [noisy]), job.device)
        job.log(f"report: one forward with {name} attention, {1000 * speed[name]:.1f} ms")
        if options.samples:
            sheets[name] = figures.sheet(sample(job, transformer, clips))
    page = "\n".join(_sections(job, choice, result, speed, sheets, clips.captions[clips.training :]))
    replace(folder / "index.html", lambda partial: partial.write_text(page))
    job.log(f"report: {folder / 'index.html'}")


def _sections(job: Job, choice: dict, result: dict, speed: dict, sheets: Dict[str, str], captions) -> List[str]:
    teacher = result["teacher_loss"]
    losses = [
        ("teacher, softmax", 0.0, teacher), ("maps fitted", choice["distance"], choice["loss"]),
        ("tuned", result["distance"], result["loss"]),
    ]  # fmt: skip
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(job.options.model.name)}</title><style>{STYLE}</style>",
        f"<h1>{escape(job.options.model.name)} with Hadamard linear attention</h1>",
        f"<p>{choice['tokens']} tokens; self-attention takes {100 * choice['share']:.1f} % of softmax attention's "
        f"operations, maps included. One forward: {1000 * speed['softmax']:.1f} ms with softmax, "
        f"{1000 * speed['converted']:.1f} ms converted, on {job.device.type}.</p>",
        "<h2>Loss on held-out clips</h2>",
        figures.table(
            ["", "distance to the teacher", "flow-matching loss", "times the teacher's"],
            [(name, f"{d:.4f}", f"{loss:.4f}", f"{loss / teacher:.3f}") for name, d, loss in losses],
        ),
        "<h2>The choice</h2>",
        _choice_table(job, choice),
        "<h2>Error of the attention output, by block</h2>",
        figures.curves(_by_candidate(job, choice), "block", "relative squared error"),
        "<h2>Distance to the teacher's velocity when one block is exchanged</h2>",
        figures.curves(
            {n: [(i, block[n]) for i, block in enumerate(choice["measured"])] for n in job.options.candidates},
            "block", "mean squared distance",
        ),
        "<h2>Tuning</h2>",
        figures.curves(_tuning(job), "step", "loss of the step"),
    ]  # fmt: skip
    if sheets:
        parts += ["<h2>Clips from the same noise</h2><ol>"]
        parts += [f"<li>{escape(caption)}</li>" for caption in captions[: job.options.samples]]
        parts += [f"</ol><p>Softmax</p>{sheets['softmax']}<p>Converted</p>{sheets['converted']}"]
    return parts


def _choice_table(job: Job, choice: dict) -> str:
    rows = []
    for i, name in enumerate(choice["blocks"]):
        kept = name == SOFTMAX
        error = "" if kept else f"{read_errors(job, i)[name]:.4f}"
        distance = "" if kept else f"{choice['measured'][i][name]:.5f}"
        rows.append((i, name, f"{100 * choice['shares'][name]:.1f} %", error, distance))
    header = ["block", "attention", "of softmax's operations", "error of its output", "distance, exchanged alone"]
    return figures.table(header, rows)


def _by_candidate(job: Job, choice: dict) -> Dict[str, List[Tuple[float, float]]]:
    errors = [read_errors(job, i) for i in range(len(choice["blocks"]))]
    return {name: [(i, block[name]) for i, block in enumerate(errors)] for name in job.options.candidates}


def _tuning(job: Job) -> Dict[str, List[Tuple[float, float]]]:
    lines = [json.loads(line) for line in (job.folder("tune") / "losses.jsonl").read_text().splitlines()]
    by_step = {step: losses for step, *losses in lines}  # a step that was done again after a cut counts once
    names = ("flow matching", "the teacher's", "distance to the teacher")
    return {name: [(step, losses[i]) for step, losses in sorted(by_step.items())] for i, name in enumerate(names)}


def seconds(call, device: torch.device) -> float:
    """Median of five, after one."""
    times = []
    for _ in range(6):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


@torch.no_grad()
def sample(job: Job, transformer: nn.Module, clips) -> List[torch.Tensor]:
    """Clips [3, T, height, width] for the first captions held out, from noise that depends on the seed alone."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

    settings = model.settings(job)
    scheduler = UniPCMultistepScheduler.from_pretrained(model.part(job, "scheduler"))
    vae = model.load(job, AutoencoderKLWan, "vae")
    mean, std = (
        torch.tensor(values, device=job.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    empty, decoded = full_text(clips.empty.float()), []
    for row in range(clips.training, min(len(clips), clips.training + job.options.samples)):
        text = torch.cat([full_text(clips.text[row : row + 1].float()), empty])
        latents = torch.randn(clips.latents[:1].shape, generator=generator(job.options.seed, 7, row)).to(job.device)
        scheduler.set_timesteps(int(settings["steps"]), device=job.device)
        for t in scheduler.timesteps:
            noisy = Noisy(torch.cat([latents, latents]), t.expand(2).float(), text, latents)
            positive, negative = model.velocity(transformer, noisy).chunk(2)
            guided = negative + settings["guidance"] * (positive - negative)
            latents = scheduler.step(guided, t, latents, return_dict=False)[0]
        decoded.append(vae.decode(latents * std + mean).sample[0].float())
    return decoded
