#!/usr/bin/env python3
"""What PyTorch makes of the same attention on a GPU, to be read beside `hla bench attention --device cuda`.

    python3 bench/pytorch_attention.py --tokens 4096,32760 --ranks 64x64,32x32 --json pytorch.json

Softmax attention by scaled_dot_product_attention through cuDNN and through FlashAttention; Hadamard attention (HLA) as
operators make it, in the forms that were fastest, eagerly and by torch.compile; linear attention of one factor; a
bfloat16 product of 8192 x 8192 matrices and a copy. Times are medians of CUDA events after a warm-up. The JSON has the
form of the command's, so that the two can be laid side by side. Results of HLA are compared with a product of score
matrices in double precision on a few queries before they count.
"""
import argparse
import json
import math
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

WARM_UP_SECONDS = 0.05
METHOD_SECONDS = 1.0


def timed(run, repeat):
    """Seconds of one call: (fastest, median), by events; fewer samples of long calls."""
    def sample():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    first = sample()
    for _ in range(max(3, min(200, int(WARM_UP_SECONDS / first)))):
        first = sample()
    count = max(3, min(repeat, int(METHOD_SECONDS / first)))
    samples = [sample() for _ in range(count)]
    return min(samples), statistics.median(samples), count


def product_rate():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / timed(lambda: a @ b, 20)[1]


def copy_rate():
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda: target.copy_(source), 20)[1]


# ---- Hadamard linear attention of two or more factors, [B,H,T,R_p] features and [B,H,T,V] values ----


def outer(factors):
    """The Khatri-Rao product of the factors' features, [B,H,T,R]."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(-1) * factor.unsqueeze(-2)).flatten(-2)
    return product


def materialised(q, k, v):
    """Every feature in memory, two batched products."""
    a, c = outer(q), outer(k)
    state, z = c.transpose(-1, -2) @ v, c.sum(-2, dtype=torch.float32)
    denominator = torch.matmul(a, z.to(a.dtype).unsqueeze(-1)).float() + 1e-6
    return ((a @ state).float() / denominator).to(v.dtype)


def ones_column(q, k, v):
    """The denominator as one more column of the values: one product less to start."""
    a, c = outer(q), outer(k)
    padded = torch.nn.functional.pad(v, (0, 8), value=1.0)
    both = a @ (c.transpose(-1, -2) @ padded)
    width = v.shape[-1]
    return (both[..., :width].float() / (both[..., width:width + 1].float() + 1e-6)).to(v.dtype)


def chunked(q, k, v, tokens=4096):
    """Features of some thousand tokens at a time."""
    state, z = 0, 0
    for first in range(0, v.shape[-2], tokens):
        c = outer([factor[..., first:first + tokens, :] for factor in k])
        state = state + (c.transpose(-1, -2) @ v[..., first:first + tokens, :]).float()
        z = z + c.sum(-2, dtype=torch.float32)
    state, out = state.to(v.dtype), []
    for first in range(0, v.shape[-2], tokens):
        a = outer([factor[..., first:first + tokens, :] for factor in q])
        denominator = torch.matmul(a, z.to(a.dtype).unsqueeze(-1)).float() + 1e-6
        out.append(((a @ state).float() / denominator).to(v.dtype))
    return torch.cat(out, -2)


FORMS = {"materialised": materialised, "ones_column": ones_column, "chunked": chunked}


def truth(q, k, v, rows):
    """Some queries by the definition, in double precision."""
    weights = math.prod(a[..., rows, :].double() @ c.double().transpose(-1, -2) for a, c in zip(q, k))
    return weights @ v.double() / (weights.sum(-1, keepdim=True) + 1e-6)


def relative_error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


# ---- the benchmark ----


class Bench:
    def __init__(self, options):
        self.options, self.runs, self.peak = options, [], product_rate()

    def record(self, method, kernel, backward, tokens, ranks, flops, run, error=None):
        o = self.options
        entry = {"method": method, "kernel": kernel, "pass": "backward" if backward else "forward",
                 "mode": "bidirectional", "dtype": o.dtype, "B": o.batch, "H": o.heads, "T": tokens, "D": o.dim,
                 "V": o.dim, "ranks": ranks, "flops": flops, "relative_error": error}
        try:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            fastest, median, samples = timed(run, o.repeat)
            entry |= {"samples": samples, "seconds": fastest, "seconds_median": median,
                      "gflops": 1e-9 * flops / median, "peak_gflops": 1e-9 * self.peak,
                      "peak_share": flops / median / self.peak,
                      "workspace_bytes": torch.cuda.max_memory_allocated() - held}
            print(f"{entry['pass']:9} T {tokens:7} {method:9} {kernel:24} {ranks or '':9} {1e3 * median:10.4f} ms "
                  f"{1e-12 * flops / median:8.1f} TFLOP/s", flush=True)
        except (RuntimeError, torch.OutOfMemoryError) as failure:
            entry["lacks"] = str(failure).splitlines()[0][:300]
            print(f"{entry['pass']:9} T {tokens:7} {method:9} {kernel:24} {ranks or '':9} {entry['lacks']}", flush=True)
        self.runs.append(entry)

    def random(self, tokens, width, positive=False):
        o = self.options
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[o.dtype]
        made = torch.randn(o.batch, tokens, o.heads, width, device="cuda")
        return (made.relu() + 1e-3 if positive else made).to(dtype).transpose(1, 2)  # lies as [B,T,H,X]

    def measure_softmax(self, tokens):
        o = self.options
        q, k, v = (self.random(tokens, o.dim) for _ in range(3))
        flops = 4 * tokens * tokens * o.dim * o.heads * o.batch
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            def forward(backend=backend):
                with sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v)

            if "forward" in o.passes:
                with torch.no_grad():
                    self.record("softmax", f"SDPA {name}", False, tokens, None, flops, forward)
            if "backward" in o.passes:
                self.measure_backward("softmax", f"SDPA {name}", tokens, None, 2.5 * flops, forward, (q, k, v))

    def measure_backward(self, method, kernel, tokens, ranks, flops, forward, inputs):
        for tensor in inputs:
            tensor.requires_grad_(True)
        try:
            out = forward()
            gradient = torch.randn_like(out)
            self.record(method, kernel, True, tokens, ranks, flops,
                        lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True))
        except (RuntimeError, torch.OutOfMemoryError) as failure:
            print(f"{kernel}: {str(failure).splitlines()[0][:200]}")
        for tensor in inputs:
            tensor.requires_grad_(False)

    def measure_hadamard(self, tokens, ranks):
        o = self.options
        q, k = ([self.random(tokens, rank, True) for rank in ranks] for _ in range(2))
        v = self.random(tokens, o.dim)
        method, text = "linear" if len(ranks) == 1 else "hadamard", "x".join(map(str, ranks))
        flops = 4 * math.prod(ranks) * o.dim * tokens * o.heads * o.batch
        rows = torch.linspace(0, tokens - 1, 8, device="cuda").long()
        wanted = truth(q, k, v, rows)
        forms = dict(FORMS)
        if o.compile:
            forms |= {f"{name}, compiled": torch.compile(FORMS[name], dynamic=False)
                      for name in ("materialised", "ones_column")}
        for name, form in forms.items():
            try:
                with torch.no_grad():
                    error = relative_error(form(q, k, v)[..., rows, :], wanted)
            except (RuntimeError, torch.OutOfMemoryError) as failure:
                print(f"{name}: {str(failure).splitlines()[0][:200]}")
                continue
            if not error <= 2e-2:
                raise SystemExit(f"{name} at {text}: relative error {error:.2e}, wanted at most 2e-2")
            if "forward" in o.passes:
                with torch.no_grad():
                    self.record(method, name, False, tokens, text, flops, lambda form=form: form(q, k, v), error)
            if "backward" in o.passes:
                self.measure_backward(method, name, tokens, text, 2.5 * flops, lambda form=form: form(q, k, v),
                                      (*q, *k, v))
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4096,16384,32760,75600")
    parser.add_argument("--ranks", default="128,32x32,64x64,128x128", help="lists of ranks; one number is linear")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--dim", type=int, default=128, help="width of heads, of values too")
    parser.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    parser.add_argument("--passes", default="forward", help="forward, backward or both with a comma")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes half a minute")
    parser.add_argument("--no-softmax", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    options.passes = options.passes.split(",")
    if not torch.cuda.is_available():
        raise SystemExit("skipped: no device")
    torch.manual_seed(1)
    bench, copies = Bench(options), copy_rate()
    properties = torch.cuda.get_device_properties(0)
    name = f"{properties.name} ({properties.major}.{properties.minor})"
    print(f"{name}: product {1e-12 * bench.peak:.0f} TFLOP/s, copies {1e-12 * copies:.2f} TB/s, "
          f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}", flush=True)
    for tokens in map(int, options.tokens.split(",")):
        if not options.no_softmax:
            bench.measure_softmax(tokens)
        for ranks in options.ranks.split(","):
            bench.measure_hadamard(tokens, [int(rank) for rank in ranks.split("x")])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"device": {"name": name, "memory_bytes": properties.total_memory, "copy_gbytes": 1e-9 * copies},
                       "peak": {"of": "bf16 product 8192 x 8192 x 8192 by PyTorch", "gflops": 1e-9 * bench.peak},
                       "versions": {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()},
                       "repeat": options.repeat, "runs": bench.runs}, file, indent=1)


if __name__ == "__main__":
    main()
