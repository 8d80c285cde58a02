"""The training recipe against what it stands on: diffusers' classes, the operator's definition, the world's own rules.

    pip install torch diffusers transformers sentencepiece pytest && pytest tests/python/test_recipe.py

Not part of `make test`, which has no diffusers. That libhla computes the recipe's attention is:
tests/golden/make_recipe.py.
"""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python" / "train"))
import optimizer  # noqa: E402
import world  # noqa: E402

import models  # noqa: E402


def error(got, want):
    return ((got - want).norm() / want.norm()).item()


@torch.no_grad()
def shaken(model, amount=0.05):
    """The model with every parameter moved, so that zeros and ones hide nothing."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.add_(amount * torch.randn_like(p))
    return model


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_whole_clip_vae_is_the_chunked_one(frames):
    vae = shaken(models.build_vae())
    whole = models.WholeClipVae(vae)
    clip = torch.randn(1, 3, frames, 32, 24)
    mean, logvar = whole.encode(clip)
    reference = vae.encode(clip).latent_dist
    assert error(mean, reference.mean) < 1e-4
    assert error(logvar, reference.logvar) < 1e-4
    latents = torch.randn(1, models.LATENT_CHANNELS, (frames - 1) // 4 + 1, 4, 3)
    assert error(whole.decode(latents).clamp(-1, 1), vae.decode(latents).sample) < 1e-4


@torch.no_grad()
def test_fast_transformer_is_the_model_with_512_text_rows():
    model = shaken(models.build_transformer())
    latents, timestep = torch.randn(2, models.LATENT_CHANNELS, 3, 4, 5), torch.tensor([900.0, 300.0])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    hidden = torch.randn(2, 6, model.config.text_dim)
    full = torch.zeros(2, models.TEXT_LENGTH, model.config.text_dim)
    full[:, :6] = hidden * mask[..., None]
    fast = models.FastTransformer(model, torch.float32)
    assert error(fast(latents, timestep, *models.fold_text(hidden, mask)), model(latents, timestep, full).sample) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("ranks", [[7], [5, 6], [3, 2, 4]])
def test_hadamard_attention_is_the_product_of_score_matrices(ranks):
    maps = models.HadamardMaps(1, 2, 8, ranks).double().of_block(0)
    q, k, v = torch.randn(3, 1, 2, 11, 8, dtype=torch.double)
    scores = 1.0
    for p in range(len(ranks)):
        a, c = (
            torch.relu(
                torch.einsum("bhtd,hrd->bhtr", x, maps[f"{kind}.{p}.weight"]) + maps[f"{kind}.{p}.bias"][:, None]
            )
            + models.FLOOR
            for x, kind in ((q, "query_map"), (k, "key_map"))
        )
        scores = scores * (a @ c.transpose(-1, -2))
    want = scores @ v / (scores.sum(-1, keepdim=True) + models.EPSILON)
    assert error(models.hadamard_attention(q, k, v, maps), want) < 1e-6  # denominators are summed in float32


def test_training_never_sees_held_out_triples():
    generator = torch.Generator().manual_seed(1)
    for test in (False, True):
        scenes = world.sample_scenes(5000, generator, test=test)
        out = world.held_out(scenes.object, scenes.motion, scenes.background[:, None])
        present = scenes.object >= 0
        assert (out[present] == test).all()
        assert len(set(scenes.object[present].tolist())) == len(world.OBJECTS)
        assert len(set(scenes.motion[present].tolist())) == len(world.MOTIONS)


def test_captions_name_what_is_seen():
    scenes = world.sample_scenes(500, torch.Generator().manual_seed(2))
    for sentence, objects, background in zip(
        world.captions(scenes, random.Random(2)), scenes.object.tolist(), scenes.background.tolist(), strict=True
    ):
        assert all(world.OBJECTS[o][0] in sentence.lower() for o in objects if o >= 0)
        assert world.BACKGROUNDS[background][0] in sentence.lower()


def test_objects_move_as_the_caption_says():
    """The centre of what is drawn moves by the direction of its motion; growth and shrinking change its area."""
    sprites = torch.zeros(len(world.OBJECTS), 16, 16, 4, dtype=torch.uint8)
    sprites[:, 2:14, 2:14] = 255
    draw = world.Renderer(sprites, "cpu")
    scenes = world.sample_scenes(200, torch.Generator().manual_seed(3), pairs=0.0)
    _, cover = draw(scenes, [0, world.FRAMES - 1])
    area = cover.sum((1, 3, 4))
    axis = torch.arange(world.SIZE).float()
    x = (cover.sum((1, 3)) * axis).sum(-1) / area
    y = (cover.sum((1, 4)) * axis).sum(-1) / area
    for i, motion in enumerate(scenes.motion[:, 0].tolist()):
        direction = world.MOTIONS[motion][1]
        if direction is not None:
            assert direction[0] == 0 or (x[i, 1] - x[i, 0]) * direction[0] > 30
            assert direction[1] == 0 or (y[i, 1] - y[i, 0]) * direction[1] > 30
        if motion in (world.GROW, world.SHRINK):
            assert (area[i, 1] > 3 * area[i, 0]) == (motion == world.GROW)


def test_muon_steps_are_orthogonal():
    torch.manual_seed(4)
    for shape in ((3, 16, 16), (2, 32, 8), (2, 8, 32)):
        singular = torch.linalg.svdvals(optimizer.orthogonalise(torch.randn(shape)).float())
        assert singular.min() > 0.3 and singular.max() < 1.5
