"""The Hadamard operator and the feature maps as differentiable operations of PyTorch.

The calls are registered as operations hla::* with shapes for tracing (PyTorch 2.4 or newer), so that torch.compile
keeps them in one graph; before, they are plain functions. autograd.Functions around them hold the derivatives.
"""

from math import prod

import torch

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
    """out; the final state if return_state; what is worth keeping for the backward pass, perhaps nothing, if keep."""
    lengths = (key_lengths, query_starts, key_starts)
    with _torch.on_device(v):
        out, final_state, kept = _attention.forward(
            _torch, Options(causal, normalised, epsilon, scale), q_features, k_features, v, lengths, initial_state,
            return_state, keep,
        )  # fmt: skip
    results = [out]
    if return_state:
        results.append(final_state)
    if keep:
        results.append(torch.empty(0, dtype=torch.uint8, device=v.device) if kept is None else kept)
    return results


def _hadamard_shapes(q_features, k_features, v, key_lengths, query_starts, key_starts, initial_state, causal,
                     normalised, epsilon, scale, return_state, keep):
    (B, Tq, H, _), (_, _, Hkv, V) = q_features[0].shape, v.shape
    results = [v.new_empty(B, Tq, H, V)]
    if return_state:
        N = B if query_starts is None else query_starts.shape[0] - 1
        R = prod(features.shape[3] for features in q_features)
        results.append(v.new_empty(N, Hkv, R, V + 1, dtype=torch.float32))
    if keep:
        stateful = return_state or initial_state is not None
        options = Options(causal, normalised, epsilon, scale)
        kept = _kept_size(options, [*q_features, *k_features, v], query_starts, stateful) if v.is_cuda else 0
        results.append(v.new_empty(kept, dtype=torch.uint8))
    return results


def _kept_size(options, tensors, query_starts, stateful):
    """How much of a GPU's workspace is kept: the plan knows, if there are numbers to plan with."""
    sizes = [size for tensor in tensors for size in tensor.shape]
    if query_starts is not None or not all(isinstance(size, int) for size in sizes):
        return torch.library.get_ctx().new_dynamic_size()
    with _torch.on_device(tensors[-1]):
        views = [_torch.described("tensor", tensor, 0, None) for tensor in tensors]
        context = _torch.context(views[0].device)
        return _attention.plan(context, options, views, 0, stateful).kept_workspace


def _hadamard_backward(d_out, d_final_state, q_features, k_features, v, key_lengths, query_starts, key_starts,
                       initial_state, causal, normalised, epsilon, scale, return_state, kept):
    """The gradients of q_features, of k_features, of v, and of initial_state (empty if there is none)."""
    lengths = (key_lengths, query_starts, key_starts)
    with _torch.on_device(v):
        dq, dk, dv, d_initial_state = _attention.backward(
            _torch, Options(causal, normalised, epsilon, scale), d_out, d_final_state, q_features, k_features, v,
            lengths, initial_state, return_state, kept if kept.numel() > 0 else None,
        )  # fmt: skip
    return [*dq, *dk, dv, v.new_empty(0) if d_initial_state is None else d_initial_state]


def _hadamard_backward_shapes(d_out, d_final_state, q_features, k_features, v, key_lengths, query_starts, key_starts,
                              initial_state, *rest):
    return [_empty(x) for x in (*q_features, *k_features, v)] + [_empty(initial_state, v)]


def _empty(tensor, like=None):
    """Contiguous, shaped like a tensor; without one, empty."""
    return like.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)


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
    return [_empty(of if needed else None, x) for of, needed in zip(inputs, wanted)]


# ---- registration ----


def _registered(name: str, schema: str, function, shapes):
    if not hasattr(torch.library, "register_fake"):
        return function
    torch.library.define(f"hla::{name}", schema)
    torch.library.impl(f"hla::{name}", ("cpu", "cuda"), function)
    torch.library.register_fake(f"hla::{name}", shapes)
    return getattr(torch.ops.hla, name).default


_call_hadamard = _registered("hadamard", f"({_INPUTS}, bool keep) -> Tensor[]", _hadamard, _hadamard_shapes)
_call_hadamard_backward = _registered(
    "hadamard_backward", f"(Tensor d_out, Tensor? d_final_state, {_INPUTS}, Tensor kept) -> Tensor[]",
    _hadamard_backward, _hadamard_backward_shapes,
)  # fmt: skip
_call_map = _registered("feature_map", f"({_MAP_INPUTS}) -> Tensor", _map, _map_shapes)
_call_map_backward = _registered(
    "feature_map_backward", f"(Tensor d_out, {_MAP_INPUTS}, bool[] wanted) -> Tensor[]", _map_backward,
    _map_backward_shapes,
)  # fmt: skip

# ---- derivatives ----


class _Final(torch.autograd.Function):
    """apply(function, numbers, *tensors) is function(*tensors, *numbers), whose results cannot be differentiated."""

    @staticmethod
    def forward(ctx, function, numbers, *tensors):
        return tuple(function(*tensors, *numbers))

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("hla's operations can be differentiated once: their gradients have no gradients")


def _gradients(function, numbers, *tensors):
    """Within a backward pass PyTorch follows what is computed only where its gradient will be asked for."""
    return _Final.apply(function, numbers, *tensors) if torch.is_grad_enabled() else function(*tensors, *numbers)


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, P, options, *tensors):
        """tensors: P of q_features, P of k_features, v, key_lengths, query_starts, key_starts, initial_state. options:
        the numbers that follow them in the operation."""
        q_features, k_features, rest = tensors[:P], tensors[P : 2 * P], tensors[2 * P :]
        *results, kept = _call_hadamard(q_features, k_features, *rest, *options, True)
        ctx.P, ctx.options = P, options
        ctx.save_for_backward(*tensors, kept)
        return tuple(results)

    @staticmethod
    def backward(ctx, d_out, d_state=None):
        *gradients, d_initial_state = _gradients(
            _flat_hadamard_backward, (ctx.P, ctx.options), d_out, d_state, *ctx.saved_tensors
        )
        if not ctx.needs_input_grad[-1]:
            d_initial_state = None
        return (None, None, *gradients, None, None, None, d_initial_state)


def _flat_hadamard_backward(d_out, d_state, *rest):
    *tensors, kept, P, options = rest
    q_features, k_features, rest = tensors[:P], tensors[P : 2 * P], tensors[2 * P :]
    return _call_hadamard_backward(d_out, d_state, q_features, k_features, *rest, *options, kept)


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options, *tensors):
        """tensors: x, weight, bias, hidden_weight, hidden_bias, rope. options: what follows them in the operation."""
        ctx.options = options
        ctx.save_for_backward(*tensors)
        return _call_map(*tensors, *options)

    @staticmethod
    def backward(ctx, d_out):
        wanted = list(ctx.needs_input_grad[1:6])
        gradients = _gradients(_call_map_backward, (*ctx.options, wanted), d_out, *ctx.saved_tensors)
        return (None, *(gradient if want else None for gradient, want in zip(gradients, wanted)), None)


def hadamard(q_features, k_features, v, key_lengths, query_starts, key_starts, initial_state, options):
    """[out], or [out, the final state] where the last of options, return_state, asks for it."""
    tensors = (*q_features, *k_features, v, key_lengths, query_starts, key_starts, initial_state)
    if _followed(tensors):
        return _Hadamard.apply(len(q_features), options, *tensors)
    rest = tensors[2 * len(q_features) :]
    return _call_hadamard(q_features, k_features, *rest, *options, False)


def feature_map(x, weight, bias, hidden_weight, hidden_bias, rope, options):
    tensors = (x, weight, bias, hidden_weight, hidden_bias, rope)
    return _Map.apply(options, *tensors) if _followed(tensors) else _call_map(*tensors, *options)


def _followed(tensors) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
