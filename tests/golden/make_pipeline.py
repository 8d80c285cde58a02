"""Golden latents and frames of diffusers' whole WanPipeline on tiny random checkpoints; read by tests/pipeline.

Run from the repository's root:  python tests/golden/make_pipeline.py
Each directory under tests/golden/pipeline is a checkpoint as save_pretrained writes it (in bf16; the reference loads it
back and computes in float32), with hla/ beside where blocks are Hadamard, and golden/: for each case c a file
c.noise.safetensors (tensor "noise" [C,F,Y,X], metadata with the call's arguments) and c.result.safetensors ("latents"
and "frames" [N,height,width,3], bytes as float16).
"""
import os
import pathlib
import shutil

import sentencepiece
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

import make_dit

OUT = pathlib.Path(__file__).parent / "pipeline"

SENTENCES = [
    "a rocket flies up over a blue background", "a red car drives to the right", "two cats bounce on the grass",
    "the sun goes down slowly", "a green ball rolls over the table", "a dog spins around and around",
    "blurry, ugly, dark",
]


def tokenizer(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rules = folder / "rules.tsv"  # full-width A to A: a charsmap of a few bytes instead of all of NFKC
    rules.write_text("FF21\t41\n")
    with open(folder / "spiece.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4), model_writer=model, model_type="unigram", vocab_size=50, pad_id=0,
            eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
            normalization_rule_tsv=str(rules))
    rules.unlink()
    return T5Tokenizer.from_pretrained(folder, extra_ids=4)


def scatter_parameters(model, seed, norm_word):
    """Every parameter random: norms about 1, the rest as wide as their fan-in wants."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if norm_word in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise)
    return model


def text_encoder(width, heads, layers, seed):
    config = UMT5Config(vocab_size=64, d_model=width, d_kv=6, d_ff=2 * width, num_heads=heads, num_layers=layers,
                        relative_attention_num_buckets=32, relative_attention_max_distance=128,
                        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    return scatter_parameters(UMT5EncoderModel(config), seed, "layer_norm")


def build(folder, text, transformer, vae, shift, seed, blocks=None):
    """Saves a checkpoint in bf16 and gives back the pipeline read from it in float32, with its HLA blocks."""
    components = dict(
        tokenizer=tokenizer(folder / "tokenizer"),
        text_encoder=text_encoder(*text, seed + 1),
        vae=scatter_parameters(AutoencoderKLWan(**vae), seed + 2, "gamma"),
        transformer=make_dit.randomised(seed + 3, **transformer),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift))
    for part in ("text_encoder", "vae", "transformer"):
        components[part].to(torch.bfloat16)
    WanPipeline(**components).save_pretrained(folder)
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if blocks:
        tensors = make_dit.add_adapter(pipe.transformer, blocks, seed + 4)
        make_dit.save_adapter(folder, blocks, tensors)
    return pipe


def record(folder, pipe, cases):
    (folder / "golden").mkdir()
    for c, case in enumerate(cases):
        generator = torch.Generator().manual_seed(c)
        config = pipe.vae.config
        shape = (config.z_dim, (case["frames"] - 1) // config.scale_factor_temporal + 1,
                 case["height"] // config.scale_factor_spatial, case["width"] // config.scale_factor_spatial)
        noise = torch.randn(1, *shape, generator=generator)
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=case["shift"])
        call = dict(prompt=case["prompt"], negative_prompt=case["negative"], height=case["height"], width=case["width"],
                    num_frames=case["frames"], num_inference_steps=case["steps"], guidance_scale=case["guidance"],
                    latents=noise)
        latents = pipe(**call, output_type="latent").frames[0]
        frames = pipe(**call, output_type="np").frames[0]
        pixels = (frames * 255).astype("uint8")  # as export_to_video does
        print(folder.name, c, "latents", tuple(latents.shape), float(latents.std()), "pixels", pixels.mean(),
              pixels.std())
        metadata = {key: str(value) for key, value in case.items()}
        save_file({"noise": noise[0].contiguous()}, folder / "golden" / f"{c}.noise.safetensors", metadata)
        save_file({"latents": latents.contiguous(), "frames": torch.from_numpy(pixels).half().contiguous()},
                  folder / "golden" / f"{c}.result.safetensors")


def case(prompt, negative, guidance, steps, shift, height, width, frames):
    return dict(prompt=prompt, negative=negative, guidance=guidance, steps=steps, shift=shift, height=height,
                width=width, frames=frames)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    vae = dict(base_dim=4, z_dim=4, num_res_blocks=1, dropout=0.0, latents_mean=[0.1, -0.2, 0.3, 0.0],
               latents_std=[0.9, 1.2, 0.7, 1.1])
    pipe = build(
        OUT / "softmax", (16, 3, 2),
        dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
             text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True),
        vae | dict(dim_mult=[1, 2, 2, 2], temperal_downsample=[False, True, True]), 3.0, 10)
    record(OUT / "softmax", pipe, [
        case("a rocket flies up over a blue background", "", 1.0, 4, 3.0, 16, 32, 9),
        case("  two &amp;amp; cats\n bounce", "blurry, ugly", 5.0, 6, 5.0, 32, 16, 5),
        case("the sun", "", 3.5, 5, 3.0, 16, 16, 1),
    ])
    pipe = build(
        OUT / "hadamard", (14, 2, 1),
        dict(patch_size=(1, 1, 1), num_attention_heads=1, attention_head_dim=18, in_channels=4, out_channels=4,
             text_dim=14, freq_dim=12, ffn_dim=24, num_layers=2, cross_attn_norm=False),
        vae | dict(dim_mult=[1, 2, 1], temperal_downsample=[True, False], scale_factor_temporal=2,
                   scale_factor_spatial=4), 5.0, 20,
        [make_dit.block_config(ranks=[4, 4]), make_dit.block_config(ranks=[3, 5], activation="softplus")])
    record(OUT / "hadamard", pipe, [case("a dog spins around", "dark", 4.0, 5, 5.0, 16, 32, 5)])
    for path in OUT.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
