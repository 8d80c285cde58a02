"""The operator and the maps by their definitions, in float64, from PyTorch's own operations, which also differentiate
them: every score matrix is written out. docs/OPERATOR.md has the formulas."""

import torch


def seen(Tq, Tk, B, causal, key_lengths, query_starts, key_starts, device):
    """[B, Tq, Tk]: whether query i sees key j."""
    tokens = [torch.arange(T, device=device) for T in (Tq, Tk)]
    i, j = tokens[0][:, None], tokens[1][None]
    if query_starts is not None:
        starts = [torch.as_tensor(s, device=device) for s in (query_starts, key_starts)]
        of = [torch.bucketize(t, s[1:], right=True) for t, s in zip(tokens, starts)]
        same = of[0][:, None] == of[1][None]
        i, j = i - starts[0][of[0]][:, None], j - starts[1][of[1]][None]
        return (same & ((j <= i) | (not causal))).expand(B, -1, -1)
    visible = ((j <= i) | (not causal)).expand(B, Tq, Tk)
    if key_lengths is not None:
        visible = visible & (tokens[1] < torch.as_tensor(key_lengths, device=device)[:, None])[:, None]
    return visible


def khatri_rao(features):
    """[B, T, H, R_p] of each factor -> [B, T, H, R], factor 1 slowest."""
    product = features[0]
    for other in features[1:]:
        product = (product[..., :, None] * other[..., None, :]).flatten(-2)
    return product


def hadamard(q_features, k_features, v, causal=False, normalised=True, epsilon=1e-6, scale=1.0, key_lengths=None,
             query_starts=None, key_starts=None, initial_state=None):  # fmt: skip
    """out and the final state [N, Hkv, R, V + 1]; initial_state not with packed sequences."""
    group = q_features[0].shape[2] // v.shape[2]
    ones = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # [B, Tk, Hkv, V + 1]
    B, Tq, Tk = v.shape[0], q_features[0].shape[1], v.shape[1]
    mask = seen(Tq, Tk, B, causal, key_lengths, query_starts, key_starts, v.device)
    scores = mask[:, None].to(v.dtype)
    for a, c in zip(q_features, k_features):
        scores = scores * torch.einsum("bihr,bjhr->bhij", a, c.repeat_interleave(group, 2))
    sums = torch.einsum("bhij,bjhx->bihx", scores, ones.repeat_interleave(group, 2))
    phi, weighted = khatri_rao(k_features), ones
    if key_lengths is not None:
        lengths = torch.as_tensor(key_lengths, device=v.device)
        weighted = ones * (torch.arange(Tk, device=v.device) < lengths[:, None])[:, :, None, None]
    state = torch.einsum("bjhf,bjhx->bhfx", phi, weighted)
    if query_starts is not None:
        bounds = list(zip(key_starts[:-1], key_starts[1:]))
        state = torch.stack([torch.einsum("jhf,jhx->hfx", phi[0, a:b], ones[0, a:b]) for a, b in bounds])
    if initial_state is not None:
        before = initial_state.repeat_interleave(group, 1)
        sums = sums + torch.einsum("bihf,bhfx->bihx", khatri_rao(q_features), before)
        state = state + initial_state
    if not normalised:
        return scale * sums[..., :-1], state
    denominator = sums[..., -1:]
    out = sums[..., :-1] / (denominator + epsilon)
    return torch.where(denominator == 0, torch.zeros_like(out), out), state


ACTIVATIONS = {
    "relu": lambda u, floor: u.clamp(min=0) + floor,
    "elu1": lambda u, floor: torch.nn.functional.elu(u) + 1,
    "softplus": lambda u, floor: torch.log1p(u.exp()),
    "exp": lambda u, floor: (u - u.max(-1, keepdim=True).values).exp(),
    "softmax": lambda u, floor: u.softmax(-1),
    "square": lambda u, floor: u * u,
    "identity": lambda u, floor: u,
}


def turned(x, rope):
    """x [B, T, H, D] by the table [T, D / 2, 2]."""
    c, s = rope[:, None, :, 0], rope[:, None, :, 1]
    return torch.stack([c * x[..., 0::2] - s * x[..., 1::2], s * x[..., 0::2] + c * x[..., 1::2]], -1).flatten(-2)


def feature_map(x, weight, bias=None, hidden_weight=None, hidden_bias=None, activation="relu", floor=1e-3,
                is_query=False, shift=0.0, rope=None):  # fmt: skip
    if rope is not None:
        x = turned(x, rope)
    if hidden_weight is not None:
        inner = torch.einsum("bthd,hed->bthe", x, hidden_weight)
        x = x + (inner if hidden_bias is None else inner + hidden_bias).clamp(min=0)
    u = torch.einsum("bthd,hrd->bthr", x, weight)
    u = u if bias is None else u + bias
    if activation == "exp" and not is_query:
        return (u - shift).exp()
    return ACTIVATIONS[activation](u, floor)


def error(got, want) -> float:
    """Relative, of the whole tensor; infinite where a number is not finite."""
    got, want = got.detach().double(), want.detach().double()
    if not torch.isfinite(got).all():
        return float("inf")
    return float((got - want).norm() / want.norm().clamp(min=1e-30))
