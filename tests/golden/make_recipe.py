"""Makes tests/golden/dit/recipe: a tiny transformer with the adapter as python/train computes and writes it.

    python tests/golden/make_recipe.py

The Hadamard linear attention of the training recipe is plain PyTorch; this is the proof that libhla computes the
same. Versions: torch 2.11, diffusers 0.42.1, transformers 5.17.
"""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python" / "train"))
import export  # noqa: E402

import models  # noqa: E402

OUT = ROOT / "tests" / "golden" / "dit" / "recipe"


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(21)
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=10,
        freq_dim=16, ffn_dim=40, num_layers=2, cross_attn_norm=True,
    )  # fmt: skip
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    maps = models.HadamardMaps(2, 2, 16, [5, 6])
    for p in maps.parameters():
        p.add_(0.2 * torch.randn_like(p))
    tuned = {n: p + 0.1 * torch.randn_like(p) for n, p in model.named_parameters() if ".attn1." in n}
    model.save_pretrained(OUT / "transformer")
    export.write_adapter(OUT / "hla", maps, tuned, torch.float32)

    fast = models.FastTransformer(model, torch.float32)
    cases = {}
    for case, (timestep, length) in enumerate([(987.0, 3), (250.0, 7)]):
        latents, text = torch.randn(1, 4, 3, 5, 6), torch.zeros(1, 9, 10)
        text[:, :length] = torch.randn(1, length, 10)
        mask = (torch.arange(9) < length).long()[None]
        velocity = fast(latents, torch.tensor([timestep]), *models.fold_text(text, mask), maps=maps, weights=tuned)
        cases[f"{case}.latents"], cases[f"{case}.velocity"] = latents[0], velocity[0]
        cases[f"{case}.text"] = text[0, :length].contiguous()
        cases[f"{case}.timestep"] = torch.tensor([timestep])
        cases[f"{case}.text_tokens"] = torch.tensor([float(models.TEXT_LENGTH)])
    save_file({n: t.contiguous() for n, t in cases.items()}, OUT / "cases.safetensors")


if __name__ == "__main__":
    main()
