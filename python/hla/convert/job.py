"""One conversion under way: its folder, the settings its files were made with, its log."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict

import torch

from .options import Options


class Job:
    """options: of the call. Everything that a stage keeps lies in a folder of its own below options.work."""

    def __init__(self, options: Options):
        self.options = options
        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.started = self.reported = time.monotonic()
        options.work.mkdir(parents=True, exist_ok=True)

    def folder(self, stage: str) -> Path:
        return self.options.work / stage

    def claim(self, stage: str, after: str = "", **settings: Any) -> Path:
        """The folder of a stage, made for it. Files that are there already count as this stage's work only if they were
        made with the same settings, after the same work of the stage before."""
        folder = self.folder(stage)
        if after:
            settings["after"] = {after: self.fingerprint(after)}
        settings = json.loads(json.dumps(settings))
        file = folder / "settings.json"
        if file.exists():
            found = json.loads(file.read_text())
            for name in {**found, **settings}:
                if found.get(name) != settings.get(name):
                    raise ValueError(
                        f"{folder} was made with {name} {found.get(name)}, and this call has {settings.get(name)}: "
                        "remove it, or name another --work"
                    )
        else:
            folder.mkdir(exist_ok=True)
            write_json(file, settings)
        return folder

    def fingerprint(self, stage: str) -> str:
        """Of the settings of a stage and of all before it."""
        file = self.folder(stage) / "settings.json"
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist: run the stage {stage} first")
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]

    def log(self, text: str) -> None:
        line = f"{time.monotonic() - self.started:8.1f} s  {text}"
        print(line, file=sys.stderr, flush=True)
        with (self.options.work / "log.txt").open("a") as log:
            log.write(line + "\n")
        self.reported = time.monotonic()

    def progress(self, what: str, done: int, total: int, text: str = "") -> None:
        """A line now and then, and at the end."""
        if done == total or time.monotonic() - self.reported > 10:
            self.log(f"{what} {done} of {total}{', ' if text else ''}{text}")


def generator(*seeds: int) -> torch.Generator:
    """Random numbers of the CPU, the same on every device, that depend on all seeds: a step that is done again after a
    cut draws the same."""
    digest = hashlib.sha256(" ".join(map(str, seeds)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def write_json(file: Path, content: Any) -> None:
    replace(file, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))


def replace(file: Path, write) -> None:
    """A file appears under its name when it is whole."""
    partial = file.with_name(file.name + ".partial")
    write(partial)
    os.replace(partial, file)


def read_tensors(file: Path) -> Dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; remove it to have it made again") from None


def write_tensors(file: Path, tensors: Dict[str, torch.Tensor], **metadata: str) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace(file, lambda partial: save_file(tensors, partial, metadata or None))
