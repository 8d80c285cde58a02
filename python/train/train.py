"""Trains hla-tiny, stage by stage, each resumable and bound by a number of seconds on one GPU.

    python train.py STAGE --work DIR --seconds N

in this order; recipe.sh runs them all, with the seconds that hla-tiny got:

    tokenizer    SentencePiece unigram over the world's captions (CPU, seconds)
    vae          AutoencoderKLWan on clips rendered on the fly
    latents      encodes clips, measures the latents' mean and deviation
    classifier   reads object, motion and background off real clips
    teacher      text encoder and transformer with softmax attention, by flow matching
    student      --ranks 16,16: layer-wise distillation, then fine-tuning of attn1; --ranks 256: linear attention of the
                 same state rank, for comparison

A stage stops when its seconds are spent, over all its slices: run again with the same total to go on after a cut. A
stage compiles first and then waits for the files of the stage before it, so that all may be started at once on a
machine paid by the second. State lies in --work (default out/train). --smoke runs a few small steps of a stage on any
machine.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from classifier import Classifier, classifier_input, labels
from optimizer import Average, Optimizer, rate
from stage import DEVICE, Stage, autocast, release, save_final, setup, wait_for

import models

PRECISION = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # of the transformer's matrix products


# ---- shared ----


def renderer(args) -> world.Renderer:
    return world.Renderer(np.load(Path(args.work) / "sprites.npy"), DEVICE)


def normal_timesteps(n: int, generator=None, shift: float = 2.5):
    """Sigmas in 0..1: logit-normal, shifted towards noise."""
    u = torch.sigmoid(1.2 * torch.randn(n, device=DEVICE, generator=generator))
    return shift * u / (1 + (shift - 1) * u)


# ---- stages ----


def train_tokenizer(args):
    """spiece.model and tokenizer.json from captions; ids 0 pad, 1 </s>, 2 unknown."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import T5TokenizerFast

    generator, rng = torch.Generator().manual_seed(11), random.Random(11)
    text = Path(args.work) / "captions.txt"
    lines = world.captions(world.sample_scenes(40000, generator), rng)
    text.write_text("\n".join(lines))
    folder = Path(args.work) / "tokenizer"
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), model_type="unigram", vocab_size=512,
        hard_vocab_limit=False, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=2,
        required_chars="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-",
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "spiece.model").read_bytes())
    add_words(proto, lines)
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    (folder / "spiece.vocab").unlink()
    write_tokenizer_json(proto, folder / "tokenizer.json")
    tokenizer = T5TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), extra_ids=0)
    config = {
        "tokenizer_class": "T5TokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "model_max_length": models.TEXT_LENGTH,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    lengths = [len(x) for x in tokenizer(lines)["input_ids"]]
    print(len(proto.pieces), "pieces; longest caption", max(lengths), "of", models.MAX_TOKENS)
    assert max(lengths) <= models.MAX_TOKENS


def add_words(proto, lines):
    """Every word of the captions becomes a piece of its own, scored by its frequency."""
    counts = Counter(word for line in lines for word in line.replace(",", "").replace(".", "").split())
    total = sum(counts.values())
    known = {p.piece: p for p in proto.pieces}
    for word, count in sorted(counts.items()):
        piece = known.get("\u2581" + word) or proto.pieces.add(piece="\u2581" + word)
        piece.score = math.log(count / total)


def write_tokenizer_json(proto, path):
    """The same model for the `tokenizers` library, in the form published T5 checkpoints have."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    tokenizer = Tokenizer(Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "\u2581"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<pad>", "</s>", "<unk>")])
    tokenizer.save(str(path))


def load_tokenizer(args):
    from transformers import T5TokenizerFast

    return T5TokenizerFast.from_pretrained(Path(args.work) / "tokenizer")


def train_vae(args):
    """Most of the time on clips cropped around an object, the rest on whole pictures. Always all frames: trained on
    17, the VAE fades towards the 33rd."""
    stage = Stage(args, "vae")
    torch.manual_seed(2)
    vae = models.build_vae().to(DEVICE)
    if args.init:
        vae.load_state_dict(torch.load(args.init, map_location=DEVICE, weights_only=True))
    clip = models.WholeClipVae(vae, compiled=not args.smoke)
    parameters = dict(vae.named_parameters())
    ends = ("conv_in", "conv_out", "quant_conv")
    matrices = [p for n, p in parameters.items() if p.ndim >= 4 and not any(e in n for e in ends) and "norm" not in n]
    chosen = {id(p) for p in matrices}
    optimizer = Optimizer(matrices, [p for p in parameters.values() if id(p) not in chosen], 3e-3, 1e-3)
    average = Average(parameters, 0.997)
    stage.resume(vae=vae, optimizer=optimizer, average=average)
    draw = renderer(args)
    generator = torch.Generator().manual_seed(1000 + stage.step)
    while stage.running():
        batch, frames, size = (40, world.FRAMES, 64) if stage.fraction < 0.7 else (10, world.FRAMES, world.SIZE)
        if args.smoke:
            batch, frames, size = 1, 5, (64 if stage.step < 2 else world.SIZE)
        scenes = world.sample_scenes(batch, generator, pairs=0.35)
        target, cover = draw(scenes, range(frames))
        if size < world.SIZE:
            target, cover = crop(target, cover, size, generator)
        with autocast():
            mean, logvar = clip.encode(target.bfloat16())
            logvar = logvar.clamp(-20, 10)
            z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
            output = clip.decode(z.bfloat16())
        error = (output - target).abs() * (1 + 3 * cover)
        edges = sum((output.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3, 4))
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error.mean() + edges + 3e-5 * divergence
        loss.backward()
        optimizer.step(rate(stage.fraction))
        average.update()
        if stage.step % (1 if args.smoke else 100) == 0:
            mse = (output.clamp(-1, 1) - target).square().mean()
            stage.log(
                f"step {stage.step} {frames} frames of {size} L1 {(output - target).abs().mean():.4f} "
                f"PSNR {10 * math.log10(4 / mse.item()):.2f} dB KL {divergence:.3f}"
            )
        stage.step += 1
    stage.save()
    save_final(average.mean, Path(args.work) / "vae_final.pt")


def crop(clip, cover, size: int, generator):
    """A square window a clip, placed so that it holds most of what is covered, give or take."""
    axis = torch.arange(world.SIZE, device=clip.device).float()
    for picture_axis, other in ((3, 4), (4, 3)):
        weight = cover.mean((1, 2, other))
        centre = (weight * axis).sum(1) / weight.sum(1).clamp(min=1e-6)
        jitter = torch.randint(-24, 25, (len(clip),), generator=generator).to(clip.device)
        start = (centre - size / 2 + jitter).clamp(0, world.SIZE - size).long()
        rows = start[:, None] + torch.arange(size, device=clip.device)
        shape = [len(clip), 1, 1, 1, 1]
        shape[picture_axis] = size
        rows = rows.view(shape)

        def window(t):
            wanted = list(t.shape)
            wanted[picture_axis] = size
            return t.gather(picture_axis, rows.expand(wanted))

        clip, cover = window(clip), window(cover)
    return clip, cover


def load_vae(args, compiled=False) -> models.WholeClipVae:
    vae = models.build_vae().to(DEVICE)
    vae.load_state_dict(torch.load(wait_for(args, "vae_final.pt"), map_location=DEVICE, weights_only=True))
    return models.WholeClipVae(vae.requires_grad_(False), compiled)


def encode_latents(args):
    """latents.pt: latents [n, C, F, Y, X] float16 (normalised), and six captions a clip as ids [n, 6, MAX_TOKENS]."""
    generator, rng = torch.Generator().manual_seed(5), random.Random(5)
    scenes = world.sample_scenes(args.clips, generator)
    tokenizer, draw = load_tokenizer(args), renderer(args)
    ids = torch.stack([tokenize(tokenizer, world.captions(scenes, rng)) for _ in range(6)], 1)
    batch = 4 if args.smoke else 32
    if not args.smoke:
        with torch.no_grad(), autocast():
            models.WholeClipVae(models.build_vae().to(DEVICE), True).encode(draw(scenes[slice(0, batch)])[0].bfloat16())
        release()
    vae = load_vae(args, compiled=not args.smoke)
    means, deviations, started = [], [], time.monotonic()
    with torch.no_grad(), autocast():
        for i in range(0, args.clips, batch):
            if time.monotonic() - started > args.seconds:
                break
            clip, _ = draw(scenes[slice(i, i + batch)])
            mean, logvar = vae.encode(clip.bfloat16())
            means.append(mean.half())
            deviations.append(logvar.clamp(-20, 10).exp().mean((0, 2, 3, 4)))
    latents = torch.cat(means)
    # The deviation of samples, not of means: a channel the VAE does not use stays small instead of being blown up.
    mean = latents.float().mean((0, 2, 3, 4))
    std = (
        latents.float().sub(mean.view(-1, 1, 1, 1)).square().mean((0, 2, 3, 4)) + torch.stack(deviations).mean(0)
    ).sqrt()
    latents = ((latents.float() - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)).half()
    ids = ids[: len(latents)]
    (Path(args.work) / "latents_stats.json").write_text(json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
    save_final({"latents": latents.cpu(), "ids": ids}, Path(args.work) / "latents.pt")
    print(
        f"latents: {len(latents)} in {time.monotonic() - started:.0f} s; channel rms",
        [round(x, 2) for x in latents.float().square().mean((0, 2, 3, 4)).sqrt().tolist()],
        flush=True,
    )


def tokenize(tokenizer, sentences: list[str]) -> torch.Tensor:
    """Ids [n, MAX_TOKENS], padded with 0."""
    encoded = tokenizer(sentences, padding="max_length", truncation=True, max_length=models.MAX_TOKENS)
    return torch.tensor(encoded["input_ids"], dtype=torch.int32)


class Text:
    """Text encoder as the transformer sees it: ids [B, MAX_TOKENS] -> text rows and key bias."""

    def __init__(self, encoder):
        self.encoder = encoder

    def __call__(self, ids):
        mask = (ids > 0).long()
        with autocast():
            hidden = self.encoder(input_ids=ids.long(), attention_mask=mask).last_hidden_state
        return models.fold_text(hidden.float(), mask)


def is_matrix(name: str, p) -> bool:
    return p.ndim == 2 and name.startswith("blocks.") and (".attn" in name or ".ffn" in name)


def train_teacher(args):
    stage = Stage(args, "teacher")
    torch.manual_seed(3)
    model, encoder = build_teacher(args)
    named = {f"transformer.{n}": p for n, p in model.named_parameters()}
    named.update({f"text.{n}": p for n, p in encoder.named_parameters()})
    matrices = [p for n, p in model.named_parameters() if is_matrix(n, p)]
    chosen = {id(p) for p in matrices}
    optimizer = Optimizer(matrices, [p for p in named.values() if id(p) not in chosen])
    average = Average(named)
    fast = models.FastTransformer(model, PRECISION, compiled=not args.smoke)
    text = Text(encoder)
    batch, mean_loss = (2 if args.smoke else 64), None
    if not args.smoke:
        fast(*random_inputs(batch), *text(empty_ids(batch))).sum().backward()
        for p in named.values():
            p.grad = None
        release()
    latents, ids = load_latents(args)
    stage.resume(model=model, encoder=encoder, optimizer=optimizer, average=average)
    generator = torch.Generator(DEVICE).manual_seed(2000 + stage.step)
    while stage.running():
        noisy, sigma, target, caption = draw_batch(latents, ids, batch, 0.1, generator)
        velocity = fast(noisy, 1000 * sigma, *text(caption))
        loss = F.mse_loss(velocity, target)
        loss.backward()
        optimizer.step(rate(stage.fraction))
        average.update()
        if stage.step % (1 if args.smoke else 100) == 0:
            value = loss.item()
            mean_loss = value if mean_loss is None else 0.8 * mean_loss + 0.2 * value
            stage.log(f"step {stage.step} loss {mean_loss:.4f}")
        stage.step += 1
    stage.save()
    save_final(average.mean, Path(args.work) / "teacher_final.pt")


def load_latents(args):
    data = torch.load(wait_for(args, "latents.pt"), weights_only=True)
    return data["latents"].to(DEVICE), data["ids"].to(DEVICE)


def random_inputs(n: int):
    """Latents and timesteps to compile with."""
    shape = (n, models.LATENT_CHANNELS, models.LATENT_FRAMES, models.LATENT_SIZE, models.LATENT_SIZE)
    return torch.randn(shape, device=DEVICE), 1000 * torch.rand(n, device=DEVICE)


def draw_batch(latents, ids, n: int, unconditional: float, generator):
    """Noisy latents at random sigmas, the sigmas, the velocity there, and captions, a share of them emptied."""
    rows = torch.randint(len(latents), (n,), device=DEVICE, generator=generator)
    caption = ids[rows, torch.randint(ids.shape[1], (n,), device=DEVICE, generator=generator)]
    emptied = torch.rand(n, device=DEVICE, generator=generator) < unconditional
    caption = torch.where(emptied[:, None], empty_ids(n), caption)
    clean = latents[rows].float()
    noise = torch.randn(clean.shape, device=DEVICE, generator=generator)
    sigma = normal_timesteps(n, generator)
    return torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1)), sigma, noise - clean, caption


def empty_ids(n: int) -> torch.Tensor:
    ids = torch.zeros(n, models.MAX_TOKENS, dtype=torch.int32, device=DEVICE)
    ids[:, 0] = 1
    return ids


def build_teacher(args):
    """Transformer and text encoder of the right sizes, on the device."""
    model = models.build_transformer().to(DEVICE)
    return model, models.build_text_encoder(len(load_tokenizer(args))).to(DEVICE)


@torch.no_grad()
def load_teacher(args, model, encoder):
    """The averaged weights, once the teacher is finished; frozen from then on."""
    weights = torch.load(wait_for(args, "teacher_final.pt"), map_location=DEVICE, weights_only=True)
    for prefix, module in (("transformer.", model), ("text.", encoder)):
        for name, parameter in module.named_parameters():
            parameter.copy_(weights[prefix + name])
        module.requires_grad_(False)


def build_maps(transformer, ranks: list[int]) -> models.HadamardMaps:
    c = transformer.config
    return models.HadamardMaps(c.num_layers, c.num_attention_heads, c.attention_head_dim, ranks).to(DEVICE)


def student_name(ranks: list[int]) -> str:
    return "student_" + "x".join(map(str, ranks))


def train_student(args):
    """Converts the teacher: first each block's maps learn the teacher's attention outputs from the teacher's own
    activations, then maps and attn1 learn the teacher's velocity and the flow-matching target together."""
    ranks = [int(r) for r in args.ranks.split(",")]
    stage = Stage(args, student_name(ranks))
    teacher, encoder = (part.requires_grad_(False) for part in build_teacher(args))
    fast = models.FastTransformer(teacher, PRECISION, compiled=not args.smoke)
    attend = models.hadamard_attention if args.smoke else torch.compile(models.hadamard_attention, dynamic=False)
    text = Text(encoder)
    torch.manual_seed(4)
    maps = build_maps(teacher, ranks)
    tuned = {n: p.detach().clone().requires_grad_() for n, p in teacher.named_parameters() if ".attn1." in n}
    batches = (2, 2) if args.smoke else (32, 48)
    if not args.smoke:
        distil_step(fast, attend, maps, *random_inputs(batches[0]), text(empty_ids(batches[0])))
        match_step(
            fast, maps, tuned, *random_inputs(batches[1]), text(empty_ids(batches[1])), random_inputs(batches[1])[0]
        )
        for p in [*maps.parameters(), *tuned.values()]:
            p.grad = None
        release()
    load_teacher(args, teacher, encoder)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name in tuned:
                tuned[name].copy_(parameter)
    latents, ids = load_latents(args)
    if args.after:
        wait_for(args, args.after)

    named = {**{f"maps.{n}": p for n, p in maps.named_parameters()}, **{f"tuned.{n}": p for n, p in tuned.items()}}
    distil = torch.optim.AdamW(maps.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    matrices = [p for n, p in tuned.items() if p.ndim == 2]
    optimizer = Optimizer(matrices, [*maps.parameters(), *[p for p in tuned.values() if p.ndim < 2]], 5e-4, 1e-3)
    average = Average(named, 0.998)
    stage.resume(maps=maps, distil=distil, optimizer=optimizer, average=average, tuned=TensorState(tuned))
    generator = torch.Generator(DEVICE).manual_seed(3000 + stage.step)
    while stage.running():
        distilling = stage.fraction < DISTIL_SHARE
        batch = batches[0] if distilling else batches[1]
        noisy, sigma, target, caption = draw_batch(latents, ids, batch, 0.15, generator)
        with torch.no_grad():
            words = text(caption)
        if distilling:
            losses = distil_step(fast, attend, maps, noisy, 1000 * sigma, words)
            for group in distil.param_groups:
                group["lr"] = 4e-3 * min(1.0, (stage.step + 1) / 50) * (1 - 0.9 * stage.fraction / DISTIL_SHARE)
            distil.step()
            distil.zero_grad(set_to_none=True)
        else:
            losses = match_step(fast, maps, tuned, noisy, 1000 * sigma, words, target)
            optimizer.step(rate((stage.fraction - DISTIL_SHARE) / (1 - DISTIL_SHARE)))
        average.update()
        if stage.step % (1 if args.smoke else 100) == 0:
            what = "attention error^2 by block" if distilling else "flow, teacher's flow, to teacher"
            stage.log(f"step {stage.step} {what} " + " ".join(f"{float(x):.4f}" for x in losses))
        stage.step += 1
    stage.save()
    save_final(average.mean, Path(args.work) / f"{student_name(ranks)}_final.pt")


DISTIL_SHARE = 0.3  # of a student's time, before fine-tuning


def match_step(fast, maps, tuned, noisy, timestep, words, target):
    """Gradients of half the flow-matching loss and the distance to the teacher's velocity; the three losses."""
    with torch.no_grad():
        goal = fast(noisy, timestep, *words)
    velocity = fast(noisy, timestep, *words, maps=maps, weights=tuned)
    flow, match = F.mse_loss(velocity, target), F.mse_loss(velocity, goal)
    (0.5 * flow + match).backward()
    return flow.detach(), F.mse_loss(goal, target), match.detach()


class TensorState:
    """state_dict over a plain dictionary of tensors."""

    def __init__(self, tensors: dict):
        self.tensors = tensors

    def state_dict(self):
        return {n: t.detach() for n, t in self.tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state):
        for name, value in state.items():
            self.tensors[name].copy_(value)


def distil_step(fast, attend, maps, noisy, timestep, words):
    """One pass of the teacher; at each block the maps' own loss is differentiated at once. Relative errors by block."""
    losses = []
    with torch.no_grad():
        x, modulation, _, context = fast.prepare(noisy, timestep, words[0])
    for i in range(len(fast.model.blocks)):
        p = fast.block_parameters(i)
        with torch.no_grad():
            mod = p.pop("scale_shift_table") + modulation
            q, k, v = fast.inputs(p, x, mod, fast.rope)
            goal = models.softmax_attention(q, k, v)
        error = (attend(q, k, v, maps.of_block(i)).float() - goal.float()).square().mean()
        loss = error / goal.float().square().mean()
        loss.backward()
        losses.append(loss.detach())
        with torch.no_grad():
            x = fast.rest(p, x, goal, context, words[1], mod)
    return losses


def train_classifier(args):
    stage = Stage(args, "classifier")
    torch.manual_seed(6)
    model = Classifier().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    stage.resume(model=model, optimizer=optimizer)
    draw = renderer(args)
    generator = torch.Generator().manual_seed(4000 + stage.step)
    batch = 4 if args.smoke else 128
    while stage.running():
        scenes = world.sample_scenes(batch, generator, pairs=0.4)
        clip, _ = draw(scenes, range(0, world.FRAMES, 4))
        x = classifier_input(clip, every=1)
        x = soften(x, generator)
        with autocast():
            scores, _ = model(x)
        loss = sum(F.cross_entropy(s.float(), y) for s, y in zip(scores, labels(scenes, DEVICE), strict=True))
        loss.backward()
        optimizer.param_groups[0]["lr"] = 2e-3 * rate(stage.fraction)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if stage.step % (1 if args.smoke else 200) == 0:
            stage.log(f"step {stage.step} loss {loss.item():.4f}")
        stage.step += 1
    stage.save()
    save_final(model.state_dict(), Path(args.work) / "classifier_final.pt")


def soften(x, generator):
    """Half of the clips a little blurred and noisy, so that a decoder's softness is not what is judged."""
    blurred = F.interpolate(
        F.interpolate(x, scale_factor=(1, 0.5, 0.5), mode="area"), size=x.shape[2:], mode="trilinear"
    )
    amount = torch.rand(len(x), 1, 1, 1, 1, generator=generator).to(x.device)
    amount = (2 * amount - 1).clamp(min=0)
    return torch.lerp(x, blurred, amount) + 0.05 * amount * torch.randn_like(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {
        "tokenizer": train_tokenizer, "vae": train_vae, "latents": encode_latents, "classifier": train_classifier,
        "teacher": train_teacher, "student": train_student,
    }  # fmt: skip
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", default="out/train", help="folder of all state")
    parser.add_argument("--seconds", type=float, default=60, help="of this stage, over all its slices")
    parser.add_argument(
        "--until", type=float, default=0, help="end this slice at this time (seconds since 1970), resumable"
    )
    parser.add_argument("--init", help="vae: weights to start from instead of random ones")
    parser.add_argument("--clips", type=int, default=20000, help="latents: how many clips, as far as --seconds allow")
    parser.add_argument("--ranks", default="16,16", help="student: rank of each factor")
    parser.add_argument(
        "--after", help="student: a file of --work to wait for, so that two students do not share the device"
    )
    parser.add_argument("--smoke", action="store_true", help="three small steps, no compilation")
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    setup()
    stages[args.stage](args)


if __name__ == "__main__":
    main()
