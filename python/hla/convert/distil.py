"""Stage 3: feature maps for every block and candidate, fitted to what the teacher's attention gave (record.py).

A block's candidates are fitted side by side, on the same records in the same order, to the least relative squared error
of the attention output; the records that judge (record.is_judge) then say how large it is. Memory: the records of one
step, and the features of one candidate for them, linear in T. Kept for each block: a safetensors file with tensors
CANDIDATE/PARAMETER, whose metadata has the errors.
"""

import json
from pathlib import Path
from typing import Dict, List, NamedTuple

import torch
from torch import nn

from .. import HadamardAttention
from . import model
from .candidates import parse
from .job import Job, generator, read_tensors, write_tensors
from .record import is_judge, record_file, turn

CACHE = 4 << 30  # bytes of records that are kept on the device


def run(job: Job) -> None:
    options = job.options
    folder = job.claim(
        "distil", after="record", candidates=list(options.candidates), steps=options.distil_steps,
        batch=options.distil_batch, rate=options.distil_rate, seed=options.seed,
    )  # fmt: skip
    blocks = count_blocks(job)
    for i in range(blocks):
        if maps_file(folder, i).exists():
            continue
        fitted, errors = fit(job, Records(job, i), i)
        tensors = {f"{name}/{key}": x for name, maps in fitted.items() for key, x in maps.state_dict().items()}
        write_tensors(maps_file(folder, i), tensors, errors=json.dumps(errors))
        job.log(f"distil: block {i} of {blocks}, error " + ", ".join(f"{name} {e:.4f}" for name, e in errors.items()))


def maps_file(folder: Path, block: int) -> Path:
    return folder / f"block_{block:02}.safetensors"


def read_maps(job: Job, block: int) -> Dict[str, Dict[str, torch.Tensor]]:
    """By candidate, the tensors of hla.HadamardAttention."""
    file = maps_file(job.folder("distil"), block)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: run the stage distil first")
    maps: Dict[str, Dict[str, torch.Tensor]] = {}
    for name, tensor in read_tensors(file).items():
        candidate, parameter = name.split("/")
        maps.setdefault(candidate, {})[parameter] = tensor
    return maps


def read_errors(job: Job, block: int) -> Dict[str, float]:
    from safetensors import safe_open

    with safe_open(maps_file(job.folder("distil"), block), "pt") as file:
        return json.loads(file.metadata()["errors"])


def count_blocks(job: Job) -> int:
    config = json.loads((model.part(job, "transformer") / "config.json").read_text())
    return config["num_layers"]


class Batch(NamedTuple):
    """Of some records, [B, N or T, H, D] each: q and k by the place of RoPE, values and the teacher's outputs."""

    q: Dict[str, torch.Tensor]
    k: Dict[str, torch.Tensor]
    v: torch.Tensor
    out: torch.Tensor


class Records:
    """Of one block: what the stage before wrote, read again and again; on the device as far as CACHE goes."""

    def __init__(self, job: Job, block: int):
        folder, count = job.folder("record"), job.options.records
        self.files = [record_file(folder, i) for i in range(count)]
        self.device, self.block = job.device, block
        self.cached: Dict[int, List[torch.Tensor]] = {}
        self.room = CACHE
        for file in self.files:
            if not file.exists():
                raise FileNotFoundError(f"{file} does not exist: run the stage record first")
        self.training = [i for i in range(count) if not is_judge(i)]
        self.judging = [i for i in range(count) if is_judge(i)]

    def batch(self, rows) -> Batch:
        q, k, v, out, q_rope, k_rope = (torch.stack(some) for some in zip(*(self._record(int(i)) for i in rows)))
        turned = [torch.stack([turn(x[None], rope)[0] for x, rope in zip(a, b)]) for a, b in ((q, q_rope), (k, k_rope))]
        return Batch({"before": turned[0], "after": q.float()}, {"before": turned[1], "after": k.float()}, v, out)

    def _record(self, i: int) -> List[torch.Tensor]:
        """q, k, v, out, and the rows of RoPE's table for q and for k."""
        if i in self.cached:
            return self.cached[i]
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.files[i], "pt") as file:
                names = [f"{self.block}.{name}" for name in ("q", "k", "v", "out")]
                *tensors, rope, rows = (file.get_tensor(name) for name in (*names, "rope", "rows"))
        except SafetensorError as error:
            raise ValueError(f"{self.files[i]} is damaged: {error}; remove it to have it made again") from None
        record = [x.to(self.device) for x in (*tensors, rope[rows], rope)]
        size = sum(x.numel() * x.element_size() for x in record)
        if size <= self.room:
            self.cached[i] = record
            self.room -= size
        return record


def fit(job: Job, records: Records, block: int):
    """The candidates' attention of a block by name, and each one's error."""
    options = job.options
    H, D = records.batch(records.judging[:1]).v.shape[2:]
    attentions = {name: build(H, D, parse(name), options.seed, block).to(job.device) for name in options.candidates}
    parameters = [p for attention in attentions.values() for p in attention.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.distil_rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(options.distil_steps):
        numbers = generator(options.seed, 2, step)
        rows = torch.randint(len(records.training), (options.distil_batch,), generator=numbers)
        batch = records.batch(records.training[i] for i in rows)
        for attention in attentions.values():
            relative_error(attention, batch).backward()
        for group in optimizer.param_groups:
            group["lr"] = options.distil_rate * rate(step, options.distil_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return attentions, {name: judge(attention, records) for name, attention in attentions.items()}


def build(heads: int, width: int, block, *seeds: int) -> HadamardAttention:
    """With maps that depend on the seeds alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(*seeds).initial_seed())
        return HadamardAttention(heads, width, **block)


def rate(step: int, steps: int) -> float:
    """Learning-rate factor: up over a twentieth of the steps, flat, then down to zero over the last 60 %."""
    fraction = (step + 1) / steps
    return min(1.0, fraction * 20) * min(1.0, (1 - step / steps) / 0.6)


def relative_error(attention: nn.Module, batch: Batch) -> torch.Tensor:
    with model.autocast(batch.v.device):
        out = attention(batch.q[attention.rope], batch.k[attention.rope], batch.v.float())
    goal = batch.out.float()
    return (out.float() - goal).square().mean() / goal.square().mean()


@torch.no_grad()
def judge(attention: nn.Module, records: Records) -> float:
    errors = [relative_error(attention, records.batch([i])) for i in records.judging]
    return torch.stack(errors).double().mean().item()
