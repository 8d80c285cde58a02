"""Times diffusers' classes on the CPU for a checkpoint, to compare with `hla bench generate` on the same machine.

    python bench/diffusers_wan.py --model DIR [--threads 2] [--json FILE]

Measured with random inputs in float32: one forward of WanTransformer3DModel (softmax attention, 512 text rows) and one
decode of AutoencoderKLWan, the best of three each. A step with guidance is two forwards.
"""

import argparse
import json
import time

import diffusers
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel


def best(function, repeat=3):
    times = []
    for _ in range(repeat + 1):  # the first warms up
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def processor():
    with open("/proc/cpuinfo", encoding="ascii") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--latents", type=int, nargs=3, default=[9, 16, 16], metavar=("F", "Y", "X"))
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformer = WanTransformer3DModel.from_pretrained(args.model, subfolder="transformer", torch_dtype=torch.float32)
    vae = AutoencoderKLWan.from_pretrained(args.model, subfolder="vae", torch_dtype=torch.float32)
    latents = torch.randn(1, transformer.config.in_channels, *args.latents)
    text = torch.randn(1, 512, transformer.config.text_dim)
    timestep = torch.tensor([500])
    with torch.inference_mode():
        forward = best(lambda: transformer(latents, timestep, text))
        decode = best(lambda: vae.decode(latents))
    result = {
        "machine": {"processor": processor(), "threads": args.threads},
        "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        "latents": args.latents,
        "seconds_per_forward": forward, "seconds_per_step": 2 * forward, "decode_seconds": decode,
    }  # fmt: skip
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
