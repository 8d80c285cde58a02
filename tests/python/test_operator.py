"""hla.hadamard_attention and its gradients against the definition in float64, in every mode and layout."""

import pytest

torch = pytest.importorskip("torch")
import hla  # noqa: E402
import truth  # noqa: E402

MODES = {
    "plain": {},
    "causal": {"causal": True},
    "unnormalised": {"normalised": False, "scale": 0.3},
    "guarded": {"epsilon": 0.5},
    "lengths": {"key_lengths": [17, 0, 5]},
    "packed": {"query_starts": [0, 4, 4, 13], "key_starts": [0, 9, 10, 17]},
    "packed_causal": {"query_starts": [0, 4, 13], "key_starts": [0, 9, 17], "causal": True},
    "state": {"initial_state": True},
    "causal_state": {"initial_state": True, "causal": True},
}
RANKS = [(5,), (4, 3), (2, 3, 2), (2, 2, 3, 2)]


def arrays(ranks, mode, dtype=torch.float32, seed=0, requires_grad=False):
    """Tq = 13, Tk = 17, H = 4, Hkv = 2, V = 7; B = 3, or 1 where packed."""
    generator = torch.Generator().manual_seed(seed)
    B, Tq, Tk = (1 if "query_starts" in mode else 3), 13, 17

    def random(*shape):
        return (torch.rand(shape, generator=generator) + 0.05).to(dtype).requires_grad_(requires_grad)

    q = [random(B, Tq, 4, R) for R in ranks]
    k = [random(B, Tk, 2, R) for R in ranks]
    v = (random(B, Tk, 2, 7).detach() * 2 - 1).requires_grad_(requires_grad)
    options = dict(mode)
    if mode.get("initial_state"):
        R = torch.tensor(ranks).prod().item()
        options["initial_state"] = torch.rand(B, 2, R, 8, generator=generator).requires_grad_(requires_grad)
    return q, k, v, options


def double(q, k, v, options):
    """The same numbers in float64, as leaves of their own."""

    def copy(x):
        return x.detach().double().requires_grad_(x.requires_grad)

    state = options.get("initial_state")
    options = options if state is None else {**options, "initial_state": copy(state)}
    return [copy(x) for x in q], [copy(x) for x in k], copy(v), options


@pytest.mark.parametrize("ranks", RANKS, ids=str)
@pytest.mark.parametrize("name", MODES)
def test_forward_and_gradients(name, ranks):
    q, k, v, options = arrays(ranks, MODES[name], requires_grad=True)
    q64, k64, v64, options64 = double(q, k, v, options)
    out, state = hla.hadamard_attention(q, k, v, return_state=True, **options)
    want, want_state = truth.hadamard(q64, k64, v64, **options64)
    assert truth.error(out, want) <= 1e-6
    assert truth.error(state, want_state) <= 1e-6
    alone = hla.hadamard_attention(q, k, v, **options)
    assert truth.error(alone, want) <= 1e-6

    weight, state_weight = torch.randn(out.shape), torch.randn(state.shape)
    leaves = [*q, *k, v] + ([options["initial_state"]] if "initial_state" in options else [])
    leaves64 = [*q64, *k64, v64] + ([options64["initial_state"]] if "initial_state" in options else [])
    got = torch.autograd.grad((out * weight).sum() + (state * state_weight).sum(), leaves)
    ideal = torch.autograd.grad((want * weight).sum() + (want_state * state_weight).sum(), leaves64)
    for a, b in zip(got, ideal):
        assert truth.error(a, b) <= 2e-6

    got = torch.autograd.grad((alone * weight).sum(), leaves)
    ideal = torch.autograd.grad((truth.hadamard(q64, k64, v64, **options64)[0] * weight).sum(), leaves64)
    for a, b in zip(got, ideal):
        assert truth.error(a, b) <= 2e-6


@pytest.mark.filterwarnings("ignore:Input .* requires gradient and is not a double")
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck(causal):
    """PyTorch's own check, by finite differences: in float32 with wide steps, so the bounds are those of the steps."""
    torch.manual_seed(3)
    q, k = ([torch.rand(1, 4, 2, R, requires_grad=True) for R in (3, 2)] for _ in range(2))
    v, state = torch.randn(1, 4, 2, 3, requires_grad=True), torch.rand(1, 2, 6, 4, requires_grad=True)

    def call(a, b, c, d, values, initial):
        return hla.hadamard_attention([a, b], [c, d], values, causal=causal, initial_state=initial, return_state=True)

    assert torch.autograd.gradcheck(call, (*q, *k, v, state), eps=1e-2, atol=5e-3, rtol=5e-3)


def test_only_the_state_is_used():
    q, k, v, _ = arrays((4, 3), {}, requires_grad=True)
    _, state = hla.hadamard_attention(q, k, v, return_state=True)
    dk, dv = torch.autograd.grad(state.square().sum(), [k[0], v])
    _, k64, v64, _ = double(q, k, v, {})
    _, want = truth.hadamard([x.detach().double() for x in q], k64, v64)
    ideal = torch.autograd.grad(want.square().sum(), [k64[0], v64])
    assert truth.error(dk, ideal[0]) <= 2e-6 and truth.error(dv, ideal[1]) <= 2e-6


def test_some_gradients_are_not_wanted():
    q, k, v, _ = arrays((4, 3), {})
    k[1].requires_grad_()
    hla.hadamard_attention(q, k, v).sum().backward()
    assert k[1].grad is not None and all(x.grad is None for x in (*q, k[0], v))


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("name", ["plain", "causal", "state"])
def test_half_precision(name, dtype, bound):
    """The bounds of docs/OPERATOR.md, section 7; a gradient is rounded in each of two passes."""
    q, k, v, options = arrays((4, 3), MODES[name], dtype, requires_grad=True)
    q64, k64, v64, options64 = double(q, k, v, options)
    out, want = hla.hadamard_attention(q, k, v, **options), truth.hadamard(q64, k64, v64, **options64)[0]
    assert out.dtype == dtype and truth.error(out, want) <= bound
    weight = torch.randn(out.shape).to(dtype)
    got = torch.autograd.grad((out * weight).float().sum(), [*q, *k, v])
    ideal = torch.autograd.grad((want * weight.double()).sum(), [*q64, *k64, v64])
    for a, b in zip(got, ideal):
        assert a.dtype == dtype and truth.error(a, b) <= 2 * bound


def layouts(x):
    """The same numbers with other strides."""
    yield "BHTX", x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "features slowest", x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    wide = torch.full((*x.shape[:3], 3 * x.shape[3] + 1), float("nan"), dtype=x.dtype)
    wide[..., 1::3] = x
    yield "gaps", wide[..., 1::3]


@pytest.mark.parametrize("layout", range(3))
def test_strides(layout):
    """Results do not depend on strides, to the bit where the order of sums does not; nothing is copied on the way."""
    q, k, v, _ = arrays((4, 3), {})
    want = hla.hadamard_attention(q, k, v)
    q, k, v = [list(layouts(x))[layout][1] for x in q], [list(layouts(x))[layout][1] for x in k], v
    v = list(layouts(v))[layout][1]
    assert not any(x.is_contiguous() for x in (*q, *k, v))
    assert truth.error(hla.hadamard_attention(q, k, v), want) <= 1e-6
    followed = [x.detach().requires_grad_() for x in (*q, *k, v)]
    out = hla.hadamard_attention(followed[:2], followed[2:4], followed[4])
    d_out = list(layouts(torch.ones_like(out)))[layout][1]
    got = torch.autograd.grad(out, followed, d_out)
    dense = [x.detach().contiguous().requires_grad_() for x in followed]
    ideal = torch.autograd.grad(hla.hadamard_attention(dense[:2], dense[2:4], dense[4]).sum(), dense)
    for a, b in zip(got, ideal):
        assert truth.error(a, b) <= 1e-5  # all ones: the gradient of a weighted mean, sums that cancel


def test_expanded_inputs_and_gradients():
    """Strides of zero: one key head's features for two, and the gradient of a sum."""
    q, k, v, _ = arrays((4, 3), {})
    k = [x[:, :, :1].expand(-1, -1, 2, -1) for x in k]
    assert k[0].stride(2) == 0
    want, _ = truth.hadamard([x.double() for x in q], [x.double() for x in k], v.double())
    assert truth.error(hla.hadamard_attention(q, k, v), want) <= 1e-6


def test_no_keys():
    q, k, v, _ = arrays((4, 3), {})
    out = hla.hadamard_attention(q, [x[:, :0] for x in k], v[:, :0])
    assert out.shape == (3, 13, 4, 7) and (out == 0).all()


def test_autocast():
    q, k, v, _ = arrays((4, 3), {}, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = hla.hadamard_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    want = hla.hadamard_attention([x.bfloat16() for x in q], [x.bfloat16() for x in k], v.bfloat16())
    assert torch.equal(out, want)
    out.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in (*q, *k, v))


def test_double_backward_is_refused():
    q, k, v, _ = arrays((4, 3), {}, requires_grad=True)
    (gradient,) = torch.autograd.grad(hla.hadamard_attention(q, k, v).sum(), q[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        (gradient.sum() + q[0].sum()).backward()


def test_threads_side_by_side():
    """Every Python thread has a context of its own; the numbers are those of one thread."""
    from concurrent.futures import ThreadPoolExecutor

    q, k, v, _ = arrays((4, 3), {}, requires_grad=True)

    def call(_):
        out = hla.hadamard_attention(q, k, v)
        return [out, *torch.autograd.grad(out.square().sum(), [*q, *k, v])]

    want = call(0)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(call, range(32)):
            assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_explain():
    q, k, v, _ = arrays((4, 3), {})
    assert "form" in hla.explain(q, k, v) and "state form" in hla.explain(q, k, v, return_state=True)
