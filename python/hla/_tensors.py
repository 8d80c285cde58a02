"""The package's functions for PyTorch's tensors: kinds of arguments, autocast, then the operation."""

import torch

from . import _attention, _ops, _torch
from ._attention import argument_names
from ._feature_map import WEIGHT_NAMES

if hasattr(torch, "get_autocast_dtype"):

    def _autocast_dtype(device_type: str):
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None

else:

    def _autocast_dtype(device_type: str):
        if device_type == "cuda":
            return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def _check_tensors(names, arguments) -> None:
    for name, argument in zip(names, arguments):
        if not isinstance(argument, (torch.Tensor, type(None))):
            raise TypeError(f"{name} is a {type(argument).__name__}, wanted a tensor like the others")


def _cast(tensors):
    """As autocast says; float64 stays what it is and is refused later."""
    device_type = tensors[-1].device.type
    dtype = _autocast_dtype(device_type) if device_type in ("cpu", "cuda") else None
    if dtype is None:
        return tensors
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _arguments(q_features, k_features, v, lengths, initial_state):
    P, tensors = len(q_features), [*q_features, *k_features, v]
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        _check_tensors(argument_names(P, len(k_features)), tensors)
    _check_tensors(["initial_state"], [initial_state])
    tensors = _cast(tensors)
    lengths = [
        x if x is None or isinstance(x, torch.Tensor) else torch.as_tensor(x, dtype=torch.int64) for x in lengths
    ]
    return tensors[:P], tensors[P:-1], tensors[-1], lengths


def hadamard_attention(options, q_features, k_features, v, lengths, initial_state, return_state):
    q_features, k_features, v, lengths = _arguments(q_features, k_features, v, lengths, initial_state)
    results = _ops.hadamard(q_features, k_features, v, *lengths, initial_state, (*options, return_state))
    return tuple(results) if return_state else results[0]


def explain(options, q_features, k_features, v, lengths, initial_state, return_state):
    q_features, k_features, v, lengths = _arguments(q_features, k_features, v, lengths, initial_state)
    with _torch.on_device(v):
        return _attention.explain(
            _torch, options, q_features, k_features, v, lengths, initial_state, return_state
        )


def feature_map(options, x, weights, rope):
    _check_tensors((*WEIGHT_NAMES, "rope"), (*weights, rope))
    (x,) = _cast([x])
    weights = [None if weight is None else weight.float() for weight in weights]
    return _ops.feature_map(x, *weights, rope, tuple(options))
