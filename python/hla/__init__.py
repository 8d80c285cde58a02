"""Hadamard linear attention by libhla, for NumPy arrays and PyTorch tensors.

    q_features = [hla.feature_map(q, weight, is_query=True) for weight in query_weights]
    k_features = [hla.feature_map(k, weight) for weight in key_weights]
    out = hla.hadamard_attention(q_features, k_features, v)

hla.HadamardAttention is the same as a PyTorch module with its feature maps, hla.State streams token by token,
hla.diffusers puts Hadamard attention into a WanTransformer3DModel.
"""

import sys

from ._functions import explain, feature_map, hadamard_attention
from ._library import lib as _lib
from .state import State

__all__ = ["HadamardAttention", "State", "explain", "feature_map", "hadamard_attention", "__version__"]
__version__ = _lib.hla_version().decode()


def __getattr__(name: str):
    """What needs PyTorch is imported when it is asked for."""
    if name == "HadamardAttention":
        from .module import HadamardAttention

        return HadamardAttention
    raise AttributeError(f"module 'hla' has no attribute {name!r}")


if "torch" in sys.modules:
    from . import _tensors as _tensors  # so that torch.compile finds the operations registered
