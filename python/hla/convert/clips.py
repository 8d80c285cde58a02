"""Encoded clips: latents and text rows in shards, and noised latents drawn from them.

A shard is a safetensors file with latents [n, C, F, Y, X] (normalised) and text [n, L, E], rows beyond a caption's
`lengths` [n] zero; its metadata holds the captions as a JSON list. `empty.safetensors` holds the text of "" alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence

import torch
import torch.nn.functional as F

from .job import read_tensors

TEXT_LENGTH = 512  # rows that Wan's pipeline pads text to
EMPTY = "empty.safetensors"


@dataclass
class Noisy:
    """What the transformer is asked, and what flow matching wants of it."""

    latents: torch.Tensor  # [B, C, F, Y, X]
    timestep: torch.Tensor  # [B]
    text: torch.Tensor  # [B, 512, E]
    target: torch.Tensor  # noise - clean, like latents


class Clips:
    """All clips of a folder on a device; the last eighth of them, at least one, is held out from training."""

    def __init__(self, folder: Path, device: torch.device, shift: float):
        """shift: of the sampler's sigmas."""
        files = sorted(path for path in folder.glob("*.safetensors") if path.name != EMPTY)
        if not files or not (folder / EMPTY).exists():
            raise FileNotFoundError(f"{folder} holds no encoded clips: run the stage encode first")
        shards = [_shard(file) for file in files]
        longest = max(shard["text"].shape[1] for shard in shards)
        self.latents = torch.cat([shard["latents"] for shard in shards]).to(device)
        self.text = torch.cat([_padded(shard["text"], longest) for shard in shards]).to(device)
        self.captions: List[str] = [caption for file in files for caption in _captions(file)]
        self.empty = _padded(_shard(folder / EMPTY)["text"], longest).to(device)
        self.device, self.shift = device, shift
        if len(self) < 2 or len(self.captions) != len(self):
            raise ValueError(f"{folder} holds {len(self)} clips and {len(self.captions)} captions, wanted two or more")

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def training(self) -> int:
        """How many of the clips, from the first on, are for training."""
        return len(self) - max(1, len(self) // 8)

    def sigmas(self, fraction: torch.Tensor) -> torch.Tensor:
        """Fractions 0 to 1 of a sampler's way, as the sigmas it stands at there."""
        return self.shift * fraction / (1 + (self.shift - 1) * fraction)

    def noised(self, rows: torch.Tensor, sigmas: torch.Tensor, generator: torch.Generator, emptied=None) -> Noisy:
        """Clips with noise at sigmas [B]; emptied [B]: which captions become ""."""
        rows = rows.to(self.device)
        clean, text = self.latents[rows].float(), self.text[rows].float()
        if emptied is not None:
            text = torch.where(emptied.to(self.device)[:, None, None], self.empty.float(), text)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        sigmas = sigmas.to(self.device)
        return Noisy(
            torch.lerp(clean, noise, sigmas.view(-1, 1, 1, 1, 1)), 1000 * sigmas, full_text(text), noise - clean
        )

    def batch(self, n: int, generator: torch.Generator) -> Noisy:
        """Random clips for training at random sigmas, a tenth of the captions emptied for guidance."""
        rows = torch.randint(self.training, (n,), generator=generator)
        fraction, emptied = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.1
        return self.noised(rows, self.sigmas(fraction), generator, emptied)

    def probes(self, n: int, size: int, generator: torch.Generator) -> List[Noisy]:
        """n noised clips of those held out, sigmas spread evenly over the sampler's way, in batches."""
        rows = self.training + torch.arange(n) % (len(self) - self.training)
        fractions = spread(n)
        return [
            self.noised(some, self.sigmas(fractions[i : i + size]), generator)
            for i, some in ((i, rows[i : i + size]) for i in range(0, n, size))
        ]


def spread(n: int) -> torch.Tensor:
    """The n middles of n equal parts of 0 to 1, in an order in which every run of them is spread too."""
    step = max(1, round(n * 0.618))
    while torch.gcd(torch.tensor(step), torch.tensor(n)) != 1:
        step += 1
    return ((torch.arange(n) * step) % n + 0.5) / n


def full_text(text: torch.Tensor) -> torch.Tensor:
    return F.pad(text, (0, 0, 0, TEXT_LENGTH - text.shape[1]))


def _padded(text: torch.Tensor, rows: int) -> torch.Tensor:
    return F.pad(text, (0, 0, 0, rows - text.shape[1]))


def _shard(file: Path):
    shard = read_tensors(file)
    wanted: Sequence[str] = ("text",) if file.name == EMPTY else ("latents", "text")
    for name in wanted:
        if name not in shard:
            raise ValueError(f"{file} holds no {name}: it is not a file of encoded clips")
    return shard


def _captions(file: Path) -> List[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as shard:
        return json.loads((shard.metadata() or {}).get("captions", "[]"))
