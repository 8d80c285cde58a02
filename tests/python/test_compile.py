"""torch.compile keeps the operations in one graph and changes no number; shapes without numbers."""

import pytest

torch = pytest.importorskip("torch")
if not hasattr(torch.library, "register_fake"):
    pytest.skip("PyTorch is older than 2.4: operations are not registered", allow_module_level=True)
import hla  # noqa: E402
import truth  # noqa: E402


def network(q, k, v, weights, state):
    """Everything at once: maps with and without a hidden layer, states in and out, key lengths, grouped heads."""
    a = [hla.feature_map(q, weights[0], is_query=True), hla.feature_map(q, weights[1], activation="softplus")]
    c = [hla.feature_map(k, *weights[2:5], activation="exp", shift=0.5), hla.feature_map(k, weights[5])]
    out, final = hla.hadamard_attention(a, c, 2 * v, initial_state=state, return_state=True)
    return out.sin() + hla.hadamard_attention(a, c, v, key_lengths=[5, 7]), final


def inputs(T):
    torch.manual_seed(T)
    shapes = [(4, 4, 8), (4, 5, 8), (2, 4, 8), (2, 4), (2, 8, 8), (2, 5, 8)]
    q, k, v = torch.randn(2, T, 4, 8), torch.randn(2, T, 2, 8), torch.randn(2, T, 2, 6)
    tensors = [q, k, v, *(torch.randn(shape) / 3 for shape in shapes), torch.rand(2, 2, 20, 7)]
    return [tensor.requires_grad_() for tensor in tensors]


def results(call, T):
    tensors = inputs(T)
    out, final = call(*tensors[:3], tensors[3:9], tensors[9])
    return [out, final, *torch.autograd.grad((out * out).sum() + final.sum(), tensors)]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (9, 12):
        for got, want in zip(results(compiled, T), results(network, T)):
            assert truth.error(got, want) <= 1e-6


def test_autocast():
    torch._dynamo.reset()
    q, k, v, *rest = inputs(9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = network(q, k, v, rest[:6], rest[6])
        got = torch.compile(network, fullgraph=True, backend="eager")(q, k, v, rest[:6], rest[6])
    assert got[0].dtype == torch.bfloat16 and all(torch.equal(a, b) for a, b in zip(got, want))


def test_double_backward_is_refused():
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    q, k, v, *rest = inputs(9)
    out, _ = compiled(q, k, v, rest[:6], rest[6])
    with pytest.raises(RuntimeError):
        (gradient,) = torch.autograd.grad(out.sum(), v, create_graph=True)
        gradient.sum().backward()


def test_shapes_without_numbers():
    q, k, v, *rest = (tensor.detach().to("meta") for tensor in inputs(9))
    out, final = network(q, k, v, rest[:6], rest[6])
    assert out.shape == (2, 9, 4, 6) and final.shape == (2, 2, 20, 7) and out.device.type == "meta"


def test_opcheck():
    """PyTorch's own checks of a registered operation: schema, shapes, aliasing."""
    q, k, v, *_ = (tensor.detach() for tensor in inputs(9))
    arguments = ([q], [k], v, None, None, None, None, False, True, 1e-6, 1.0, True, False)
    torch.library.opcheck(torch.ops.hla.hadamard, arguments, test_utils=("test_schema", "test_faketensor"))
    weight = torch.randn(4, 5, 8)
    torch.library.opcheck(
        torch.ops.hla.feature_map, (q, weight, None, None, None, None, "relu", 1e-3, True, 0.0),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    for backward, call in (
        (torch.ops.hla.hadamard_backward, (torch.ones(2, 9, 4, 6), None, *arguments[:-1], torch.empty(0).byte())),
        (torch.ops.hla.feature_map_backward,
         (torch.ones(2, 9, 4, 5), q, weight, None, None, None, None, "relu", 1e-3, True, 0.0,
          [True, True, False, False, False])),
    ):  # fmt: skip
        torch.library.opcheck(backward, call, test_utils=("test_schema", "test_faketensor"))
