"""hla.feature_map and hla.HadamardAttention against the definition in float64, and their gradients."""

import pytest

torch = pytest.importorskip("torch")
import hla  # noqa: E402
import truth  # noqa: E402

ANGLES = torch.linspace(0, 5, 9 * 3).reshape(9, 3)
ROPE = torch.stack([ANGLES.cos(), ANGLES.sin()], -1)


def weights(bias=True, hidden=True, rank=5):
    """Of 2 heads of width 6."""
    shapes = [(2, rank, 6), (2, rank) if bias else None, (2, 6, 6) if hidden else None, (2, 6) if hidden else None]
    return [None if shape is None else (torch.randn(shape) / 2).requires_grad_() for shape in shapes]


def copies(tensors):
    return [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in tensors]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("rope", [None, ROPE], ids=["unturned", "turned"])
@pytest.mark.parametrize("activation", truth.ACTIVATIONS)
def test_feature_map(activation, rope, hidden):
    torch.manual_seed(1)
    x, options = torch.randn(3, 9, 2, 6, requires_grad=True), {"activation": activation, "floor": 0.02}
    for bias, is_query in ((True, True), (False, False)):
        maps = weights(bias, hidden)
        leaves, leaves64 = [x, *maps], copies([x, *maps])
        out = hla.feature_map(*leaves, is_query=is_query, rope=rope, **options)
        want = truth.feature_map(*leaves64, is_query=is_query, rope=None if rope is None else rope.double(), **options)
        assert truth.error(out, want) <= 2e-6
        weight = torch.randn(out.shape)
        got = torch.autograd.grad((out * weight).sum(), [leaf for leaf in leaves if leaf is not None])
        ideal = torch.autograd.grad((want * weight).sum(), [leaf for leaf in leaves64 if leaf is not None])
        for a, b in zip(got, ideal):
            assert truth.error(a, b) <= 5e-6


def test_gradients_that_are_not_wanted():
    torch.manual_seed(2)
    x, (weight, bias, *_) = torch.randn(1, 4, 2, 6), weights(hidden=False)
    hla.feature_map(x, weight, bias.detach()).sum().backward()
    assert weight.grad is not None and bias.grad is None and x.grad is None
    x.requires_grad_()
    (dx,) = torch.autograd.grad(hla.feature_map(x, weight.detach()).sum(), x)
    assert dx.shape == x.shape


def attention_by_definition(module, q, k, v, rope):
    """The module's parameters are read by their names in hla/model.safetensors."""
    config, tensors = module.block_config(), {n: p.detach().double() for n, p in module.named_parameters()}
    features = []
    for side, x in (("query_map", q), ("key_map", k)):
        x = x.double() if rope is None or config["rope"] == "after" else truth.turned(x.double(), rope.double())
        features.append([
            truth.feature_map(
                x, *(tensors.get(f"{side}.{p}.{name}") for name in ("weight", "bias", "hidden.weight", "hidden.bias")),
                activation=config["activation"], floor=config["activation_floor"], is_query=side == "query_map",
            )
            for p in range(len(config["ranks"]))
        ])  # fmt: skip
    options = {name: config[name] for name in ("normalised", "epsilon", "scale")}
    return truth.hadamard(*features, v.double(), **options)[0]


CONFIGS = [
    dict(ranks=[4, 3]),
    dict(ranks=[3], activation="exp", bias=False, epsilon=0.1),
    dict(ranks=[2, 2, 3], activation="softmax", hidden=True, rope="after"),
    dict(ranks=[3, 3], activation="identity", normalised=False, scale=0.05, activation_floor=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_attention(config):
    torch.manual_seed(3)
    module = hla.HadamardAttention(2, 6, **config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    q, k, v = torch.randn(3, 9, 2, 6), torch.randn(3, 9, 2, 6), torch.randn(3, 9, 2, 4)
    for rope in (None, ROPE):
        out = module(q, k, v, rope=rope)
        assert truth.error(out, attention_by_definition(module, q, k, v, rope)) <= 5e-6
    assert all(module.block_config()[key] == value for key, value in config.items())
    again = hla.HadamardAttention(2, 6, **module.block_config())
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(q, k, v), module(q, k, v))


def test_module_in_half_precision():
    """Weights are read in float32 whatever they are kept in; autocast casts what they see."""
    torch.manual_seed(4)
    module = hla.HadamardAttention(2, 6, [4, 4])
    q, k, v = (torch.randn(1, 9, 2, 6) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(q, k, v)
    assert out.dtype == torch.bfloat16 and truth.error(out, module(q, k, v)) <= 2e-2
    module.bfloat16()
    half = module(q.bfloat16(), k.bfloat16(), v.bfloat16())
    half.float().sum().backward()
    assert half.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in module.parameters())


def test_causal_steps():
    """Options go through: one causal pass is a state fed step by step with the module's features."""
    module = hla.HadamardAttention(2, 6, [4, 3])
    q, k, v = (torch.randn(1, 9, 2, 6) for _ in range(3))
    state = hla.State(batch=1, heads=2, value_dim=6, ranks=[4, 3])
    with pytest.raises(RuntimeError, match="a State has no gradients"):
        state.step(*module.features(q, k), v)
    with torch.no_grad():
        a, c = module.features(q, k)
        steps = [state.step([x[:, [t]] for x in a], [x[:, [t]] for x in c], v[:, [t]]) for t in range(9)]
    assert truth.error(torch.cat(steps, 1), module(q, k, v, causal=True)) <= 1e-6


def test_it_learns():
    """A layer that imitates softmax attention: the loss falls to less than half, as in examples/training.c."""
    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 64, 2, 8) for _ in range(3))
    target = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5, -1) @ v.transpose(1, 2)
    module = hla.HadamardAttention(2, 8, [8, 8], activation="softplus")
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (module(q, k, v) - target.transpose(1, 2)).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
