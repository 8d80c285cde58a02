"""libhla by ctypes: where it is, what its structs and functions look like (include/hla/*.h), errors as exceptions."""

import ctypes
import os
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

MAX_FACTORS, MAX_RANK = 4, 256  # HLA_MAX_FACTORS, HLA_MAX_RANK
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2  # hla_dtype
DTYPE_NAMES = ("float32", "bfloat16", "float16")
OK, ARGUMENT, MEMORY, UNSUPPORTED, WORKSPACE, NOT_FINITE = range(6)  # hla_status
LEGACY_STREAM = 1  # cudaStreamLegacy: what CUDA's default stream is called where NULL is not taken

ALIGNMENT = 64  # of workspaces


class ContextOptions(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("threads", c_int), ("check_finite", c_bool)]


class Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int), ("shape", c_int64 * 4), ("stride", c_int64 * 4)]


class HadamardProblem(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("batch", c_int64),
        ("heads", c_int64),
        ("queries", c_int64),
        ("keys", c_int64),
        ("value_dim", c_int64),
        ("kv_heads", c_int64),
        ("sequences", c_int64),
        ("factors", c_int),
        ("rank", c_int64 * MAX_FACTORS),
        ("dtype", c_int),
        ("causal", c_bool),
        ("stateful", c_bool),
        ("normalised", c_bool),
        ("epsilon", c_float),
        ("scale", c_float),
        ("form", c_int),
        ("kernel", c_char_p),
    ]


class HadamardInputs(ctypes.Structure):
    _fields_ = [
        ("q_features", c_void_p),
        ("k_features", c_void_p),
        ("v", c_void_p),
        ("key_lengths", c_void_p),
        ("query_starts", c_void_p),
        ("key_starts", c_void_p),
        ("initial_state", c_void_p),
        ("forward_workspace", c_void_p),
    ]


class HadamardGradients(ctypes.Structure):
    _fields_ = [
        ("dq_features", c_void_p),
        ("dk_features", c_void_p),
        ("dv", c_void_p),
        ("d_initial_state", c_void_p),
    ]


class FeatureMapProblem(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("batch", c_int64),
        ("heads", c_int64),
        ("tokens", c_int64),
        ("dim", c_int64),
        ("rank", c_int64),
        ("dtype", c_int),
        ("activation", c_int),
        ("floor", c_float),
        ("is_query", c_bool),
        ("shift", c_float),
        ("kernel", c_char_p),
        ("rope", c_void_p),
    ]


class FeatureMapWeights(ctypes.Structure):
    """Also hla_feature_map_weight_gradients, which has the same members."""

    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("hidden_weight", c_void_p),
        ("hidden_bias", c_void_p),
    ]


# Result and arguments of each function that is called. Pointers to structs are plain addresses: ctypes then takes what
# byref and addressof give, and checks nothing on the way.
_FUNCTIONS = {
    "hla_version": (c_char_p, []),
    "hla_context_options_init": (None, [c_void_p]),
    "hla_context_create": (c_int, [POINTER(c_void_p), c_void_p]),
    "hla_context_free": (None, [c_void_p]),
    "hla_context_error": (c_char_p, [c_void_p]),
    "hla_context_use_cuda": (c_int, [c_void_p, c_int]),
    "hla_context_set_stream": (c_int, [c_void_p, c_void_p]),
    "hla_activation_from_name": (c_bool, [c_char_p, POINTER(c_int)]),
    "hla_hadamard_problem_init": (None, [c_void_p]),
    "hla_hadamard_plan_create": (c_int, [c_void_p, c_void_p, POINTER(c_void_p)]),
    "hla_hadamard_plan_free": (None, [c_void_p]),
    "hla_hadamard_plan_workspace": (c_size_t, [c_void_p]),
    "hla_hadamard_plan_backward_workspace": (c_size_t, [c_void_p]),
    "hla_hadamard_plan_kept_workspace": (c_size_t, [c_void_p]),
    "hla_hadamard_plan_explain": (c_char_p, [c_void_p]),
    "hla_hadamard_forward": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t]),
    "hla_hadamard_backward": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t]),
    "hla_feature_map_problem_init": (None, [c_void_p]),
    "hla_feature_map_forward": (c_int, [c_void_p] * 5),
    "hla_feature_map_backward": (c_int, [c_void_p] * 8 + [c_size_t]),
    "hla_feature_map_backward_workspace": (c_int, [c_void_p, c_void_p, POINTER(c_size_t)]),
    "hla_state_create": (c_int, [c_void_p, c_void_p, POINTER(c_void_p)]),
    "hla_state_free": (None, [c_void_p]),
    "hla_state_append": (c_int, [c_void_p] * 3),
    "hla_state_query": (c_int, [c_void_p] * 3),
    "hla_state_step": (c_int, [c_void_p] * 5),
    "hla_state_reset": (c_int, [c_void_p]),
    "hla_state_merge": (c_int, [c_void_p] * 2),
    "hla_state_decay": (c_int, [c_void_p, c_float]),
    "hla_state_decay_heads": (c_int, [c_void_p] * 2),
    "hla_state_clone": (c_int, [c_void_p, c_void_p, POINTER(c_void_p)]),
    "hla_state_tokens": (c_int64, [c_void_p]),
    "hla_state_set_tokens": (c_int, [c_void_p, c_int64]),
    "hla_state_data": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "hla_state_memory": (c_size_t, [c_void_p]),
    "hla_state_saved_size": (c_size_t, [c_void_p]),
    "hla_state_save": (c_int, [c_void_p, c_void_p, c_size_t]),
    "hla_state_load": (c_int, [c_void_p, c_char_p, c_size_t]),
    "hla_state_saved_problem": (c_int, [c_void_p, c_char_p, c_size_t, c_void_p]),
}

# The structs that begin with struct_size, and what sets it and the defaults.
_INITIALISERS = {
    ContextOptions: "hla_context_options_init",
    HadamardProblem: "hla_hadamard_problem_init",
    FeatureMapProblem: "hla_feature_map_problem_init",
}


def path() -> str:
    """The library that is used: named by the environment variable HLA_LIBRARY, else the one that came with the package,
    else the one that the loader finds."""
    carried = Path(__file__).parent / "lib" / "libhla.so.0"
    return os.environ.get("HLA_LIBRARY") or (str(carried) if carried.exists() else carried.name)


def _open() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path())
    except OSError as error:
        raise ImportError(f"libhla cannot be loaded: {error}") from None
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise ImportError(f"{path()} has no function {name}: it is not libhla, or an older one") from None
        function.restype, function.argtypes = result, arguments
    for struct, name in _INITIALISERS.items():
        made = (ctypes.c_char * (2 * ctypes.sizeof(struct)))()
        getattr(library, name)(byref(made))
        size = c_size_t.from_buffer(made).value
        if size != ctypes.sizeof(struct):
            raise ImportError(
                f"{path()} is another version of libhla: {name} tells {size} bytes, this package knows "
                f"{ctypes.sizeof(struct)}"
            )
    return library


lib = _open()


def initialised(struct):
    """A struct with libhla's defaults."""
    made = struct()
    getattr(lib, _INITIALISERS[struct])(byref(made))
    return made


_EXCEPTIONS = {ARGUMENT: ValueError, NOT_FINITE: ValueError, MEMORY: MemoryError}


def check(status: int, context: int) -> None:
    """Raises what a status stands for, with the sentence that the context holds."""
    if status != OK:
        raise _EXCEPTIONS.get(status, RuntimeError)(lib.hla_context_error(context).decode())


def activation(name: str) -> int:
    """The number of an activation's name."""
    number = c_int()
    if not lib.hla_activation_from_name(name.encode(), byref(number)):
        raise ValueError(f"activation is {name!r}, wanted relu, elu1, softplus, exp, softmax, square or identity")
    return number.value
