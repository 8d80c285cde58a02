"""PyTorch's tensors, on the CPU or a GPU, as libhla's views; what results need comes from PyTorch's allocator."""

import contextlib

import torch

from . import _context
from ._context import Context, View
from ._library import BFLOAT16, DTYPE_NAMES, FLOAT16, FLOAT32, LEGACY_STREAM

_DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_TYPES = {number: dtype for dtype, number in _DTYPES.items()}


def place(name: str, device: torch.device):
    """A CUDA device's number, or None for the CPU."""
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        raise ValueError(f"{name} is on {device}, wanted the CPU or an NVIDIA GPU")
    return device.index


def described(name: str, tensor: torch.Tensor, pointer: int, strides) -> View:
    shape, dtype = tensor.shape, _DTYPES.get(tensor.dtype)
    if len(shape) != 4:
        raise ValueError(f"{name} has {len(shape)} axes, wanted 4")
    if dtype is None:
        raise TypeError(f"{name} is of dtype {tensor.dtype}, wanted {', '.join(DTYPE_NAMES)}")
    return View(pointer, dtype, shape, strides, None if tensor.is_cpu else place(name, tensor.device))


def view(name: str, tensor: torch.Tensor) -> View:
    return described(name, tensor, tensor.data_ptr(), tensor.stride())


def empty(shape, dtype: int, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=_TYPES[dtype], device=like.device)


def empty_floats(shape, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def offsets(name: str, numbers, count: int):
    """int64 numbers in the CPU's memory, and their address; (None, None) for None."""
    if numbers is None:
        return None, None
    if numbers.device.type != "cpu":
        raise ValueError(f"{name} is on {numbers.device}, wanted the CPU's memory, where libhla reads it")
    if numbers.dtype.is_floating_point or numbers.dtype.is_complex or numbers.dtype == torch.bool:
        raise TypeError(f"{name} is of dtype {numbers.dtype}, wanted integers")
    if tuple(numbers.shape) != (count,):
        raise ValueError(f"{name} has shape {list(numbers.shape)}, wanted [{count}]")
    numbers = numbers.to(torch.int64).contiguous()
    return numbers, numbers.data_ptr()


def floats(name: str, numbers, shape, like: torch.Tensor):
    """Contiguous float32 numbers on the device of `like`, and their address; (None, None) for None."""
    if numbers is None:
        return None, None
    if numbers.dtype != torch.float32:
        raise TypeError(f"{name} is of dtype {numbers.dtype}, wanted float32")
    if numbers.device != like.device:
        raise ValueError(f"{name} is on {numbers.device}, wanted {like.device}, where the tensors are")
    if tuple(numbers.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {list(numbers.shape)}, wanted {list(shape)}")
    numbers = numbers.contiguous()
    return numbers, numbers.data_ptr()


def workspace(context: Context, size: int):
    """Memory and its address. A GPU's comes from PyTorch's allocator, which hands it on in the order of the stream."""
    if context.device is None:
        return context.workspace(size)
    memory = torch.empty(size, dtype=torch.uint8, device=f"cuda:{context.device}")
    return memory, memory.data_ptr()


def beginning(memory: torch.Tensor, size: int) -> torch.Tensor:
    """A copy, so that the rest can be freed."""
    return memory[:size].clone()


def address(memory: torch.Tensor) -> int:
    return memory.data_ptr()


def context(device) -> Context:
    if device is None:
        return _context.context(None, torch.get_num_threads())
    made = _context.context(device, 0)
    made.set_stream(torch.cuda.current_stream(device).cuda_stream or LEGACY_STREAM)
    return made


def on_device(tensor: torch.Tensor):
    """libhla leaves the thread on the GPU it computed on; this brings the thread back to where it was."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
