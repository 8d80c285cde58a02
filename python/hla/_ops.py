"""The Hadamard operator and the feature maps as differentiable operations of PyTorch.

From PyTorch 2.4 on they are registered as hla::hadamard and hla::feature_map, with shapes for tracing, so that
torch.compile keeps them in one graph; before, they are autograd.Functions. Both differentiate by the same functions.
"""

import torch
from torch.autograd.function import once_differentiable

from . import _attention, _feature_map, _torch
from ._attention import Options
from ._feature_map import MapOptions

# ---- Hadamard attention: q_features [B,Tq,H,R_p], k_features [B,Tk,Hkv,R_p], v [B,Tk,Hkv,V] -> out [B,Tq,H,V] ----

_INPUTS = (
    "Tensor[] q_features, Tensor[] k_features, Tensor v, Tensor? key_lengths, Tensor? query_starts, "
    "Tensor? key_starts, Tensor? initial_state, bool causal, bool normalised, float epsilon, float scale, "
    "bool return_state"
)


def _hadamard(q_features, k_features, v, key_lengths, query_starts, key_starts, initial_state, causal, normalised,
              epsilon, scale, return_state, keep):
    """out, the final state and what is kept for the backward pass; the latter two are empty where not wanted."""
    lengths = (key_lengths, query_starts, key_starts)
    with _torch.on_device(v):
        out, final_state, kept = _attention.forward(
            _torch, Options(causal, normalised, epsilon, scale), q_features, k_features, v, lengths, initial_state,
            return_state, keep,
        )  # fmt: skip
    if final_state is None:
        final_state = v.new_empty(0, dtype=torch.float32)
    return out, final_state, v.new_empty(0, dtype=torch.uint8) if kept is None else kept


def _hadamard_shapes(q_features, k_features, v, key_lengths, query_starts, key_starts, initial_state, causal,
                     normalised, epsilon, scale, return_state, keep):
    B, Tq, H, _ = q_features[0].shape
    Hkv, V = v.shape[2], v.shape[3]
    N = B if query_starts is None else query_starts.shape[0] - 1
    R = 1
    for features in q_features:
        R *= features.shape[3]
    state_shape = (N, Hkv, R, V + 1) if return_state else (0,)
    kept = _kept_size(Options(causal, normalised, epsilon, scale), [*q_features, *k_features, v], query_starts,
                      return_state or initial_state is not None) if keep and v.is_cuda else 0  # fmt: skip
    return v.new_empty(B, Tq, H, V), v.new_empty(state_shape, dtype=torch.float32), v.new_empty(kept, dtype=torch.uint8)


def _kept_size(options, tensors, query_starts, stateful):
    """How much of a GPU's workspace is kept: the plan knows, if there are numbers to plan with."""
    sizes = [size for tensor in tensors for size in tensor.shape]
    if query_starts is not None or not all(isinstance(size, int) for size in sizes):
        return torch.library.get_ctx().new_dynamic_size()
    with _torch.on_device(tensors[-1]):
        views = [_torch.described("tensor", tensor, 0, None) for tensor in tensors]
        context = _torch.context(views[0].device)
        return _attention.plan(context, options, views, 0, stateful).kept_workspace


def _hadamard_context(ctx, inputs, output):
    q_features, k_features, v, *lengths_and_state = inputs[:7]
    ctx.factors, ctx.options = len(q_features), inputs[7:12]
    ctx.save_for_backward(*q_features, *k_features, v, *lengths_and_state, output[2])
    ctx.set_materialize_grads(False)
    ctx.out_shape = output[0].shape


def _hadamard_gradient(ctx, d_out, d_final_state, _):
    tensors, P = ctx.saved_tensors, ctx.factors
    q_features, k_features, (v, *lengths_and_state, kept) = tensors[:P], tensors[P : 2 * P], tensors[2 * P :]
    if d_out is None:
        d_out = v.new_zeros(ctx.out_shape)
    gradients = hadamard_backward(
        d_out, d_final_state, list(q_features), list(k_features), v, *lengths_and_state, *ctx.options, kept
    )
    d_initial_state = gradients[-1] if lengths_and_state[-1] is not None else None
    return (
        gradients[:P], gradients[P : 2 * P], gradients[2 * P], None, None, None, d_initial_state,
        None, None, None, None, None, None,
    )  # fmt: skip


def _hadamard_backward(d_out, d_final_state, q_features, k_features, v, key_lengths, query_starts, key_starts,
                       initial_state, causal, normalised, epsilon, scale, return_state, kept):
    """The gradients of q_features, of k_features, of v, and of initial_state if there is one."""
    lengths = (key_lengths, query_starts, key_starts)
    with _torch.on_device(v):
        dq, dk, dv, d_initial_state = _attention.backward(
            _torch, Options(causal, normalised, epsilon, scale), d_out, d_final_state, q_features, k_features, v,
            lengths, initial_state, return_state, kept if kept.numel() > 0 else None,
        )  # fmt: skip
    return [*dq, *dk, dv] + ([] if d_initial_state is None else [d_initial_state])


def _hadamard_backward_shapes(d_out, d_final_state, q_features, k_features, v, key_lengths, query_starts, key_starts,
                              initial_state, *rest):
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in [*q_features, *k_features, v, initial_state]
        if x is not None
    ]


# ---- feature maps: x [B,T,H,D] -> [B,T,H,R], weight [H,R,D], bias [H,R], hidden_weight [H,D,D], hidden_bias [H,D] ----

_MAP_INPUTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? hidden_weight, Tensor? hidden_bias, Tensor? rope, str activation, "
    "float floor, bool is_query, float shift"
)


def _map(x, weight, bias, hidden_weight, hidden_bias, rope, activation, floor, is_query, shift):
    with _torch.on_device(x):
        return _feature_map.forward(
            _torch, MapOptions(activation, floor, is_query, shift), x, (weight, bias, hidden_weight, hidden_bias), rope
        )


def _map_shapes(x, weight, *rest):
    return x.new_empty(*x.shape[:3], weight.shape[1])


def _map_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _map_gradient(ctx, d_out):
    gradients = feature_map_backward(d_out, *ctx.saved_tensors, *ctx.options, list(ctx.needs_input_grad[:5]))
    wanted = [gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad)]
    return (*wanted, None, None, None, None, None)


def _map_backward(d_out, x, weight, bias, hidden_weight, hidden_bias, rope, activation, floor, is_query, shift, wanted):
    """The gradients of x and the weights; those that are not wanted are empty."""
    with _torch.on_device(x):
        gradients = _feature_map.backward(
            _torch, MapOptions(activation, floor, is_query, shift), d_out, x,
            (weight, bias, hidden_weight, hidden_bias), rope, wanted,
        )  # fmt: skip
    return [x.new_empty(0) if gradient is None else gradient for gradient in gradients]


def _map_backward_shapes(d_out, x, weight, bias, hidden_weight, hidden_bias, rope, activation, floor, is_query, shift,
                         wanted):
    inputs = (x, weight, bias, hidden_weight, hidden_bias)
    return [torch.empty_like(of, memory_format=torch.contiguous_format) if needed else x.new_empty(0) for of, needed in zip(inputs, wanted)]


# ---- registration ----


def _refuse(ctx, *gradients):
    raise RuntimeError("hla's operations can be differentiated once: their gradients have no gradient")


def _register(name, schema, function, shapes, gradient, setup_context=None):
    qualified = f"hla::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("cpu", "cuda"), function)
    torch.library.register_fake(qualified, shapes)
    torch.library.register_autograd(qualified, gradient, setup_context=setup_context)
    return getattr(torch.ops.hla, name).default


class _Hadamard(torch.autograd.Function):
    """The lists of features come as single tensors, since only those are followed."""

    @staticmethod
    def forward(ctx, factors, *inputs):
        inputs = (inputs[:factors], inputs[factors : 2 * factors], *inputs[2 * factors :])
        output = _hadamard(*inputs)
        _hadamard_context(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        dq_features, dk_features, *rest = _hadamard_gradient(ctx, *gradients)
        return (None, *dq_features, *dk_features, *rest)


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = _map(*inputs)
        _map_context(ctx, inputs, output)
        return output

    backward = staticmethod(once_differentiable(_map_gradient))


if hasattr(torch.library, "register_autograd"):
    hadamard_backward = _register(
        "hadamard_backward", f"(Tensor d_out, Tensor? d_final_state, {_INPUTS}, Tensor kept) -> Tensor[]",
        _hadamard_backward, _hadamard_backward_shapes, _refuse,
    )  # fmt: skip
    hadamard = _register(
        "hadamard", f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)", _hadamard, _hadamard_shapes,
        _hadamard_gradient, _hadamard_context,
    )  # fmt: skip
    feature_map_backward = _register(
        "feature_map_backward", f"(Tensor d_out, {_MAP_INPUTS}, bool[] wanted) -> Tensor[]", _map_backward,
        _map_backward_shapes, _refuse,
    )  # fmt: skip
    feature_map = _register(
        "feature_map", f"({_MAP_INPUTS}) -> Tensor", _map, _map_shapes, _map_gradient, _map_context
    )
else:
    hadamard_backward, feature_map_backward = _hadamard_backward, _map_backward
    feature_map = _Map.apply

    def hadamard(q_features, k_features, *rest):
        return _Hadamard.apply(len(q_features), *q_features, *k_features, *rest)
