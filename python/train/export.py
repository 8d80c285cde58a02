"""Writes the trained parts as a checkpoint in the Diffusers layout, bf16, with the HLA adapter in hla/.

python export.py ../../models/hla-tiny --work out/train --ranks 16,16
"""

import argparse
import json
import shutil
from pathlib import Path

import evaluate
import torch
import world
from safetensors.torch import save_file

import models


def write_adapter(folder: Path, maps: models.HadamardMaps, tuned: dict, dtype):
    """config.json and model.safetensors of converted blocks: the maps, and the transformer's tensors that moved."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {**maps.state_dict(), **tuned}
    save_file({n: t.detach().to(dtype).contiguous().cpu() for n, t in tensors.items()}, folder / "model.safetensors")
    block = {
        "kind": "hadamard", "ranks": maps.ranks, "activation": "relu", "activation_floor": models.FLOOR,
        "normalised": True, "epsilon": models.EPSILON, "hidden": False, "bias": True, "rope": "before",
    }  # fmt: skip
    layers = len(maps.blocks)
    config = {
        "_class_name": "HadamardLinearAttention",
        "format_version": 1,
        "num_layers": layers,
        "blocks": [block] * layers,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--work", default="out/train")
    parser.add_argument("--ranks", default="16,16")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.set_defaults(stage="export", until=0, batch=1)
    args = parser.parse_args()
    output, work = Path(args.output), Path(args.work)
    ranks = [int(r) for r in args.ranks.split(",")]

    parts = evaluate.Generator(args)
    shards = {"max_shard_size": "14MB", "safe_serialization": True}
    parts.model.to(torch.bfloat16).save_pretrained(output / "transformer", **shards)
    parts.text.encoder.to(torch.bfloat16).save_pretrained(output / "text_encoder", **shards)
    stats = json.loads((work / "latents_stats.json").read_text())
    parts.vae.vae.register_to_config(latents_mean=stats["mean"], latents_std=stats["std"])
    parts.vae.vae.to(torch.bfloat16).save_pretrained(output / "vae", **shards)
    models.build_scheduler().save_pretrained(output / "scheduler")
    shutil.copytree(
        work / "tokenizer", output / "tokenizer", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.vocab")
    )

    write_adapter(output / "hla", *parts.student(ranks), torch.bfloat16)
    index = {
        "_class_name": "WanPipeline", "_diffusers_version": "0.42.1",
        "hla_defaults": {
            "width": world.SIZE, "height": world.SIZE, "frames": world.FRAMES, "fps": world.FPS, "steps": args.steps,
            "guidance": args.guidance,
        },
        "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }  # fmt: skip
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
