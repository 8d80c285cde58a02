"""Stage 2: what the teacher's self-attention gets and gives, in every block, on noised clips over all sigmas.

A record is a safetensors file, for block i with H heads of width D and T tokens, in bfloat16: `i.k`, `i.v` [T, H, D] of
all tokens; `i.q`, `i.out` [N, H, D] of the N tokens `rows`; q and k are normed but not turned by RoPE, which `rope`
[T, D/2, 2] does. So its size is linear in T, and a part of the queries tells what an attention output should be.
"""

from pathlib import Path
from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import nn

from .. import diffusers as hla_diffusers
from . import model
from .clips import spread
from .job import Job, generator, write_tensors


def run(job: Job) -> None:
    options = job.options
    folder = job.claim("record", after="clips", records=options.records, queries=options.queries, seed=options.seed)
    missing = [i for i in range(options.records) if not record_file(folder, i).exists()]
    if not missing:
        return
    transformer, clips = model.load_transformer(job), model.load_clips(job)
    fractions = spread(options.records)
    T = model.tokens(transformer, clips.latents)
    for i in missing:
        # Records are of clips for training, but for those that judge the maps (distil.py), of clips held out.
        judging = is_judge(i)
        row = clips.training + i // JUDGE % (len(clips) - clips.training) if judging else i % clips.training
        numbers = generator(options.seed, 1, i)
        noisy = clips.noised(torch.tensor([row]), clips.sigmas(fractions[i : i + 1]), numbers)
        rows = torch.randperm(T, generator=numbers)[: options.queries].sort().values
        write_tensors(record_file(folder, i), record(transformer, noisy, rows.to(job.device)))
        job.progress("record:", i + 1, options.records)


JUDGE = 8  # every eighth record judges the maps instead of training them


def is_judge(i: int) -> bool:
    return i % JUDGE == JUDGE - 1


def record_file(folder: Path, i: int) -> Path:
    return folder / f"{i:04}.safetensors"


@torch.no_grad()
def record(transformer: nn.Module, noisy, rows: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Of one noised clip; the transformer has softmax attention before and after."""
    recorders: List[Recorder] = [Recorder(rows) for _ in transformer.blocks]
    for block, recorder in zip(transformer.blocks, recorders):
        block.attn1.set_processor(recorder)
    model.velocity(transformer, noisy)
    hla_diffusers.set_attention(transformer, [None] * len(recorders))
    tensors = {
        f"{i}.{name}": tensor.to(torch.bfloat16)
        for i, recorder in enumerate(recorders)
        for name, tensor in recorder.kept.items()
    }
    return {"rows": rows, "rope": recorders[0].rope, **tensors}


class Recorder:
    """What WanAttnProcessor does for self-attention, and what it got and gave, for the first entry of the batch."""

    def __init__(self, rows: torch.Tensor):
        self.rows = rows

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        q, k, v = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        self.rope = hla_diffusers.rope_table(*rotary_emb)
        turned = (turn(x, self.rope).to(v.dtype).transpose(1, 2) for x in (q, k))
        out = F.scaled_dot_product_attention(*turned, v.transpose(1, 2)).transpose(1, 2)
        self.kept = {"q": q[0, self.rows], "k": k[0], "v": v[0], "out": out[0, self.rows]}
        out = out.flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out


def turn(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """RoPE: x [B, T, H, D] by the table [T, D/2, 2] of cosines and sines; pairs are neighbours."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope[:, None].unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
