"""Streaming: a state that tokens are appended to and that queries read (include/hla/state.h)."""

import contextlib
import ctypes
import sys
from ctypes import addressof, byref, c_void_p
from math import prod
from operator import index
from typing import Any, Optional, Sequence, Union

from ._attention import argument_names, check_lists, device_name
from ._context import Context, hadamard_problem, packed
from ._functions import is_tensor
from ._library import DTYPE_NAMES, HadamardProblem, check, initialised, lib


class State:
    """What keys and values contribute to Hadamard attention, whatever their number: R (V + 1) numbers a key head
    (arXiv 2602.12128, sequential updates).

        state = hla.State(batch=1, heads=H, value_dim=V, ranks=[16, 16])
        out = state.step(q_features, k_features, v)    # [B, T, H, V]: tokens in order, one or many at a time

    Args:
        batch, heads, value_dim, ranks: B, H, V, and R_p of each factor.
        kv_heads: Hkv, a divisor of heads; heads if None.
        dtype: of features, values and outputs: "float32", "bfloat16" or "float16", or PyTorch's. The state itself is
            float32.
        device: None or "cpu", or a GPU as PyTorch names it; what is passed is on that device.
        normalised, epsilon, scale: see hla.hadamard_attention.

    Features and values are those of hla.hadamard_attention: lists of one array a factor, NumPy's or PyTorch's, of any
    strides, with as many tokens T as they have. Nothing here can be differentiated: hla.hadamard_attention with
    initial_state and return_state can. A state is for one thread at a time.
    """

    def __init__(
        self,
        *,
        batch: int,
        heads: int,
        value_dim: int,
        ranks: Sequence[int],
        kv_heads: Optional[int] = None,
        dtype: Any = "float32",
        device: Any = None,
        normalised: bool = True,
        epsilon: float = 1e-6,
        scale: float = 1.0,
    ):
        name = str(dtype).replace("torch.", "")
        if name not in DTYPE_NAMES:
            raise TypeError(f"dtype is {dtype}, wanted {', '.join(DTYPE_NAMES)}")
        problem = hadamard_problem(
            batch, heads, 1, 1, value_dim, kv_heads or 0, 0, tuple(map(index, ranks)),
            DTYPE_NAMES.index(name), False, False, normalised, epsilon, scale,
        )  # fmt: skip
        self._make(problem, _number(device), lambda ctx, handle: lib.hla_state_create(ctx, byref(problem), handle))

    def _make(self, problem: HadamardProblem, device: Optional[int], make) -> None:
        """make(context, handle): hla_state_create or one like it."""
        problem.kv_heads = problem.kv_heads or problem.heads
        self._problem, self._handle = problem, None
        self._context = Context(device, _threads() if device is None else 0)  # its own, which lives as long as it
        handle = c_void_p()
        with self._in_order():
            check(make(self._context.handle, byref(handle)), self._context.handle)
        self._handle = handle.value

    def __del__(self, free=lib.hla_state_free):
        free(getattr(self, "_handle", None))

    # ---- tokens ----

    def append(self, k_features: Sequence[Any], v: Any) -> None:
        """Adds T tokens: k_features [B, T, Hkv, R_p] of each factor, v [B, T, Hkv, V]."""
        _, views = self._views([], k_features, v)
        memory = packed(views)
        self._call(lib.hla_state_append, addressof(memory[0]), addressof(memory[-1]))

    def query(self, q_features: Sequence[Any]) -> Any:
        """[B, T, H, V] of T queries, q_features [B, T, H, R_p], each of which sees all that was appended."""
        arrays, views = self._views(q_features, [], None)
        out = self._out(arrays, views, q_features[0])
        memory = packed(views)
        self._call(lib.hla_state_query, addressof(memory[-1]), addressof(memory[0]))
        return out

    def step(self, q_features: Sequence[Any], k_features: Sequence[Any], v: Any) -> Any:
        """Causal: appends T tokens, and query i sees those of before and tokens 0 ... i of these: [B, T, H, V]."""
        arrays, views = self._views(q_features, k_features, v)
        out = self._out(arrays, views, v)
        memory, P = packed(views), self._problem.factors
        places = (addressof(memory[i]) for i in (2 * P + 1, 0, P, 2 * P))
        self._call(lib.hla_state_step, *places)
        return out

    def _views(self, q_features, k_features, v):
        """The module for such arrays, and the views of all that are given."""
        check_lists(q_features, k_features)
        P = self._problem.factors
        for name, features in (("q_features", q_features), ("k_features", k_features)):
            if features and len(features) != P:
                raise ValueError(f"{name} holds {len(features)} arrays, wanted one for each of {P} factors")
        given = [*q_features, *k_features] + ([] if v is None else [v])
        arrays = _arrays(given[0])
        views = [arrays.view(name, x) for name, x in zip(argument_names(len(q_features), len(k_features)), given)]
        for name, view in zip(argument_names(len(q_features), len(k_features)), views):
            if view.device != self._context.device:
                raise ValueError(f"{name} is on {device_name(view.device)}, the state on {self.device}")
        if is_tensor(given[0]) and _differentiated(given):
            raise RuntimeError("a State has no gradients: call it under torch.no_grad(), or on detached tensors")
        return arrays, views

    def _out(self, arrays, views, like):
        problem = self._problem
        out = arrays.empty((problem.batch, views[0].shape[1], problem.heads, problem.value_dim), problem.dtype, like)
        views.append(arrays.view("out", out))
        return out

    # ---- the state as a whole ----

    def reset(self) -> None:
        """Empties the state."""
        self._call(lib.hla_state_reset)

    def merge(self, other: "State") -> None:
        """Adds the tokens of another state of equal sizes on the same device. The sum of the states of disjoint sets of
        tokens is that of their union."""
        if not isinstance(other, State):
            raise TypeError(f"other is a {type(other).__name__}, wanted a State")
        self._call(lib.hla_state_merge, other._handle)

    def decay(self, gamma: Union[float, Sequence[float]]) -> None:
        """Multiplies the state by gamma, 0 to 1: tokens so far count that much less. Or by a number a key head."""
        if isinstance(gamma, (int, float)):
            self._call(lib.hla_state_decay, gamma)
            return
        numbers = [float(number) for number in gamma]
        kv_heads = self._problem.kv_heads
        if len(numbers) != kv_heads:
            raise ValueError(f"gamma holds {len(numbers)} numbers, wanted one, or one for each of {kv_heads} key heads")
        self._call(lib.hla_state_decay_heads, (ctypes.c_float * kv_heads)(*numbers))

    def clone(self, device: Any = None) -> "State":
        """A new state with the same problem, tokens and numbers, on the same device or another."""
        made = State.__new__(State)
        number = self._context.device if device is None else _number(device)
        made._make(self._problem, number, lambda ctx, handle: lib.hla_state_clone(ctx, self._handle, handle))
        return made

    @property
    def tokens(self) -> int:
        """How many tokens of each batch entry were appended and merged in. For information; who writes data sets it."""
        return lib.hla_state_tokens(self._handle)

    @tokens.setter
    def tokens(self, count: int) -> None:
        self._call(lib.hla_state_set_tokens, count)

    @property
    def memory(self) -> int:
        """Bytes that the state occupies."""
        return lib.hla_state_memory(self._handle)

    @property
    def device(self) -> str:
        return device_name(self._context.device)

    @property
    def data(self) -> Any:
        """The state itself, float32 [B, Hkv, R, V + 1], not a copy: a NumPy array, or a tensor on a GPU. An all-reduce
        that adds it up over machines gives the state of all their tokens."""
        problem = self._problem
        R = prod(problem.rank[: problem.factors])
        shape = (problem.batch, problem.kv_heads, R, problem.value_dim + 1)
        pointer = lib.hla_state_data(self._handle, None)
        if self._context.device is None:
            from . import _numpy

            return _numpy.over(pointer, shape, owner=self)
        from . import _torch

        return _torch.over(pointer, shape, self._context.device, owner=self)

    # ---- save and load ----

    def save(self) -> bytes:
        """The state as one block of bytes, with its problem and a checksum."""
        size = lib.hla_state_saved_size(self._handle)
        buffer = ctypes.create_string_buffer(size)
        self._call(lib.hla_state_save, buffer, size)
        return buffer.raw

    @classmethod
    def load(cls, saved: bytes, device: Any = None) -> "State":
        """A state from what save gave. ValueError if that is cut off or was changed."""
        if not isinstance(saved, bytes):
            raise TypeError(f"saved is a {type(saved).__name__}, wanted the bytes that save gave")
        context, problem = Context(), initialised(HadamardProblem)
        check(lib.hla_state_saved_problem(context.handle, saved, len(saved), byref(problem)), context.handle)
        made = cls.__new__(cls)
        made._make(problem, _number(device), lambda ctx, handle: lib.hla_state_create(ctx, byref(problem), handle))
        made._call(lib.hla_state_load, saved, len(saved))
        return made

    # ---- calls ----

    def _call(self, function, *arguments) -> None:
        with self._in_order():
            check(function(self._handle, *arguments), self._context.handle)

    def _in_order(self):
        """On a GPU, work goes to the current stream, and the thread comes back to its own device."""
        if self._context.device is None:
            return contextlib.nullcontext()
        from . import _torch

        _torch.on_stream(self._context)
        return _torch.torch.cuda.device(self._context.device)


def _arrays(array):
    if is_tensor(array):
        from . import _torch

        return _torch
    from . import _numpy

    return _numpy


def _threads() -> int:
    """PyTorch's number where it is in use, else OpenMP's."""
    torch = sys.modules.get("torch")
    return 0 if torch is None else torch.get_num_threads()


def _number(device: Any) -> Optional[int]:
    """A CUDA device's number; None for the CPU."""
    if device is None or str(device) == "cpu":
        return None
    from . import _torch

    return _torch.place("the state", _torch.with_index(device))


def _differentiated(tensors) -> bool:
    torch = sys.modules["torch"]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
