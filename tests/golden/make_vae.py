#!/usr/bin/env python3
"""Tiny random AutoencoderKLWan checkpoints and what diffusers makes of them, for tests/vae.

Each case is a component directory as save_pretrained writes it, with golden.safetensors beside the weights' files:
    latents_N [C, F, Y, X]         normalised, as the sampler hands them over
    frames_N [3, frames, H, W]     decoded from them, clamped
    encoded_N [C, F, Y, X]         the mean of the posterior of those frames, normalised

    python make_vae.py
"""
import os
import shutil

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vae")

CASES = {
    # Wan's own plan in small, one resnet a stage, bf16 in shards.
    "wan": dict(
        config=dict(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        latents=[(1, 3, 5), (5, 3, 5)],
        shard="100KB",
        dtype=torch.bfloat16,
    ),
    # Multipliers that go down as well as up, other latents, time halved first; a decoder of another width; f32 file.
    "uneven": dict(
        config=dict(
            base_dim=3,
            decoder_base_dim=4,
            z_dim=4,
            dim_mult=[2, 1, 3],
            num_res_blocks=2,
            temperal_downsample=[True, False],
            latents_mean=[0.1, -0.2, 0.3, 0.05],
            latents_std=[1.5, 0.7, 2.0, 1.1],
        ),
        latents=[(1, 6, 10), (3, 6, 10), (5, 3, 4)],
        shard=None,
        dtype=torch.float32,
    ),
    # Time doubled at both steps of a short plan; odd channel counts (which halve with a remainder); f16 file.
    "odd": dict(
        config=dict(
            base_dim=5,
            z_dim=3,
            dim_mult=[1, 3, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.0, 0.5, -0.5],
            latents_std=[1.0, 2.0, 0.5],
        ),
        latents=[(1, 5, 7), (5, 5, 7)],
        shard=None,
        dtype=torch.float16,
    ),
    # One stage: nothing is scaled.
    "flat": dict(
        config=dict(
            base_dim=8,
            z_dim=4,
            dim_mult=[1],
            num_res_blocks=1,
            temperal_downsample=[],
            latents_mean=[0.0, 0.1, 0.2, 0.3],
            latents_std=[1.0, 1.1, 1.2, 1.3],
        ),
        latents=[(1, 7, 9), (5, 7, 9)],
        shard=None,
        dtype=torch.float32,
    ),
}


def randomise(vae, generator):
    """Weights large enough that no layer is a bystander; gammas around 1, biases around 0."""
    for name, parameter in vae.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma"):
            values = 1.0 + 0.3 * values
        elif name.endswith("bias"):
            values = 0.2 * values
        else:
            values = values * (0.9 / parameter[0].numel() ** 0.5)
        if name.startswith("decoder.conv_out"):
            values = 0.7 * values  # some pixels at the clamp, not most
        parameter.data.copy_(values)


def make(name, case):
    directory = os.path.join(HERE, name)
    shutil.rmtree(directory, ignore_errors=True)
    generator = torch.Generator().manual_seed(len(name) * 1000 + ord(name[0]))
    vae = AutoencoderKLWan(**case["config"]).eval()
    randomise(vae, generator)
    vae.to(case["dtype"])
    options = {"max_shard_size": case["shard"]} if case["shard"] else {}
    vae.save_pretrained(directory, **options)
    vae = AutoencoderKLWan.from_pretrained(directory, torch_dtype=torch.float32).eval()

    z = vae.config.z_dim
    mean = torch.tensor(vae.config.latents_mean).view(1, z, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, z, 1, 1, 1)
    golden = {}
    with torch.no_grad():
        for i, (frames, height, width) in enumerate(case["latents"]):
            latents = torch.randn(1, z, frames, height, width, generator=generator)
            golden[f"latents_{i}"] = latents[0]
            golden[f"frames_{i}"] = vae.decode(latents * std + mean).sample[0]
            video = golden[f"frames_{i}"][None]
            assert video.shape[2] % 4 == 1  # diffusers encodes by fours and would drop the rest
            encoded = (vae.encode(video).latent_dist.mode() - mean) / std
            golden[f"encoded_{i}"] = encoded[0]
            clamped = (video.abs() == 1).float().mean().item()
            print(name, i, tuple(video.shape[1:]), f"clamped {clamped:.3f}, encoded", tuple(encoded.shape[1:]))
    golden = {key: value.contiguous() for key, value in golden.items()}
    save_file(golden, os.path.join(directory, "golden.safetensors"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, case in CASES.items():
        make(name, case)
