"""The functions of the package: what is passed to them decides whether NumPy or PyTorch serves the call."""

import sys
from typing import Any, Sequence

from . import _attention, _feature_map
from ._attention import Options, check_factors
from ._feature_map import MapOptions


def is_tensor(array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def hadamard_attention(
    q_features: Sequence[Any],
    k_features: Sequence[Any],
    v: Any,
    *,
    causal: bool = False,
    normalised: bool = True,
    epsilon: float = 1e-6,
    scale: float = 1.0,
    key_lengths: Any = None,
    query_starts: Any = None,
    key_starts: Any = None,
    initial_state: Any = None,
    return_state: bool = False,
) -> Any:
    """Hadamard linear attention (Ackermann, Cai, Ghafoorian, Habibian, arXiv 2602.12128).

    With query features a_i^p and key features c_j^p of factors p = 1 ... P, per batch entry and head:

        A_ij = prod_p (a_i^p . c_j^p)        out_i = sum_j A_ij v_j / (sum_j A_ij + epsilon)
                                             out_i = scale * sum_j A_ij v_j    if not normalised

    Args:
        q_features: list of P arrays [B, Tq, H, R_p], 1 to 4 factors of ranks R_p up to 256.
        k_features: list of P arrays [B, Tk, Hkv, R_p]; Hkv divides H, and query head h attends to key head
            h // (H // Hkv).
        v: [B, Tk, Hkv, V].
        causal: query i sees keys 0 ... i.
        key_lengths: B integers 0 ... Tk: keys beyond are ignored.
        query_starts, key_starts: N + 1 integers that rise from 0 to Tq and Tk ("cu_seqlens"): N sequences of any
            lengths lie one after the other on the token axis; B is 1.
        initial_state: float32 [N or B, Hkv, R_1 ... R_P, V + 1]: of keys that came before all others.
        return_state: also return the state of all keys, to be passed on as initial_state.

    Returns:
        out [B, Tq, H, V], or (out, state). A query without keys gets zeros.

    Features and values are of one dtype, float32, bfloat16 or float16, and have any strides: [B, H, T, X] arrays are
    passed as x.transpose(1, 2), or x.swapaxes(1, 2), which copies nothing. Sums are float32 or better. NumPy arrays,
    and others of the CPU that speak DLPack, give a NumPy array. PyTorch's tensors give a tensor and can be
    differentiated once; on a GPU the work is queued on the current stream. Lengths and offsets are lists, or integer
    arrays in the CPU's memory.

    Raises:
        ValueError: a shape, device or number that does not fit; the sentence names the argument.
        TypeError: a dtype or kind of argument that is not taken.
        RuntimeError: what this build of libhla, this machine or the GPU cannot do.
    """
    options = Options(bool(causal), bool(normalised), float(epsilon), float(scale))
    arguments = (q_features, k_features, v, (key_lengths, query_starts, key_starts), initial_state, bool(return_state))
    check_factors(q_features, k_features)
    if is_tensor(v):
        from . import _tensors

        return _tensors.hadamard_attention(options, *arguments)
    from . import _numpy

    out, state, _ = _attention.forward(_numpy, options, *arguments, keep=False)
    return (out, state) if return_state else out


def explain(
    q_features: Sequence[Any],
    k_features: Sequence[Any],
    v: Any,
    *,
    causal: bool = False,
    normalised: bool = True,
    epsilon: float = 1e-6,
    scale: float = 1.0,
    key_lengths: Any = None,
    query_starts: Any = None,
    key_starts: Any = None,
    initial_state: Any = None,
    return_state: bool = False,
) -> str:
    """Which algorithm and kernel hadamard_attention takes for these arguments, and why: a sentence or two."""
    options = Options(bool(causal), bool(normalised), float(epsilon), float(scale))
    arguments = (q_features, k_features, v, (key_lengths, query_starts, key_starts), initial_state, bool(return_state))
    check_factors(q_features, k_features)
    if is_tensor(v):
        from . import _tensors

        return _tensors.explain(options, *arguments)
    from . import _numpy

    return _attention.explain(_numpy, options, *arguments)


def feature_map(
    x: Any,
    weight: Any,
    bias: Any = None,
    hidden_weight: Any = None,
    hidden_bias: Any = None,
    *,
    activation: str = "relu",
    floor: float = 1e-3,
    is_query: bool = False,
    shift: float = 0.0,
    rope: Any = None,
) -> Any:
    """The features of one factor, with weights for each head (include/hla/feature_map.h).

        h = x        or, with hidden_weight U and hidden_bias c,        h = x + relu(U x + c)
        y = act(W h + b)

    Args:
        x: queries or keys [B, T, H, D], float32, bfloat16 or float16, any strides.
        weight, bias: W [H, R, D] and b [H, R], float32.
        hidden_weight, hidden_bias: U [H, D, D] and c [H, D], float32.
        activation: relu (plus floor), elu1, softplus, exp, softmax, square or identity.
        is_query, shift: exp only: queries are shifted by their row's maximum, keys by a constant.
        rope: float32 [T, D / 2, 2], a cosine and a sine for each token and pair: x is turned first (Su et al., arXiv
            2104.09864), each pair (x[2i], x[2i+1]).

    Returns:
        The features [B, T, H, R], of x's dtype. Arrays, devices, gradients and errors are as for hadamard_attention.
    """
    options = MapOptions(activation, float(floor), bool(is_query), float(shift))
    weights = (weight, bias, hidden_weight, hidden_bias)
    if is_tensor(x):
        from . import _tensors

        return _tensors.feature_map(options, x, weights, rope)
    from . import _numpy

    return _feature_map.forward(_numpy, options, x, weights, rope)
