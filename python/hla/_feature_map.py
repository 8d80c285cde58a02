"""Calls of libhla's feature maps, written once for all kinds of arrays (see _attention.py)."""

from ctypes import addressof, c_size_t
from typing import NamedTuple

from ._attention import same_device
from ._context import Context, View, packed
from ._library import FeatureMapProblem, FeatureMapWeights, activation, byref, check, initialised, lib

WEIGHT_NAMES = ("weight", "bias", "hidden_weight", "hidden_bias")


class MapOptions(NamedTuple):
    """Members of hla_feature_map_problem that shapes do not tell."""

    activation: str
    floor: float
    is_query: bool
    shift: float


class _Call:
    """What forward and backward pass have in common. weights: weight, bias, hidden_weight, hidden_bias; all but the
    first may be None."""

    def __init__(self, arrays, options: MapOptions, x, weights, rope):
        self.x: View = arrays.view("x", x)
        B, T, H, D = self.x.shape
        if len(weights[0].shape) != 3:
            raise ValueError(f"weight has {len(weights[0].shape)} axes, wanted 3: heads, rank, width")
        self.rank = weights[0].shape[1]
        if weights[2] is None and weights[3] is not None:
            raise ValueError("hidden_bias is given without hidden_weight")
        self.shapes = ((H, self.rank, D), (H, self.rank), (H, D, D), (H, D))
        self.held = [
            arrays.floats(name, weight, shape, x) for name, weight, shape in zip(WEIGHT_NAMES, weights, self.shapes)
        ]
        self.weights = FeatureMapWeights(*(pointer for _, pointer in self.held))
        self.held.append(arrays.floats("rope", rope, (T, D // 2, 2), x))
        self.problem = problem = initialised(FeatureMapProblem)
        problem.batch, problem.heads, problem.tokens, problem.dim, problem.rank = B, H, T, D, self.rank
        problem.dtype, problem.activation = self.x.dtype, activation(options.activation)
        problem.floor, problem.is_query, problem.shift = options.floor, options.is_query, options.shift
        problem.rope = self.held[-1][1]
        self.context: Context = arrays.context(self.x.device)


def forward(arrays, options: MapOptions, x, weights, rope):
    """out [B,T,H,R]"""
    call = _Call(arrays, options, x, weights, rope)
    out = arrays.empty((*call.x.shape[:3], call.rank), call.x.dtype, x)
    views = packed([arrays.view("out", out), call.x])
    handle = call.context.handle
    status = lib.hla_feature_map_forward(
        handle, byref(call.problem), byref(views[0]), byref(views[1]), byref(call.weights)
    )
    check(status, handle)
    return out


def backward(arrays, options: MapOptions, d_out, x, weights, rope, wanted):
    """Gradients of x and of the four weights; wanted says of each whether it is made, else it is None."""
    call = _Call(arrays, options, x, weights, rope)
    dx = arrays.empty(call.x.shape, call.x.dtype, x) if wanted[0] else None
    gradients = [arrays.empty_floats(shape, x) if want else None for shape, want in zip(call.shapes, wanted[1:])]
    pointers = [arrays.floats(f"d_{name}", g, s, x)[1] for name, g, s in zip(WEIGHT_NAMES, gradients, call.shapes)]
    views = [call.x, arrays.view("d_out", d_out)]
    same_device(["d_out", "x"], [views[1], views[0]])
    views = packed(views if dx is None else [*views, arrays.view("dx", dx)])
    at = [addressof(view) for view in views]
    handle, size = call.context.handle, c_size_t()
    check(lib.hla_feature_map_backward_workspace(handle, byref(call.problem), byref(size)), handle)
    memory, workspace = arrays.workspace(call.context, size.value)
    status = lib.hla_feature_map_backward(
        handle, byref(call.problem), None if dx is None else at[2],
        byref(FeatureMapWeights(*pointers)) if any(wanted[1:]) else None, at[1], at[0], byref(call.weights), workspace,
        size.value,
    )  # fmt: skip
    check(status, handle)
    return [dx, *gradients]
