"""The package on an NVIDIA GPU: the definition in float64, streams, graphs, compile, states. Skipped without one."""

import pytest

torch = pytest.importorskip("torch")
import hla  # noqa: E402
import truth  # noqa: E402
from hla import _ops  # noqa: E402
from test_operator import MODES, arrays, double  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # docs/OPERATOR.md, section 7


def on_gpu(q, k, v, options):
    def moved(x):
        return x.detach().cuda().requires_grad_(x.requires_grad)

    if options.get("initial_state") is not None:
        options = {**options, "initial_state": moved(options["initial_state"])}
    return [moved(x) for x in q], [moved(x) for x in k], moved(v), options


def large(dtype, ranks=(32, 32), T=700, requires_grad=True):
    """Sizes that tensor cores take, at an odd number of tokens."""
    torch.manual_seed(T)
    q, k = ([torch.rand(2, T, 3, R, device="cuda", dtype=dtype) for R in ranks] for _ in range(2))
    v = torch.randn(2, T, 3, 64, device="cuda", dtype=dtype)
    for x in (*q, *k, v):
        x.requires_grad_(requires_grad)
    return q, k, v


def gradients(out, leaves):
    torch.manual_seed(5)
    return torch.autograd.grad(out, leaves, torch.randn(out.shape, device="cuda").to(out.dtype))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", MODES)
def test_modes(name, dtype):
    q, k, v, options = on_gpu(*arrays((4, 3), MODES[name], dtype, requires_grad=True))
    q64, k64, v64, options64 = double(q, k, v, options)
    out, state = hla.hadamard_attention(q, k, v, return_state=True, **options)
    want, want_state = truth.hadamard(q64, k64, v64, **options64)
    assert truth.error(out, want) <= BOUNDS[dtype] and truth.error(state, want_state) <= BOUNDS[dtype]
    for a, b in zip(gradients(out, [*q, *k, v]), gradients(want, [*q64, *k64, v64])):
        assert truth.error(a, b) <= 2 * BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("ranks", [(32, 32), (64, 64), (16, 16)], ids=str)
def test_large(ranks, dtype):
    q, k, v = large(dtype, ranks)
    q64, k64, v64, _ = double(q, k, v, {})
    out, (want, _) = hla.hadamard_attention(q, k, v), truth.hadamard(q64, k64, v64)
    assert truth.error(out, want) <= BOUNDS[dtype]
    for a, b in zip(gradients(out, [*q, *k, v]), gradients(want, [*q64, *k64, v64])):
        assert truth.error(a, b) <= 2 * BOUNDS[dtype]


def test_kept_workspace():
    """The backward pass gives the same from what the forward pass kept as from nothing; little is kept."""
    q, k, v = large(torch.bfloat16, requires_grad=False)
    options = (False, True, 1e-6, 1.0, False)
    out, kept = _ops._call_hadamard(q, k, v, None, None, None, None, *options, True)
    nothing = kept[:0]
    a, b = (
        _ops._call_hadamard_backward(torch.ones_like(out), None, q, k, v, None, None, None, None, *options, x)
        for x in (kept, nothing)
    )
    for x, y in zip(a, b):
        assert torch.equal(x, y)


def test_strides():
    q, k, v = large(torch.bfloat16, requires_grad=False)
    want = hla.hadamard_attention(q, k, v)
    q, k, v = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in q], k, v[:, :, :, :]
    assert torch.equal(hla.hadamard_attention(q, k, v), want)
    wide = torch.zeros(2, 700, 3, 128, device="cuda", dtype=torch.bfloat16)
    wide[..., ::2] = v
    assert truth.error(hla.hadamard_attention(q, k, wide[..., ::2]), want) <= 1e-2


def test_streams():
    """Work is queued on the current stream, behind what its inputs wait for; workspaces of two streams stay apart."""
    q, k, v = large(torch.bfloat16, requires_grad=False)
    want = hla.hadamard_attention(q, k, v)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                late = torch.zeros_like(v)
                torch.cuda._sleep(2_000_000)
                late.copy_(v)
                results.append(hla.hadamard_attention(q, k, late))
    torch.cuda.synchronize()
    assert all(torch.equal(result, want) for result in results)


def test_backward_is_on_the_stream_of_the_forward_pass():
    q, k, v = large(torch.bfloat16)
    want = gradients(hla.hadamard_attention(q, k, v), [*q, *k, v])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = gradients(hla.hadamard_attention(q, k, v), [*q, *k, v])
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_cuda_graph():
    q, k, v = large(torch.bfloat16, requires_grad=False)
    hla.hadamard_attention(q, k, v)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = hla.hadamard_attention(q, k, v)
    v.copy_(torch.randn_like(v))
    graph.replay()
    assert torch.equal(out, hla.hadamard_attention(q, k, v))


def test_autocast():
    q, k, v = large(torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = hla.hadamard_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in (*q, *k, v))


@pytest.mark.parametrize("dynamic, mode", [(False, "default"), (True, "default"), (False, "reduce-overhead")])
def test_compile(dynamic, mode):
    """Graphs of changing shapes are left out: docs/STATUS.md says why."""
    torch._dynamo.reset()
    module = hla.HadamardAttention(3, 64, [32, 32]).cuda()

    def step(q, k, v):
        with torch.autocast("cuda", torch.bfloat16):
            return module(q, k, v)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, mode=mode)
    for T in (700, 731):
        torch.manual_seed(T)
        q, k, v = (torch.randn(1, T, 3, 64, device="cuda", requires_grad=True) for _ in range(3))
        leaves = [q, k, v, *module.parameters()]
        for _ in range(3):  # graphs are captured from the second call on
            out = compiled(q, k, v)
            got = [x.clone() for x in gradients(out, leaves)]
        want = step(q, k, v)
        assert truth.error(out, want) <= 1e-6
        for a, b in zip(got, gradients(want, leaves)):
            assert truth.error(a, b) <= 1e-6


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_feature_map(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 301, 3, 64, device="cuda", dtype=dtype, requires_grad=True)
    weights = [torch.randn(*shape, device="cuda") / 8 for shape in ((3, 32, 64), (3, 32), (3, 64, 64), (3, 64))]
    weights = [weight.requires_grad_() for weight in weights]
    angle = torch.rand(301, 32, device="cuda") * 6
    rope = torch.stack([angle.cos(), angle.sin()], -1)
    copies = [x.detach().double().requires_grad_(), *(weight.detach().double().requires_grad_() for weight in weights)]
    out = hla.feature_map(x, *weights, activation="softplus", rope=rope)
    want = truth.feature_map(*copies, activation="softplus", rope=rope.double())
    assert truth.error(out, want) <= BOUNDS[dtype]
    for a, b in zip(gradients(out, [x, *weights]), gradients(want, copies)):
        assert truth.error(a, b) <= 2 * BOUNDS[dtype]


def test_state():
    """Steps on the GPU against one causal pass; the data are the state's own memory; across devices and bytes."""
    q, k, v = large(torch.float32, (4, 3), T=9, requires_grad=False)
    want, want_state = hla.hadamard_attention(q, k, v, causal=True, return_state=True)
    state = hla.State(batch=2, heads=3, value_dim=64, ranks=(4, 3), device="cuda")
    parts = [
        state.step([x[:, a:b] for x in q], [x[:, a:b] for x in k], v[:, a:b]) for a, b in ((0, 4), (4, 5), (5, 9))
    ]
    assert truth.error(torch.cat(parts, 1), want) <= 1e-5 and truth.error(state.data, want_state) <= 1e-5
    there = state.clone("cpu")
    assert (torch.from_numpy(there.data) == state.data.cpu()).all()
    back = hla.State.load(there.save(), device="cuda")
    state.data.mul_(2)
    back.merge(back.clone())
    assert torch.equal(back.data, state.data) and torch.equal(back.query(q), state.query(q))
    with pytest.raises(ValueError, match=r"k_features\[0\] is on the CPU, the state on cuda:0"):
        state.append([x.cpu() for x in k], v.cpu())


def test_wrong_devices():
    q, k, v = large(torch.float32, requires_grad=False)
    with pytest.raises(ValueError, match=r"k_features\[1\] is on the CPU, v on cuda:0"):
        hla.hadamard_attention(q, [k[0], k[1].cpu()], v)
    with pytest.raises(ValueError, match="key_lengths is on cuda:0, wanted the CPU's memory"):
        hla.hadamard_attention(q, k, v, key_lengths=torch.tensor([3, 4], device="cuda"))
    with pytest.raises(ValueError, match="initial_state is on cpu, wanted cuda:0"):
        hla.hadamard_attention(q, k, v, initial_state=torch.rand(2, 3, 1024, 65))
    with pytest.raises(ValueError, match="weight is on cpu, wanted cuda:0"):
        hla.feature_map(v, torch.rand(3, 8, 64))


def test_the_threads_device_stays():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    q, k, v = (([x.to("cuda:1") for x in part] if isinstance(part, list) else part.to("cuda:1"))
               for part in large(torch.float32, requires_grad=False))  # fmt: skip
    hla.hadamard_attention(q, k, v)
    assert torch.cuda.current_device() == 0
