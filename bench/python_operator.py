"""What a call of the Python package costs: the call itself on tiny arrays, and the operator at Wan2.1-1.3B's shape on a
GPU, as PyTorch queues it and as a CUDA graph replays it, that is without Python.

    HLA_LIBRARY=build/libhla.so PYTHONPATH=python python bench/python_operator.py
"""

import time

import hla
import torch


def best(call, calls=200, rounds=30):
    """Microseconds of a call in the fastest of many rounds."""
    call()
    times = []
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return 1e6 * min(times)


def overhead(device):
    """One token: what is left is the way to libhla and back (on a GPU: until the work is queued)."""
    q = [torch.rand(1, 1, 1, 4, device=device) for _ in range(2)]
    v, weight = torch.rand(1, 1, 1, 8, device=device), torch.rand(1, 4, 8, device=device)
    followed, ones = v.clone().requires_grad_(), torch.ones_like(v)
    rows = {
        "scaled_dot_product_attention": lambda: torch.nn.functional.scaled_dot_product_attention(v, v, v),
        "hadamard_attention": lambda: hla.hadamard_attention(q, q, v),
        "hadamard_attention, followed": lambda: hla.hadamard_attention(q, q, followed),
        "the same and backward": lambda: hla.hadamard_attention(q, q, followed).backward(ones),
        "feature_map": lambda: hla.feature_map(v, weight),
    }
    if device == "cpu":
        arrays, values = [x.numpy() for x in q], v.numpy()
        rows["hadamard_attention of NumPy arrays"] = lambda: hla.hadamard_attention(arrays, arrays, values)
    for name, call in rows.items():
        print(f"{device:5} {name:36} {best(call):8.1f} us")


def milliseconds(call, repeat=30):
    """Of a call on the GPU; all are queued before the first is waited for."""
    call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeat + 1)]
    torch.cuda._sleep(10_000_000)
    for event in events[:-1]:
        event.record()
        call()
    events[-1].record()
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in zip(events, events[1:]))


def graphed(call):
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def large(rank, tokens=32760, heads=12, width=128):
    def random(size):
        return torch.rand(1, tokens, heads, size, device="cuda").to(torch.bfloat16)

    q, k, v = [random(rank), random(rank)], [random(rank), random(rank)], random(width)
    leaves = [x.requires_grad_() for x in (*q, *k, v)]
    d_out = random(width)

    def forward():
        with torch.no_grad():
            return hla.hadamard_attention(q, k, v)

    def both():
        return torch.autograd.grad(hla.hadamard_attention(q, k, v), leaves, d_out)

    print(f"2 x {rank}, bf16, {tokens} tokens, {heads} heads of {width}: forward {milliseconds(forward):.3f} ms "
          f"({milliseconds(graphed(forward)):.3f} without Python), forward and backward {milliseconds(both):.3f} "
          f"({milliseconds(graphed(both)):.3f})")  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    out = hla.hadamard_attention(q, k, v)
    kept = torch.cuda.memory_allocated() - start - out.numel() * 2
    print(f"    kept for the backward pass: {kept / 1e6:.1f} MB; peak of the call: "
          f"{(torch.cuda.max_memory_allocated() - start) / 1e6:.1f} MB")  # fmt: skip


def main():
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, hla {hla.__version__}")
    overhead("cpu")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        overhead("cuda")
        for rank in (32, 64):
            large(rank)


if __name__ == "__main__":
    main()
