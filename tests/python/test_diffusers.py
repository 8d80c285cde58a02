"""hla.diffusers in diffusers' own classes, against goldens made without it and against the engine. Needs diffusers."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.torch")
import hla.diffusers  # noqa: E402
import truth  # noqa: E402
from conftest import ROOT  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


def read_transformer(folder):
    """A checkpoint's transformer in float32, without what from_pretrained needs beyond diffusers."""
    model = diffusers.WanTransformer3DModel.from_config(json.loads((folder / "config.json").read_text()))
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= safetensors.load_file(file)
    model.load_state_dict(tensors)
    return model.float().eval()


def cases(folder):
    """latents [1,C,F,Y,X], timestep, text [1,L,d] and the velocity that is wanted, of every case."""
    tensors = safetensors.load_file(folder / "cases.safetensors")
    for c in sorted({name.split(".")[0] for name in tensors}):
        latents, text, velocity, timestep, rows = (
            tensors[f"{c}.{name}"] for name in ("latents", "text", "velocity", "timestep", "text_tokens")
        )
        padded = torch.zeros(1, int(rows), text.shape[1])
        padded[0, : len(text)] = text
        yield latents[None], timestep, padded, velocity[None]


@pytest.mark.parametrize("name", ["hla_mixed", "hla_variants", "many_tokens", "recipe"])
def test_golden_velocities(name):
    """make_dit.py's processor is written from the definition, in float64; the engine is tested on the same files."""
    model = read_transformer(GOLDEN / "dit" / name / "transformer")
    hla.diffusers.load_adapter(model, GOLDEN / "dit" / name / "hla")
    for latents, timestep, text, velocity in cases(GOLDEN / "dit" / name):
        with torch.no_grad():
            got = model(latents, timestep, text, return_dict=False)[0]
        assert truth.error(got, velocity) <= 5e-6


def test_gradients_reach_the_maps():
    model = read_transformer(GOLDEN / "dit" / "hla_mixed" / "transformer")
    hla.diffusers.load_adapter(model, GOLDEN / "dit" / "hla_mixed" / "hla")
    latents, timestep, text, velocity = next(cases(GOLDEN / "dit" / "hla_mixed"))
    maps = hla.diffusers.map_tensors(model)

    def loss():
        return (model(latents, timestep, text, return_dict=False)[0] - velocity).square().sum() * 1e3

    with torch.no_grad():
        for parameter in maps.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    gradients = torch.autograd.grad(loss(), list(maps.values()))
    direction = [g / sum(h.square().sum() for h in gradients).sqrt() for g in gradients]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction)).item()
    values = []
    with torch.no_grad():
        for step in (1e-3, -2e-3):
            for parameter, d in zip(maps.values(), direction):
                parameter.add_(step * d)
            values.append(loss().item())
    assert abs((values[0] - values[1]) / 2e-3 - slope) <= 2e-2 * abs(slope)


def test_fused_projections():
    model = read_transformer(GOLDEN / "dit" / "hla_mixed" / "transformer")
    hla.diffusers.load_adapter(model, GOLDEN / "dit" / "hla_mixed" / "hla")
    latents, timestep, text, velocity = next(cases(GOLDEN / "dit" / "hla_mixed"))
    for block in model.blocks:
        block.attn1.fuse_projections()
    with torch.no_grad():
        assert truth.error(model(latents, timestep, text, return_dict=False)[0], velocity) <= 5e-6


def test_compiled_in_one_graph():
    model = read_transformer(GOLDEN / "dit" / "hla_mixed" / "transformer")
    hla.diffusers.load_adapter(model, GOLDEN / "dit" / "hla_mixed" / "hla")
    latents, timestep, text, velocity = next(cases(GOLDEN / "dit" / "hla_mixed"))
    for block in model.blocks:
        block.attn1.compile(fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert truth.error(model(latents, timestep, text, return_dict=False)[0], velocity) <= 5e-6


@pytest.mark.skipif("HLA_PROGRAM" not in os.environ, reason="HLA_PROGRAM names no command hla")
def test_engine_agrees_on_latents(tmp_path):
    """A checkpoint converted here and now, blocks mixed: the engine's latents against those of diffusers' pipeline."""
    pytest.importorskip("accelerate")  # WanPipeline.from_pretrained
    sys.path.insert(0, str(GOLDEN))
    import make_converted

    pipe = make_converted.pipeline()
    hla.diffusers.set_attention(pipe.transformer, [{"ranks": [4, 4], "rope": "after"}, {"ranks": [3, 5]}])
    hla.diffusers.save_adapter(pipe.transformer, tmp_path / "hla")
    noise = torch.randn(1, 4, 3, 2, 4, generator=torch.Generator().manual_seed(9))
    call = dict(prompt="a green ball", negative_prompt="dark", height=16, width=32, num_frames=9,
                num_inference_steps=4, guidance_scale=3.0, latents=noise)  # fmt: skip
    want = pipe(**call, output_type="latent").frames[0]
    safetensors.save_file({"noise": noise[0]}, tmp_path / "noise.safetensors")
    subprocess.run(
        [os.environ["HLA_PROGRAM"], "generate", "a green ball", "--negative", "dark", "--model", make_converted.MODEL,
         "--adapter", tmp_path / "hla", "--size", "32x16", "--frames", "9", "--steps", "4", "--guidance", "3",
         "--initial-latents", tmp_path / "noise.safetensors", "--save-latents", tmp_path / "latents.safetensors",
         "-o", tmp_path / "clip.png", "--quiet"],
        check=True,
    )  # fmt: skip
    got = safetensors.load_file(tmp_path / "latents.safetensors")["latents"]
    assert truth.error(got, want) <= 1e-4  # asked: 1e-3
