"""NumPy arrays and whatever else lies in the CPU's memory and speaks DLPack, as libhla's views; results are NumPy's."""

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p, py_object
from math import prod

import numpy

from . import _context
from ._context import Context, View
from ._library import BFLOAT16, DTYPE_NAMES, FLOAT16, FLOAT32

_DLPACK_CPU = 1
_DTYPES = {(2, 32): FLOAT32, (2, 16): FLOAT16, (4, 16): BFLOAT16}  # (DLDataTypeCode, bits)


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    ]


_LAYOUTS = {b"dltensor": _DLTensor, b"dltensor_versioned": _Versioned}
_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = c_char_p, [py_object]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [py_object, c_char_p]


def _capsule(name: str, array):
    try:
        return array.__dlpack__(max_version=(1, 0))  # knows of arrays that are read only
    except TypeError:
        return array.__dlpack__()
    except AttributeError:
        raise TypeError(f"{name} is a {type(array).__name__}, wanted a NumPy array or one that speaks DLPack") from None


def view(name: str, array) -> View:
    """The capsule is looked into and dropped: the memory is `array`'s, which the caller holds."""
    capsule = _capsule(name, array)
    kind = _name(capsule)
    tensor = _LAYOUTS[kind].from_address(_pointer(capsule, kind))
    tensor = getattr(tensor, "tensor", tensor)
    if tensor.device_type != _DLPACK_CPU:
        raise ValueError(f"{name} is not in the CPU's memory; on GPUs, PyTorch's tensors are taken")
    dtype = _DTYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        raise TypeError(f"{name} is of dtype {getattr(array, 'dtype', '?')}, wanted {', '.join(DTYPE_NAMES)}")
    if tensor.ndim != 4:
        raise ValueError(f"{name} has {tensor.ndim} axes, wanted 4")
    shape = tuple(tensor.shape[:4])
    if tensor.strides:
        strides = tuple(tensor.strides[:4])
    else:
        strides = (shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1)
    return View((tensor.data or 0) + tensor.byte_offset, dtype, shape, strides, None)


def empty(shape, dtype: int, like=None):
    if dtype == BFLOAT16:
        raise TypeError("the result would be bfloat16, which NumPy does not have: pass float32, or PyTorch's tensors")
    return numpy.empty(shape, (numpy.float32, None, numpy.float16)[dtype])


def empty_floats(shape, like=None):
    return numpy.empty(shape, numpy.float32)


def offsets(name: str, numbers, count: int):
    """int64 numbers, and their address; (None, None) for None."""
    if numbers is None:
        return None, None
    array = numpy.asarray(numbers)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} is of dtype {array.dtype}, wanted integers")
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {list(array.shape)}, wanted [{count}]")
    array = numpy.ascontiguousarray(array, numpy.int64)
    return array, array.ctypes.data


def floats(name: str, numbers, shape, like=None):
    """Contiguous float32 numbers, and their address; (None, None) for None."""
    if numbers is None:
        return None, None
    array = numpy.asarray(numbers)
    if array.dtype != numpy.float32:
        raise TypeError(f"{name} is of dtype {array.dtype}, wanted float32")
    if array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {list(array.shape)}, wanted {list(shape)}")
    array = numpy.ascontiguousarray(array)
    return array, array.ctypes.data


def over(pointer: int, shape, owner):
    """An array of float32 over memory of `owner`, which it keeps alive."""
    memory = (ctypes.c_float * prod(shape)).from_address(pointer)
    memory.owner = owner
    return numpy.frombuffer(memory, numpy.float32).reshape(shape)


def workspace(context: Context, size: int):
    return context.workspace(size)


def context(device) -> Context:
    return _context.context(device, 0)
