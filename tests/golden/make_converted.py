"""Golden latents and frames of WanPipeline with hla.diffusers' attention in it; read by tests/pipeline.

Run from the repository's root, with the package hla and its libhla, after make_pipeline.py:
    python tests/golden/make_converted.py
The model is tests/golden/pipeline/softmax. tests/golden/converted has hla/ as hla.diffusers.save_adapter writes it, one
block converted and one not, with two of the transformer's own tensors, and golden/ as in make_pipeline.py.
"""
import os
import pathlib
import shutil

import hla.diffusers
import make_pipeline
import torch
from diffusers import WanPipeline

OUT = pathlib.Path(__file__).parent / "converted"
MODEL = make_pipeline.OUT / "softmax"
BLOCKS = [None, {"ranks": [3, 2, 2], "activation": "softplus", "hidden": True}]
TRAINED = ["blocks.1.attn1.to_q.weight", "blocks.0.attn1.to_out.0.bias"]


def pipeline():
    """The softmax checkpoint, in float32."""
    pipe = WanPipeline.from_pretrained(MODEL)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        part.float()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    pipe = pipeline()
    hla.diffusers.set_attention(pipe.transformer, BLOCKS)
    generator = torch.Generator().manual_seed(40)
    own = dict(pipe.transformer.named_parameters())
    with torch.no_grad():
        for parameter in [*hla.diffusers.map_tensors(pipe.transformer).values(), *(own[name] for name in TRAINED)]:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    hla.diffusers.save_adapter(pipe.transformer, OUT / "hla", with_weights=TRAINED)
    make_pipeline.record(OUT, pipe, [make_pipeline.case("a green ball rolls", "dark", 4.0, 5, 3.0, 16, 32, 9)])
    for path in OUT.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
