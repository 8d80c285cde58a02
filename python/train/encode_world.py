"""Clips of the world, encoded by a model's VAE and text encoder, as `python -m hla.convert --clips FOLDER` takes them.

    PYTHONPATH=.. python encode_world.py ../../models/hla-tiny sprites.npy FOLDER --clips 4000

Every clip is of triples that hla-tiny was trained on; its caption is drawn anew.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import world
from hla.convert.clips import EMPTY
from hla.convert.encode import Encoder
from hla.convert.job import Job, write_tensors
from hla.convert.options import Options
from stage import DEVICE, autocast, setup

import models

SHARD = 250  # clips
BATCH = 25


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("sprites", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=4000)
    args = parser.parse_args()
    setup()
    args.folder.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(Job(Options(model=args.model, clips=args.folder, work=args.folder)))
    vae, draw = models.WholeClipVae(encoder.vae), world.Renderer(np.load(args.sprites), DEVICE)
    generator, rng = torch.Generator().manual_seed(5), random.Random(5)
    scenes = world.sample_scenes(args.clips, generator)
    captions = world.captions(scenes, rng)
    for i in range(0, args.clips, SHARD):
        means = []
        for j in range(i, min(i + SHARD, args.clips), BATCH):
            clip, _ = draw(scenes[slice(j, min(j + BATCH, i + SHARD))])
            with torch.no_grad(), autocast():
                means.append(vae.encode(clip)[0])
        text, lengths = encoder.text(captions[i : i + SHARD])
        latents = (torch.cat(means) - encoder.mean) / encoder.std
        tensors = {"latents": latents.half(), "text": text, "lengths": lengths}
        some = json.dumps(captions[i : i + SHARD])
        write_tensors(args.folder / f"{i // SHARD:04}.safetensors", tensors, captions=some)
    write_tensors(args.folder / EMPTY, {"text": encoder.text([""])[0]})
    print(f"{args.clips} clips in {args.folder}")


if __name__ == "__main__":
    main()
