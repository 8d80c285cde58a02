"""The package's functions for PyTorch's tensors: kinds of arguments, autocast, and what the backward pass needs."""

import torch

from . import _attention, _ops, _torch

if hasattr(torch, "get_autocast_dtype"):

    def _autocast_dtype(device_type: str):
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None

else:

    def _autocast_dtype(device_type: str):
        if device_type == "cuda":
            return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def _check_tensors(**tensors) -> None:
    for name, value in tensors.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, wanted a tensor like the others")


def _cast(tensors):
    """As autocast says; float64 stays what it is and is refused later."""
    dtype = _autocast_dtype(tensors[-1].device.type)
    if dtype is None:
        return tensors
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def _arguments(q_features, k_features, v, lengths, initial_state):
    named = {f"q_features[{p}]": x for p, x in enumerate(q_features)}
    named |= {f"k_features[{p}]": x for p, x in enumerate(k_features)}
    _check_tensors(**named, initial_state=initial_state)
    *features, v = _cast([*q_features, *k_features, v])
    lengths = [
        x if x is None or isinstance(x, torch.Tensor) else torch.as_tensor(x, dtype=torch.int64) for x in lengths
    ]
    return features[: len(q_features)], features[len(q_features) :], v, lengths


def hadamard_attention(options, q_features, k_features, v, lengths, initial_state, return_state):
    q_features, k_features, v, lengths = _arguments(q_features, k_features, v, lengths, initial_state)
    followed = [*q_features, *k_features, v] if initial_state is None else [*q_features, *k_features, v, initial_state]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in followed)
    out, state, _ = _ops.hadamard(q_features, k_features, v, *lengths, initial_state, *options, return_state, keep)
    return (out, state) if return_state else out


def explain(options, q_features, k_features, v, lengths, initial_state, return_state):
    q_features, k_features, v, lengths = _arguments(q_features, k_features, v, lengths, initial_state)
    with _torch.on_device(v):
        return _attention.explain(
            _torch, options, q_features, k_features, v, lengths, initial_state, return_state
        )


def feature_map(options, x, weights, rope):
    names = ("weight", "bias", "hidden_weight", "hidden_bias")
    _check_tensors(**dict(zip(names, weights)), rope=rope)
    (x,) = _cast([x])
    weights = [None if weight is None else weight.float() for weight in weights]
    return _ops.feature_map(x, *weights, rope, *options)
