"""Golden outputs of diffusers' WanTransformer3DModel on tiny random checkpoints; read by tests/dit.

Run from the repository's root:  python tests/golden/make_dit.py
Each case is a directory under tests/golden/dit: transformer/ as save_pretrained writes it, hla/ (config.json,
model.safetensors) where blocks are Hadamard, and cases.safetensors with, for each case c, the tensors c.latents
[C,F,Y,X], c.text [real rows, text_dim], c.velocity, and the number c.timestep, c.text_tokens.
"""
import json
import os
import pathlib
import shutil

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "dit"


def randomised(seed, **config):
    """A model whose every parameter is random, so that none can be forgotten: norm weights and tables too."""
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif "scale_shift_table" in name:
                parameter.copy_(0.5 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)
    return model


def inputs(model, seed, frames, rows, columns, real, text_tokens):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, model.config.in_channels, frames, rows, columns, generator=generator)
    text = torch.zeros(1, text_tokens, model.config.text_dim)
    text[:, :real] = torch.randn(1, real, model.config.text_dim, generator=generator)
    return latents, text


def record(folder, model, cases):
    """cases: (timestep, frames, rows, columns, real text rows, text rows)."""
    tensors = {}
    for c, (timestep, frames, rows, columns, real, text_tokens) in enumerate(cases):
        latents, text = inputs(model, 100 + c, frames, rows, columns, real, text_tokens)
        with torch.no_grad():
            velocity = model(latents.to(model.dtype), torch.tensor([timestep]), text.to(model.dtype),
                             return_dict=False)[0]
        tensors |= {
            f"{c}.latents": latents[0].contiguous(),
            f"{c}.text": text[0, :real].contiguous(),
            f"{c}.velocity": velocity[0].float().contiguous(),
            f"{c}.timestep": torch.tensor([float(timestep)]),
            f"{c}.text_tokens": torch.tensor([float(text_tokens)]),
        }
    save_file(tensors, folder / "cases.safetensors")


def save(name, model, cases, **options):
    folder = OUT / name
    model.save_pretrained(folder / "transformer", **options)
    record(folder, model, cases)
    return folder


# Hadamard linear attention, as docs/OPERATOR.md defines it, in double.

ACTIVATIONS = {
    "relu": lambda u, floor: u.clamp(min=0) + floor,
    "exp": lambda u, floor: (u - u.amax(-1, keepdim=True)).exp(),  # queries; keys below
    "softmax": lambda u, floor: u.softmax(-1),
    "softplus": lambda u, floor: torch.nn.functional.softplus(u),
    "elu1": lambda u, floor: torch.nn.functional.elu(u) + 1,
    "square": lambda u, floor: u * u,
    "identity": lambda u, floor: u,
}


def features(x, maps, block, is_query):
    """x [T,H,D] -> [T,H,R]."""
    if block["hidden"]:
        x = x + torch.relu(torch.einsum("thd,hed->the", x, maps["hidden.weight"]) + maps["hidden.bias"])
    u = torch.einsum("thd,hrd->thr", x, maps["weight"])
    if "bias" in maps:
        u = u + maps["bias"]
    if block["activation"] == "exp" and not is_query:
        return u.exp()
    return ACTIVATIONS[block["activation"]](u, block["activation_floor"])


def hadamard(q, k, v, query_maps, key_maps, block):
    """q, k, v [T,H,D]; the scores are written out, one T x T matrix a factor, and multiplied elementwise."""
    scores = 1
    for query_map, key_map in zip(query_maps, key_maps):
        scores = scores * torch.einsum("thr,shr->hts", features(q, query_map, block, True),
                                       features(k, key_map, block, False))
    out = torch.einsum("hts,shd->thd", scores, v)
    if block["normalised"]:
        return out / (scores.sum(-1).T[..., None] + block["epsilon"])
    return block["scale"] * out


def rotate(x, cosine, sine):
    """x [T,H,D]; tables [1,T,1,D] with every value twice."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cosine[0, ..., 0::2].double(), sine[0, ..., 0::2].double()
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


class HadamardProcessor:
    def __init__(self, query_maps, key_maps, block):
        self.query_maps, self.key_maps, self.block = query_maps, key_maps, block

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        split = lambda x: x[0].unflatten(-1, (attn.heads, -1)).double()
        q, k = split(attn.norm_q(attn.to_q(hidden_states))), split(attn.norm_k(attn.to_k(hidden_states)))
        if self.block["rope"] == "before":
            q, k = rotate(q, *rotary_emb), rotate(k, *rotary_emb)
        out = hadamard(q, k, split(attn.to_v(hidden_states)), self.query_maps, self.key_maps, self.block)
        return attn.to_out[0](out.flatten(-2)[None].to(hidden_states.dtype))


def block_config(**options):
    return {"kind": "hadamard", "ranks": [4, 4], "activation": "relu", "activation_floor": 1e-3, "normalised": True,
            "epsilon": 1e-6, "scale": 1.0, "hidden": False, "bias": True, "rope": "before"} | options


def add_adapter(model, blocks, seed):
    """Hangs the blocks' attention into model; returns the adapter's tensors (float32)."""
    generator = torch.Generator().manual_seed(seed)
    heads, width, tensors = model.config.num_attention_heads, model.config.attention_head_dim, {}
    for n, block in enumerate(blocks):
        if block["kind"] == "softmax":
            continue
        sides = {}
        for side in ("query_map", "key_map"):
            sides[side] = []
            for p, rank in enumerate(block["ranks"]):
                maps = {"weight": torch.randn(heads, rank, width, generator=generator) / width**0.5}
                if block["bias"]:
                    maps["bias"] = 0.3 * torch.randn(heads, rank, generator=generator)
                if block["hidden"]:
                    maps["hidden.weight"] = torch.randn(heads, width, width, generator=generator) / width**0.5
                    maps["hidden.bias"] = 0.2 * torch.randn(heads, width, generator=generator)
                tensors |= {f"blocks.{n}.attn1.{side}.{p}.{key}": value for key, value in maps.items()}
                sides[side].append({key: value.double() for key, value in maps.items()})
        model.blocks[n].attn1.set_processor(HadamardProcessor(sides["query_map"], sides["key_map"], block))
    return tensors


def save_adapter(folder, blocks, tensors):
    (folder / "hla").mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "HadamardLinearAttention", "num_layers": len(blocks), "blocks": blocks}
    (folder / "hla" / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, folder / "hla" / "model.safetensors")


def override(model, names, seed, tensors):
    """Gives the named parameters new values and puts these into the adapter."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            parameters[name].add_(0.3 * torch.randn(parameters[name].shape, generator=generator))
            tensors[name] = parameters[name].detach().clone()


PLAIN = {
    # name: config, cases, save_pretrained options, dtype
    "one_head": (dict(patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=3, out_channels=3,
                      text_dim=10, freq_dim=16, ffn_dim=20, num_layers=2, cross_attn_norm=True),
                 [(999, 1, 4, 6, 5, 9), (500, 5, 6, 2, 9, 9), (0, 2, 2, 2, 1, 512)], {}, torch.float32),
    "two_heads_sharded": (dict(patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=14, in_channels=4,
                               out_channels=4, text_dim=7, freq_dim=24, ffn_dim=33, num_layers=3, cross_attn_norm=False,
                               eps=1e-5),
                          [(901, 1, 3, 5, 3, 20), (37, 5, 5, 3, 0, 6)], {"max_shard_size": "24KB"}, torch.float32),
    "three_heads": (dict(patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=18, in_channels=16,
                         out_channels=16, text_dim=18, freq_dim=18, ffn_dim=50, num_layers=2, cross_attn_norm=True,
                         qk_norm=None),
                    [(750, 1, 10, 14, 7, 512), (3, 5, 6, 4, 12, 13)], {}, torch.float32),
    "time_patch": (dict(patch_size=(2, 1, 2), num_attention_heads=1, attention_head_dim=24, in_channels=2,
                        out_channels=2, text_dim=6, freq_dim=8, ffn_dim=24, num_layers=1, cross_attn_norm=True),
                   [(640, 4, 3, 6, 4, 8)], {}, torch.float32),
    "stored_bf16": (dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
                         out_channels=4, text_dim=12, freq_dim=16, ffn_dim=40, num_layers=2, cross_attn_norm=True),
                    [(812, 1, 6, 6, 5, 16), (250, 5, 4, 6, 2, 16)], {}, torch.bfloat16),
}

HADAMARD = {
    # name: base config, blocks, overridden parameters
    "hla_mixed": (dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
                       out_channels=4, text_dim=9, freq_dim=16, ffn_dim=30, num_layers=4, cross_attn_norm=True),
                  [block_config(ranks=[4, 5]), {"kind": "softmax"},
                   block_config(ranks=[6], activation="exp", bias=False),
                   block_config(ranks=[3, 2, 4], activation="softmax", hidden=True)],
                  ["blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.0.proj.bias", "scale_shift_table"]),
    "hla_variants": (dict(patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=14, in_channels=3,
                          out_channels=3, text_dim=9, freq_dim=16, ffn_dim=30, num_layers=4, cross_attn_norm=False),
                     [block_config(ranks=[4, 4], rope="after", hidden=True, activation_floor=0.02, epsilon=1e-4),
                      block_config(ranks=[2, 2, 2, 3], activation="softplus"),
                      block_config(ranks=[5, 3], activation="elu1", bias=False),
                      block_config(ranks=[3, 3], activation="identity", normalised=False, scale=0.05)], []),
    # More tokens than any part of the engine takes at once.
    "many_tokens": (dict(patch_size=(1, 1, 1), num_attention_heads=1, attention_head_dim=12, in_channels=1,
                         out_channels=1, text_dim=6, freq_dim=8, ffn_dim=20, num_layers=2, cross_attn_norm=True),
                    [block_config(ranks=[4, 4]), {"kind": "softmax"}], []),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for seed, (name, (config, cases, options, dtype)) in enumerate(PLAIN.items()):
        model = randomised(seed, **config)
        if dtype == torch.bfloat16:  # stored in bf16, computed in float32 from the rounded weights
            model.to(dtype).save_pretrained(OUT / name / "transformer")
            record(OUT / name, WanTransformer3DModel.from_pretrained(OUT / name / "transformer"), cases)
        else:
            save(name, model, cases, **options)
    cases = [(999, 1, 4, 6, 5, 12), (420, 5, 6, 4, 3, 12)]
    for seed, (name, (config, blocks, overridden)) in enumerate(HADAMARD.items()):
        model = randomised(50 + seed, **config)
        model.save_pretrained(OUT / name / "transformer")
        tensors = add_adapter(model, blocks, 60 + seed)
        override(model, overridden, 70 + seed, tensors)
        record(OUT / name, model, [(555, 1, 45, 47, 3, 12)] if name == "many_tokens" else cases)
        save_adapter(OUT / name, blocks, tensors)
    for path in OUT.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
