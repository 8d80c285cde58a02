#!/usr/bin/env python3
"""Files of the reference libraries for tests/weights: safetensors, shards, configs and name maps.

Run by hand with torch, diffusers, transformers and safetensors installed: python tests/golden/make_weights.py
Writes tests/golden/weights/. The truth beside each file is PyTorch's own reading of it.
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel

OUT = pathlib.Path(__file__).parent / "weights"


def manifest(path, tensors):
    """One line a tensor: name, axes, sizes, first and last value, sum in double; non-finite values left out of the sum."""
    with open(path, "w", encoding="utf-8") as file:
        for name in sorted(tensors):
            values = tensors[name].detach().double().flatten()
            shape = " ".join(str(size) for size in tensors[name].shape)
            file.write(f"{name} {tensors[name].dim()} {shape} {values[0].item():.17g} {values[-1].item():.17g}"
                       f" {values.sum().item():.17g}\n".replace("  ", " "))


def dtypes():
    generator = torch.Generator().manual_seed(1)
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    brain = torch.randint(-32768, 32768, (2048,), generator=generator, dtype=torch.int16)
    special = torch.tensor([0, 1, 0x7F80, 0x7FC1, 0x7F7F, 0x0080, 0x007F], dtype=torch.int16)
    brain = torch.cat([brain, special, special | -32768])
    tensors = {
        "half": bits.view(torch.float16).reshape(256, 256),
        "brain": brain.view(torch.bfloat16),
        "single": torch.randn(3, 5, 7, generator=generator),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "index": torch.arange(6),
        "mask": torch.tensor([True, False, True]),  # three bytes: what follows lies unaligned
        "tail": torch.randn(5, generator=generator),
    }
    save_file(tensors, OUT / "dtypes.safetensors", metadata={"format": "pt", "note": "Grüße"})
    for name in ("half", "brain"):
        tensors[name].float().numpy().tofile(OUT / f"{name}.f32")


def transformer():
    torch.manual_seed(2)
    model = WanTransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
                                  out_channels=4, text_dim=16, freq_dim=32, ffn_dim=48, num_layers=2)
    state = model.state_dict()
    manifest(OUT / "transformer.txt", state)
    model.save_pretrained(OUT / "transformer", max_shard_size="24KB")
    model.to(torch.bfloat16).save_pretrained(OUT / "transformer_bf16")
    manifest(OUT / "transformer_bf16.txt", model.state_dict())


def to_original_transformer(name):
    for new, old in [("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
                     ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
                     ("condition_embedder.time_proj", "time_projection.1"),
                     ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
                     ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
                     ("attn1", "self_attn"), ("attn2", "cross_attn"), ("to_out.0", "o"), ("to_q", "q"), ("to_k", "k"),
                     ("to_v", "v"), ("norm2", "norm3"), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
                     ("proj_out", "head.head")]:
        name = name.replace(new, old)
    if name == "scale_shift_table":
        return "head.modulation"
    return name.replace("scale_shift_table", "modulation")


def original_vae_names():
    names = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]

    def residual(prefix, shortcut):
        parts = ["residual.0.gamma", "residual.2.weight", "residual.2.bias", "residual.3.gamma", "residual.6.weight",
                 "residual.6.bias"] + (["shortcut.weight", "shortcut.bias"] if shortcut else [])
        return [f"{prefix}.{part}" for part in parts]

    def middle(prefix):
        attention = ["norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias"]
        return (residual(f"{prefix}.middle.0", False) + [f"{prefix}.middle.1.{part}" for part in attention]
                + residual(f"{prefix}.middle.2", False))

    for prefix in ("encoder", "decoder"):
        names += [f"{prefix}.conv1.weight", f"{prefix}.conv1.bias", f"{prefix}.head.0.gamma",
                  f"{prefix}.head.2.weight", f"{prefix}.head.2.bias"] + middle(prefix)
    for i in range(11):
        if i in (2, 5, 8):
            names += [f"encoder.downsamples.{i}.resample.1.{part}" for part in ("weight", "bias")]
            if i > 2:
                names += [f"encoder.downsamples.{i}.time_conv.{part}" for part in ("weight", "bias")]
        else:
            names += residual(f"encoder.downsamples.{i}", i in (3, 6))
    for i in range(15):
        if i in (3, 7, 11):
            names += [f"decoder.upsamples.{i}.resample.1.{part}" for part in ("weight", "bias")]
            if i < 11:
                names += [f"decoder.upsamples.{i}.time_conv.{part}" for part in ("weight", "bias")]
        else:
            names += residual(f"decoder.upsamples.{i}", i == 4)
    return names


def pairs(path, originals, convert):
    """Where diffusers' own conversion takes each original name: every tensor carries its number."""
    numbered = {name: torch.tensor(i) for i, name in enumerate(originals)}
    converted = convert(dict(numbered))
    where = {int(tensor): name for name, tensor in converted.items()}
    assert len(where) == len(originals), "a name was lost"
    with open(path, "w", encoding="utf-8") as file:
        for i, name in enumerate(originals):
            file.write(f"{name} {where[i]}\n")
    return set(where.values())


def names():
    with torch.device("meta"):
        expected = set(WanTransformer3DModel(num_layers=2, num_attention_heads=12, ffn_dim=8960).state_dict())
        expected_vae = set(AutoencoderKLWan().state_dict())
    originals = [to_original_transformer(name) for name in sorted(expected)]
    assert pairs(OUT / "names_transformer.txt", originals, convert_wan_transformer_to_diffusers) == expected
    assert pairs(OUT / "names_vae.txt", original_vae_names(), convert_wan_vae_to_diffusers) == expected_vae


def configs():
    vae = AutoencoderKLWan(base_dim=2, z_dim=4, dim_mult=[1, 2, 3], temperal_downsample=[True, False],
                           latents_mean=[0.5, -1, 0, 0.25], latents_std=[1, 2, 0.5, 3.5])
    vae.save_pretrained(OUT / "vae")
    text = UMT5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=3)
    UMT5EncoderModel(text).save_pretrained(OUT / "text_encoder")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0).save_config(
        OUT / "scheduler")
    index = {"_class_name": "WanPipeline", "_diffusers_version": "0.33.0.dev0",
             "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
             "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
             "vae": ["diffusers", "AutoencoderKLWan"]}
    (OUT / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def operations(call):
    """Floating point operations of products, convolutions and attention, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    return counter.get_total_flops()


def costs():
    """Tensors and parameters of the published sizes; operations of the small ones, for a clip of 32x48 and 9 frames."""
    with torch.device("meta"):
        wan = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
        vae = AutoencoderKLWan()
        umt5 = UMT5EncoderModel(UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24,
                                           num_heads=64))
    lines = []
    for name, model in [("transformer", wan), ("vae", vae), ("text_encoder", umt5)]:
        parameters = dict(model.named_parameters())  # without tied duplicates
        lines.append(f"{name} {len(parameters)} {sum(p.numel() for p in parameters.values())}")
    transformer = WanTransformer3DModel.from_pretrained(OUT / "transformer")
    text = UMT5EncoderModel.from_pretrained(OUT / "text_encoder")
    small_vae = AutoencoderKLWan.from_pretrained(OUT / "vae")
    latents = torch.zeros(1, 4, 5, 8, 12)
    prompt = torch.zeros(1, 512, 16)
    lines.append(f"forward {operations(lambda: transformer(latents, torch.tensor([500]), prompt))}")
    lines.append(f"encode {operations(lambda: text(torch.zeros(1, 512, dtype=torch.long)))}")
    lines.append(f"decode {operations(lambda: small_vae.decode(latents))}")
    (OUT / "costs.txt").write_text("\n".join(lines) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    dtypes()
    transformer()
    names()
    configs()
    costs()


if __name__ == "__main__":
    main()
