"""Calls of libhla's Hadamard operator, written once for all kinds of arrays.

`arrays` is the module that knows the kind at hand, _numpy or _torch: its functions view, empty, empty_floats, offsets,
floats, workspace and context, and for what tensors keep until the backward pass, beginning and address.
"""

import functools
from math import prod
from typing import NamedTuple

from ._context import Context, Plan, pack
from ._library import MAX_FACTORS, byref, check, lib


class Options(NamedTuple):
    """Members of hla_hadamard_problem that shapes do not tell."""

    causal: bool
    normalised: bool
    epsilon: float
    scale: float


def check_factors(q_features, k_features) -> None:
    check_lists(q_features, k_features)
    P = len(q_features)
    if not 1 <= P <= MAX_FACTORS or len(k_features) != P:
        raise ValueError(
            f"q_features and k_features hold {P} and {len(k_features)} arrays, wanted one for each of 1 to "
            f"{MAX_FACTORS} factors"
        )


def check_lists(q_features, k_features) -> None:
    for name, features in (("q_features", q_features), ("k_features", k_features)):
        if not isinstance(features, (list, tuple)):
            raise TypeError(f"{name} is a {type(features).__name__}, wanted a list of one array a factor")


@functools.lru_cache(maxsize=None)
def argument_names(queries: int, keys: int):
    """Of so many arrays in q_features and k_features, and of v."""
    return (*(f"q_features[{p}]" for p in range(queries)), *(f"k_features[{p}]" for p in range(keys)), "v")


class _Call:
    """What forward and backward pass have in common: the plan, its inputs, and what these point to.

    lengths: key_lengths, query_starts, key_starts, each may be None."""

    def __init__(self, arrays, options, q_features, k_features, v, lengths, initial_state, stateful):
        P = len(q_features)
        names = argument_names(P, P)
        self.views = [arrays.view(name, x) for name, x in zip(names, [*q_features, *k_features, v])]
        q, k, value = self.views[0], self.views[P], self.views[-1]
        same_device(names, self.views)
        sequences = _sequences(*lengths)
        self.context = arrays.context(q.device)
        self.plan = plan(self.context, options, self.views, sequences, stateful or initial_state is not None)
        self.out_shape = (*q.shape[:3], value.shape[3])
        R = prod(view.shape[3] for view in self.views[:P])
        self.state_shape = (sequences or q.shape[0], k.shape[2], R, value.shape[3] + 1)

        inputs = self.plan.inputs
        counts = (q.shape[0], sequences + 1, sequences + 1)
        self.held = [  # so that it lives as long as inputs point to it
            arrays.offsets(name, numbers, count)
            for name, numbers, count in zip(("key_lengths", "query_starts", "key_starts"), lengths, counts)
        ]
        self.held.append(arrays.floats("initial_state", initial_state, self.state_shape, v))
        inputs.key_lengths, inputs.query_starts, inputs.key_starts, inputs.initial_state = [at for _, at in self.held]
        inputs.forward_workspace = None


def plan(context: Context, options: Options, views, sequences: int, stateful: bool) -> Plan:
    """views: of q_features, k_features, v; their addresses and strides do not matter."""
    P = len(views) // 2
    (B, Tq, H, _), (_, Tk, Hkv, _), V = views[0].shape, views[P].shape, views[-1].shape[3]
    ranks = tuple(view.shape[3] for view in views[:P])
    return context.plan(
        B, H, Tq, Tk, V, Hkv, sequences, ranks, views[0].dtype, options.causal, stateful, options.normalised,
        options.epsilon, options.scale,
    )  # fmt: skip


def same_device(names, views) -> None:
    device = views[-1].device
    for name, view in zip(names, views):
        if view.device != device:
            raise ValueError(
                f"{name} is on {device_name(view.device)}, {names[-1]} on {device_name(device)}"
            )


def device_name(device) -> str:
    return "the CPU" if device is None else f"cuda:{device}"


def _sequences(key_lengths, query_starts, key_starts) -> int:
    """How many are packed; 0 where they are not."""
    if query_starts is None and key_starts is None:
        return 0
    if query_starts is None or key_starts is None:
        raise ValueError("query_starts and key_starts go together, and one of them is None")
    if len(query_starts) < 2:
        raise ValueError(f"query_starts holds {len(query_starts)} numbers, wanted one more than there are sequences")
    return len(query_starts) - 1


def forward(arrays, options, q_features, k_features, v, lengths, initial_state, return_state, keep):
    """out, the final state (None unless return_state), and what of the workspace is worth keeping for the backward pass
    (None where nothing is, or unless keep)."""
    call = _Call(arrays, options, q_features, k_features, v, lengths, initial_state, return_state)
    plan = call.plan
    out = arrays.empty(call.out_shape, call.views[0].dtype, v)
    pack([*call.views, arrays.view("out", out)], plan.views)
    final_state = arrays.empty_floats(call.state_shape, v) if return_state else None
    _, state = arrays.floats("final_state", final_state, call.state_shape, v)
    memory, workspace = arrays.workspace(call.context, plan.workspace)
    status = lib.hla_hadamard_forward(plan.handle, plan.out, state, byref(plan.inputs), workspace, plan.workspace)
    check(status, plan.context)
    kept = arrays.beginning(memory, plan.kept_workspace) if keep and plan.kept_workspace else None
    return out, final_state, kept


def backward(arrays, options, d_out, d_final_state, q_features, k_features, v, lengths, initial_state, return_state,
             kept):
    """Gradients of q_features, k_features (lists) and v, and of initial_state if there is one. return_state and kept:
    of the forward pass."""
    call = _Call(arrays, options, q_features, k_features, v, lengths, initial_state, return_state)
    plan, P = call.plan, len(q_features)
    gradients = [arrays.empty(view.shape, view.dtype, v) for view in call.views]
    written = [arrays.view("gradient", gradient) for gradient in gradients]
    pack([*call.views, arrays.view("d_out", d_out), *written], plan.views)
    d_initial_state = None if initial_state is None else arrays.empty_floats(call.state_shape, v)
    _, plan.gradients.d_initial_state = arrays.floats("d_initial_state", d_initial_state, call.state_shape, v)
    d_final_state, d_state = arrays.floats("d_final_state", d_final_state, call.state_shape, v)
    plan.inputs.forward_workspace = None if kept is None else arrays.address(kept)
    size = plan.backward_workspace
    memory, workspace = arrays.workspace(call.context, size)
    status = lib.hla_hadamard_backward(
        plan.handle, byref(plan.gradients), plan.out, d_state, byref(plan.inputs), workspace, size
    )
    check(status, plan.context)
    return gradients[:P], gradients[P:-1], gradients[-1], d_initial_state


def explain(arrays, options, q_features, k_features, v, lengths, initial_state, return_state) -> str:
    return _Call(arrays, options, q_features, k_features, v, lengths, initial_state, return_state).plan.explain()
