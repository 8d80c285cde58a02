"""Measures hla-tiny: does a classifier of real clips read the caption's object, motion and background off generated
clips?

    python evaluate.py --work out/train [--clips 500] [--steps 25] [--guidance 4]

Captions are of held-out (object, motion, background) triples. Weights are rounded to bf16 first, as they are shipped.
Writes scores.json and a contact sheet a method. Rows: real clips, real clips through the VAE, softmax, and every
student found.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import train
import world
from classifier import Classifier, classifier_input, frechet, read
from PIL import Image
from stage import DEVICE, autocast, setup

import models


def contact_sheet(clips, sentences, path, rows=6, columns=4):
    """Five frames a clip, rows x columns clips."""
    tiles = []
    for clip in clips[: rows * columns]:
        frames = clip[:, [0, 8, 16, 24, 32]].clamp(-1, 1).add(1).mul(127.5).byte().permute(1, 2, 3, 0)
        tiles.append(torch.cat([F.pad(f, (0, 0, 1, 1, 1, 1), value=255) for f in frames], 1))
    sheet = torch.cat([torch.cat(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])
    image = Image.fromarray(sheet.cpu().numpy())
    image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX).save(path, optimize=True)
    Path(path).with_suffix(".txt").write_text("\n".join(sentences[: rows * columns]) + "\n")


def rounded(module):
    """Weights as they are shipped."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.bfloat16().float())
    return module


class Generator:
    """Captions -> decoded clips, by softmax or a student."""

    def __init__(self, args):
        self.args = args
        self.model, encoder = train.build_teacher(args)
        train.load_teacher(args, self.model, encoder)
        rounded(self.model)
        self.transformer = models.FastTransformer(self.model, train.PRECISION, compiled=DEVICE == "cuda")
        self.text = train.Text(rounded(encoder))
        self.tokenizer = train.load_tokenizer(args)
        self.vae = train.load_vae(args)
        rounded(self.vae.vae)
        stats = json.loads((Path(args.work) / "latents_stats.json").read_text())
        self.mean, self.std = (torch.tensor(stats[k], device=DEVICE).view(1, -1, 1, 1, 1) for k in ("mean", "std"))

    def student(self, ranks):
        path = Path(self.args.work) / f"{train.student_name(ranks)}_final.pt"
        weights = torch.load(path, map_location=DEVICE, weights_only=True)
        maps = train.build_maps(self.model, ranks)
        maps.load_state_dict({n[5:]: w for n, w in weights.items() if n.startswith("maps.")})
        tuned = {n[6:]: w.bfloat16().float() for n, w in weights.items() if n.startswith("tuned.")}
        return rounded(maps).requires_grad_(False), tuned

    @torch.no_grad()
    def __call__(self, sentences, guidance, maps=None, tuned=None):
        shape = (models.LATENT_CHANNELS, models.LATENT_FRAMES, models.LATENT_SIZE, models.LATENT_SIZE)
        clips = []
        generator = torch.Generator(DEVICE).manual_seed(77)
        batch = self.args.batch
        for i in range(0, len(sentences), batch):
            ids = train.tokenize(self.tokenizer, sentences[i : i + batch]).to(DEVICE)
            noise = torch.randn((len(ids), *shape), device=DEVICE, generator=generator)
            latents = models.sample(
                lambda x, t, text, bias: self.transformer(x, t, text, bias, maps=maps, weights=tuned),
                self.text(ids), self.text(train.empty_ids(len(ids))), noise, self.args.steps, guidance,
            )  # fmt: skip
            clips += [self.decode(z) for z in latents.split(5)]
        return torch.cat(clips)

    def decode(self, latents):
        with torch.no_grad(), autocast():
            return self.vae.decode((latents * self.std + self.mean).to(train.PRECISION)).clamp(-1, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(stage="evaluate", until=0)
    parser.add_argument("--work", default="out/train")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--scan", default="", help="guidances to choose from first, e.g. 1.5,3,5")
    parser.add_argument("--methods", default="real,vae,softmax,16x16,256")
    parser.add_argument("--batch", type=int, default=125)
    args = parser.parse_args()
    setup()
    work = Path(args.work)
    classifier = Classifier().to(DEVICE)
    classifier.load_state_dict(torch.load(work / "classifier_final.pt", map_location=DEVICE, weights_only=True))
    classifier.eval().requires_grad_(False)
    draw = train.renderer(args)

    seeds = torch.Generator().manual_seed(99)
    scenes = world.sample_scenes(args.clips, seeds, test=True)
    sentences = world.captions(scenes, random.Random(99))
    reference = world.sample_scenes(8 * args.clips, seeds, test=True)
    inputs = [
        classifier_input(draw(reference[slice(i, i + 100)], range(0, 33, 4))[0], 1)
        for i in range(0, len(reference), 100)
    ]
    accuracy, real_features = read(classifier, torch.cat(inputs), reference)
    scores = {"captions": args.clips, "steps": args.steps, "guidance": args.guidance, "methods": {}}
    scores["classifier_held_out"] = accuracy
    print("classifier on held-out real clips", accuracy, flush=True)

    generate = Generator(args)
    if args.scan:
        scores["guidance"] = args.guidance = scan(args, generate, classifier, real_features)
    for method in args.methods.split(","):
        started = time.monotonic()
        if method in ("real", "vae"):
            clips = torch.cat([draw(scenes[slice(i, i + 25)])[0] for i in range(0, len(scenes), 25)])
            if method == "vae":
                clips = torch.cat([through_vae(generate, clips[i : i + 5]) for i in range(0, len(clips), 5)])
        else:
            student = (None, None) if method == "softmax" else generate.student([int(r) for r in method.split("x")])
            clips = generate(sentences, args.guidance, *student)
        accuracy, f = read(classifier, classifier_input(clips), scenes)
        scores["methods"][method] = {**accuracy, "frechet": frechet(f, real_features)}
        print(method, scores["methods"][method], f"{time.monotonic() - started:.0f} s", flush=True)
        contact_sheet(clips, sentences, work / f"sheet_{method}.png")
        (work / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")


def scan(args, generate, classifier, real_features) -> float:
    """The guidance under which softmax reads best, on a quarter as many captions that are not those of the table."""
    scenes = world.sample_scenes(args.clips // 4, torch.Generator().manual_seed(100), test=True)
    sentences = world.captions(scenes, random.Random(100))
    sums = {}
    for guidance in (float(g) for g in args.scan.split(",")):
        accuracy, features = read(classifier, classifier_input(generate(sentences, guidance)), scenes)
        sums[guidance] = sum(accuracy.values())
        print("guidance", guidance, accuracy, f"frechet {frechet(features, real_features):.2f}", flush=True)
    return max(sums, key=sums.get)


def through_vae(generate, clips):
    with torch.no_grad(), autocast():
        mean, _ = generate.vae.encode(clips.to(train.PRECISION))
    return generate.decode((mean - generate.mean) / generate.std)


if __name__ == "__main__":
    main()
