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


def with_index(device) -> torch.device:
    """The device with a number where it is a GPU."""
    device = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


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
    return like.new_empty(shape, dtype=_TYPES[dtype])


def empty_floats(shape, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(shape, dtype=torch.float32)


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


class _Memory:
    """float32 numbers on a GPU, as CUDA's array interface tells of them; `owner` lives as long as they are in use."""

    def __init__(self, pointer: int, shape, owner):
        self.owner = owner
        self.__cuda_array_interface__ = {"data": (pointer, False), "shape": shape, "typestr": "<f4", "version": 2}


def over(pointer: int, shape, device: int, owner) -> torch.Tensor:
    """A tensor of float32 over a GPU's memory of `owner`, which it keeps alive."""
    return torch.as_tensor(_Memory(pointer, shape, owner), device=f"cuda:{device}")


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
    """This thread's context, whose work goes to the current stream."""
    return on_stream(_context.context(device, torch.get_num_threads() if device is None else 0))


def on_stream(context: Context) -> Context:
    if context.device is not None:
        context.set_stream(torch.cuda.current_stream(context.device).cuda_stream or LEGACY_STREAM)
    return context


def on_device(tensor: torch.Tensor):
    """libhla leaves the thread on the GPU it computed on; this brings the thread back to where it was."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
