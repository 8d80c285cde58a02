"""Stage 1: videos and captions become latents and text rows (clips.py), by the model's own VAE and text encoder.

ffmpeg reads the videos: any format it knows, scaled and cropped to the wanted size. A folder that holds encoded clips
already is taken as it is.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import torch

from . import model
from .clips import EMPTY, TEXT_LENGTH
from .job import Job, write_tensors

SHARD = 16  # clips


def run(job: Job) -> None:
    source = job.options.clips
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is no folder: --clips must name one with videos and captions")
    if (source / EMPTY).exists():
        return _take(job, source)
    size = model.settings(job)
    videos = _videos(source)
    folder = job.claim(
        "clips", model=model.fingerprint(job), size=[size[name] for name in ("width", "height", "frames", "fps")],
        videos={video.name: video.stat().st_size for video in videos},
    )  # fmt: skip
    shards = [videos[i : i + SHARD] for i in range(0, len(videos), SHARD)]
    missing = [i for i in range(len(shards)) if not _shard(folder, i).exists()]
    if not missing and (folder / EMPTY).exists():
        return
    encoder = Encoder(job)
    write_tensors(folder / EMPTY, {"text": encoder.text([""])[0]})
    for i in missing:
        captions = [video.with_suffix(".txt").read_text().strip() for video in shards[i]]
        latents = torch.cat([encoder.latents(read_video(video, size)) for video in shards[i]])
        text, lengths = encoder.text(captions)
        tensors = {"latents": latents.half(), "text": text, "lengths": lengths}
        write_tensors(_shard(folder, i), tensors, captions=json.dumps(captions))
        job.progress("encode: clips", min(len(videos), (i + 1) * SHARD), len(videos))


def _take(job: Job, source: Path) -> None:
    files = {file.name: file.stat().st_size for file in sorted(source.glob("*.safetensors"))}
    folder = job.claim("clips", model=model.fingerprint(job), encoded=files)
    for name in files:
        link = folder / name
        if not link.exists():
            link.symlink_to((source / name).resolve())


def _shard(folder: Path, i: int) -> Path:
    return folder / f"{i:04}.safetensors"


def _videos(source: Path) -> List[Path]:
    """Every file with a caption beside it."""
    captions = {file.stem: file for file in source.glob("*.txt")}
    videos = sorted(file for file in source.iterdir() if file.is_file() and file.suffix != ".txt")
    for video in videos:
        if video.stem not in captions:
            raise FileNotFoundError(f"{video} has no caption: {video.stem}.txt does not exist beside it")
    if len(videos) < 2:
        raise ValueError(f"{source} holds {len(videos)} videos, wanted two or more with captions beside them")
    return videos


def read_video(video: Path, size: Dict[str, float]) -> torch.Tensor:
    """[3, frames, height, width] in [-1, 1]: the first frames at the wanted rate, the middle of each."""
    if shutil.which("ffmpeg") is None:
        raise FileNotFoundError("ffmpeg is not installed, and videos are read by it")
    width, height, frames = (int(size[name]) for name in ("width", "height", "frames"))
    filters = (
        f"fps={size['fps']},scale={width}:{height}:force_original_aspect_ratio=increase:flags=area,"
        f"crop={width}:{height}"
    )
    command = ["ffmpeg", "-v", "error", "-i", str(video), "-vf", filters, "-frames:v", str(frames)]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True)
    if done.returncode != 0:
        raise ValueError(f"{video} cannot be read: {done.stderr.decode(errors='replace').strip()}")
    found = len(done.stdout) // (width * height * 3)
    if found < frames:
        raise ValueError(f"{video} has {found} frames at {size['fps']} a second, wanted {frames}")
    pixels = torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8).view(frames, height, width, 3)
    return pixels.permute(3, 0, 1, 2).float() / 127.5 - 1


class Encoder:
    """VAE and text encoder of the model."""

    def __init__(self, job: Job):
        from diffusers import AutoencoderKLWan
        from transformers import AutoTokenizer, UMT5EncoderModel

        dtype = torch.bfloat16 if job.device.type == "cuda" else torch.float32
        self.device = job.device
        self.vae = model.load(job, AutoencoderKLWan, "vae")
        self.encoder = model.load(job, UMT5EncoderModel, "text_encoder", dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(model.part(job, "tokenizer"))
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(self.vae.config.latents_mean, device=job.device).view(shape)
        self.std = torch.tensor(self.vae.config.latents_std, device=job.device).view(shape)

    @torch.no_grad()
    def latents(self, clip: torch.Tensor) -> torch.Tensor:
        """[1, C, F, Y, X], normalised."""
        with model.autocast(self.device):
            mean = self.vae.encode(clip[None].to(self.device)).latent_dist.mean
        return (mean.float() - self.mean) / self.std

    @torch.no_grad()
    def text(self, captions: List[str]):
        """Rows [n, L, E] up to the longest caption, those beyond a caption zero, and the lengths [n]."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        ids = self.tokenizer(
            [prompt_clean(caption) for caption in captions], padding="longest", truncation=True,
            max_length=TEXT_LENGTH, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        mask = ids.attention_mask
        rows = self.encoder(ids.input_ids, mask).last_hidden_state * mask[..., None]
        return rows.to(torch.bfloat16), mask.sum(1)
