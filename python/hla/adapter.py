"""The directory hla/ of a converted model: config.json says which attention each transformer block has, and
model.safetensors holds feature maps and such transformer weights as take the place of the model's own. The format is
written down in video/weights/README.md; the video engine reads the same files."""

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

_CLASS, _VERSION = "HadamardLinearAttention", 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_DEFAULTS = {
    "activation": "relu", "activation_floor": 1e-3, "normalised": True, "epsilon": 1e-6, "scale": 1.0, "hidden": False,
    "bias": True, "rope": "before",
}  # fmt: skip

Block = Optional[Dict[str, Any]]  # the arguments of HadamardAttention from ranks on; None: softmax


def _block(where: str, entry: Any) -> Block:
    if not isinstance(entry, dict) or entry.get("kind") not in ("hadamard", "softmax"):
        raise ValueError(f'{where} must be an object whose "kind" is "hadamard" or "softmax"')
    arguments = {key: value for key, value in entry.items() if key != "kind"}
    known = {"ranks", *_DEFAULTS} if entry["kind"] == "hadamard" else set()
    for key in arguments:
        if key not in known:
            raise ValueError(f"{where}: {key!r} is not a key this version knows for this kind of block")
    if entry["kind"] == "softmax":
        return None
    ranks = arguments.get("ranks")
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):
        raise ValueError(f"{where}: 'ranks' must be an array of 1 to 4 integers")
    for key, default in _DEFAULTS.items():
        value = arguments.setdefault(key, default)
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
            raise ValueError(f"{where}: {key!r} is {json.dumps(value)}, wanted something like {json.dumps(default)}")
    return arguments


def read_config(folder: os.PathLike) -> List[Block]:
    """What attention each block has."""
    file = Path(folder) / CONFIG
    try:
        root = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(root, dict) or root.get("_class_name") != _CLASS:
        raise ValueError(f'{file}: "_class_name" must be "{_CLASS}"')
    if root.get("format_version", _VERSION) != _VERSION:
        raise ValueError(f"{file}: 'format_version' is {root['format_version']}, and this version reads {_VERSION}")
    blocks = root.get("blocks")
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"{file}: 'blocks' must be an array of blocks")
    if root.get("num_layers", len(blocks)) != len(blocks):
        raise ValueError(f"{file}: 'num_layers' is {root['num_layers']}, and 'blocks' has {len(blocks)} entries")
    return [_block(f"{file}: blocks[{i}]", entry) for i, entry in enumerate(blocks)]


def read(folder: os.PathLike) -> Tuple[List[Block], Dict[str, torch.Tensor]]:
    """The blocks, and all tensors by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    blocks, file = read_config(folder), Path(folder) / WEIGHTS
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: it holds the feature maps that {CONFIG} tells of")
    try:
        return blocks, load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def write(folder: os.PathLike, blocks: Sequence[Block], tensors: Mapping[str, torch.Tensor]) -> None:
    """Both files; each appears under its name when it is whole, the config last."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "_class_name": _CLASS,
        "format_version": _VERSION,
        "num_layers": len(blocks),
        "blocks": [{"kind": "softmax"} if block is None else {"kind": "hadamard", **block} for block in blocks],
    }
    (folder / CONFIG).unlink(missing_ok=True)  # an older config does not belong to the new weights
    partial = folder / (WEIGHTS + ".partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o666 & ~umask)  # safetensors writes for its owner alone
    partial.replace(folder / WEIGHTS)
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(config, indent=2) + "\n")
    partial.replace(folder / CONFIG)
