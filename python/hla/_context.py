"""Contexts of libhla, one a thread, device and number of threads, each with its plans, and views packed for calls.

A context serves one thread at a time, so each Python thread has its own; autograd's threads are no exception.
"""

import functools
import struct
import threading
from collections import OrderedDict
from ctypes import addressof, byref, c_void_p, create_string_buffer, sizeof
from typing import NamedTuple, Optional

from ._library import (
    ALIGNMENT,
    MAX_FACTORS,
    ContextOptions,
    HadamardGradients,
    HadamardInputs,
    HadamardProblem,
    Tensor,
    check,
    initialised,
    lib,
)

_PLANS = 64  # kept by a context; the one that was not used for longest goes first
_KEPT_WORKSPACE = 64 << 20  # bytes: above that, the page faults of new memory are small beside the work done in it


class View(NamedTuple):
    """An array as libhla sees it: shape and strides (in elements) of its four axes."""

    pointer: int
    dtype: int
    shape: tuple
    strides: tuple
    device: Optional[int]  # a CUDA device, or None for the CPU


@functools.lru_cache(maxsize=None)
def _layout(count: int) -> struct.Struct:
    """Of an array of so many hla_tensor."""
    return struct.Struct("@" + count * "Pi4q4q")


def pack(views, buffer) -> None:
    """Writes views into an array of hla_tensor."""
    members = []
    for view in views:
        members += (view.pointer, view.dtype, *view.shape, *view.strides)
    _layout(len(views)).pack_into(buffer, 0, *members)


def packed(views):
    """A new array of hla_tensor."""
    buffer = (Tensor * len(views))()
    pack(views, buffer)
    return buffer


class Plan:
    """A hla_hadamard_plan with room for what its calls take: views of q_features, k_features, v; out or its gradient;
    the gradients of the first three."""

    def __init__(self, context: int, problem: HadamardProblem):
        handle = c_void_p()
        check(lib.hla_hadamard_plan_create(context, byref(problem), byref(handle)), context)
        self.handle, self.context = handle.value, context
        self.workspace = lib.hla_hadamard_plan_workspace(handle)
        self.backward_workspace = lib.hla_hadamard_plan_backward_workspace(handle)
        self.kept_workspace = lib.hla_hadamard_plan_kept_workspace(handle)
        P = problem.factors
        self.views = (Tensor * (4 * P + 3))()
        place = [addressof(self.views) + i * sizeof(Tensor) for i in range(4 * P + 3)]
        self.inputs = HadamardInputs(q_features=place[0], k_features=place[P], v=place[2 * P])
        self.out = place[2 * P + 1]
        self.gradients = HadamardGradients(place[2 * P + 2], place[3 * P + 2], place[4 * P + 2])

    def __del__(self, free=lib.hla_hadamard_plan_free):
        free(getattr(self, "handle", None))

    def explain(self) -> str:
        return lib.hla_hadamard_plan_explain(self.handle).decode()


class Context:
    """device: a CUDA device, or None for the CPU. threads: 0 for as many as OpenMP would use."""

    def __init__(self, device: Optional[int] = None, threads: int = 0):
        options = initialised(ContextOptions)
        options.threads = threads
        handle = c_void_p()
        if lib.hla_context_create(byref(handle), byref(options)) != 0:
            raise RuntimeError(f"libhla could not make a context of {threads} threads")
        self.handle, self.device = handle.value, device
        self.plans: OrderedDict = OrderedDict()
        self._workspace = create_string_buffer(0)
        if device is not None:
            check(lib.hla_context_use_cuda(handle, device), self.handle)

    def __del__(self, free=lib.hla_context_free):
        if hasattr(self, "plans"):
            self.plans.clear()
            free(self.handle)

    def set_stream(self, stream: int) -> None:
        check(lib.hla_context_set_stream(self.handle, stream), self.handle)

    def plan(self, *key) -> Plan:
        """The plan of a problem, named by its members from batch on (hla_hadamard_problem), ranks as a tuple."""
        plan = self.plans.get(key)
        if plan is None:
            plan = self.plans[key] = Plan(self.handle, hadamard_problem(*key))
            if len(self.plans) > _PLANS:
                self.plans.popitem(last=False)
        else:
            self.plans.move_to_end(key)
        return plan

    def workspace(self, size: int):
        """Memory of the CPU, and its aligned address. Up to a bound it is kept for the next call."""
        if size + ALIGNMENT > len(self._workspace):
            fresh = create_string_buffer(size + ALIGNMENT)
            if size <= _KEPT_WORKSPACE:
                self._workspace = fresh
        else:
            fresh = self._workspace
        return fresh, -addressof(fresh) % ALIGNMENT + addressof(fresh)


def hadamard_problem(
    batch, heads, queries, keys, value_dim, kv_heads, sequences, ranks, dtype, causal, stateful, normalised, epsilon,
    scale,
) -> HadamardProblem:  # fmt: skip
    if not 1 <= len(ranks) <= MAX_FACTORS:
        raise ValueError(f"ranks are {list(ranks)}, wanted 1 to {MAX_FACTORS} numbers")
    problem = initialised(HadamardProblem)
    problem.batch, problem.heads, problem.queries, problem.keys = batch, heads, queries, keys
    problem.value_dim, problem.kv_heads, problem.sequences = value_dim, kv_heads, sequences
    problem.factors, problem.dtype = len(ranks), dtype
    problem.rank[: len(ranks)] = ranks
    problem.causal, problem.stateful, problem.normalised = causal, stateful, normalised
    problem.epsilon, problem.scale = epsilon, scale
    return problem


_local = threading.local()


def context(device: Optional[int], threads: int) -> Context:
    """This thread's context."""
    try:
        return _local.contexts[device, threads]
    except AttributeError:
        _local.contexts = {}
    except KeyError:
        pass
    made = _local.contexts[device, threads] = Context(device, threads)
    return made
