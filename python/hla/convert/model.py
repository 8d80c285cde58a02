"""The parts of a checkpoint, and what a transformer makes of noised clips."""

import json
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import torch
from torch import nn

from .. import diffusers as hla_diffusers
from .clips import Clips, Noisy
from .job import Job

_DEFAULTS = {"width": 832, "height": 480, "frames": 81, "fps": 16, "steps": 50, "guidance": 5.0}


def part(job: Job, name: str) -> Path:
    folder = job.options.model / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: the model must be a checkpoint in the Diffusers layout")
    return folder


def settings(job: Job) -> Dict[str, float]:
    """Size, frames, frames a second, steps and guidance: the options', else the model's, else those of Wan2.1."""
    index = job.options.model / "model_index.json"
    own = json.loads(index.read_text()).get("hla_defaults", {}) if index.exists() else {}
    options = job.options
    given = {
        "width": options.width, "height": options.height, "frames": options.frames, "fps": options.fps,
        "steps": options.sampling_steps, "guidance": options.guidance,
    }  # fmt: skip
    return {**_DEFAULTS, **own, **{name: value for name, value in given.items() if value}}


def fingerprint(job: Job) -> Dict[str, int]:
    """The files that the teacher comes from, and their sizes."""
    files = (file for name in ("transformer", "vae", "text_encoder") for file in part(job, name).glob("*.safetensors"))
    return {f"{file.parent.name}/{file.name}": file.stat().st_size for file in sorted(files)}


def load(job: Job, class_, name: str, dtype=torch.float32) -> nn.Module:
    """A part as class_, on the device, frozen; every weight must be in its files."""
    folder = part(job, name)
    try:
        loaded = class_.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # diffusers and transformers raise many kinds for a file that is cut short
        raise ValueError(f"{folder} cannot be loaded: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {', '.join(sorted(report['missing_keys']))}")
    return model.to(job.device, dtype).requires_grad_(False).eval()


def load_transformer(job: Job) -> nn.Module:
    """The teacher in float32. Its residual stream stays float32 under autocast too, as in the engine."""
    from diffusers import WanTransformer3DModel

    transformer = load(job, WanTransformer3DModel, "transformer")
    if transformer.config.added_kv_proj_dim is not None:
        raise ValueError(f"{job.options.model} takes images (added_kv_proj_dim): only text-to-video is converted")
    transformer.patch_embedding.register_forward_hook(lambda module, inputs, output: output.float())
    return transformer


def load_clips(job: Job) -> Clips:
    scheduler = json.loads((part(job, "scheduler") / "scheduler_config.json").read_text())
    return Clips(job.folder("clips"), job.device, scheduler.get("flow_shift") or 1.0)


def tokens(transformer: nn.Module, latents: torch.Tensor) -> int:
    size = 1
    for axis, patch in zip(latents.shape[-3:], transformer.config.patch_size):
        size *= axis // patch
    return size


def head_width(transformer: nn.Module) -> int:
    return transformer.config.attention_head_dim


def autocast(device: torch.device):
    """bfloat16 products on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def velocity(transformer: nn.Module, noisy: Noisy) -> torch.Tensor:
    with autocast(noisy.latents.device):
        return transformer(noisy.latents, noisy.timestep, noisy.text, return_dict=False)[0].float()


@torch.no_grad()
def velocities(transformer: nn.Module, probes: Sequence[Noisy]) -> List[torch.Tensor]:
    return [velocity(transformer, noisy) for noisy in probes]


def losses(found: List[torch.Tensor], goals: List[torch.Tensor], probes: Sequence[Noisy]) -> Tuple[float, float]:
    """Of velocities found on probes: the flow-matching loss, and the mean squared distance to the teacher's, goals."""
    flow = torch.cat([(v - noisy.target).square().flatten(1).mean(1) for v, noisy in zip(found, probes)])
    distance = torch.cat([(v - goal).square().flatten(1).mean(1) for v, goal in zip(found, goals)])
    return flow.double().mean().item(), distance.double().mean().item()


def install(transformer: nn.Module, blocks: Sequence, maps: Sequence[Dict[str, torch.Tensor]]) -> None:
    """Gives each block its attention with the maps that were fitted for it, by their names in hla.HadamardAttention."""
    for attention, tensors in zip(hla_diffusers.set_attention(transformer, blocks), maps):
        if attention is not None:
            attention.load_state_dict(tensors)
