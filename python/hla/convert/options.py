"""What a conversion can be told, as a dataclass and as the command line."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional, Sequence

from .candidates import parse

STAGES = ("encode", "record", "distil", "choose", "tune", "report")
TRAINED = ("maps", "lora", "attention", "all")


@dataclass
class Options:
    """The defaults suit a few hundred clips or more, and one GPU."""

    model: Path  # a directory in the Diffusers layout
    clips: Path  # a folder of videos and captions, or of clips that `encode` wrote
    output: Optional[Path] = None  # MODEL/hla
    work: Optional[Path] = None  # out/convert/NAME
    stages: Sequence[str] = STAGES
    device: str = ""  # cuda where there is one
    seed: int = 0
    # clips
    width: int = 0  # 0: what the model's model_index.json names, or 832 x 480, 81 frames, 16 a second
    height: int = 0
    frames: int = 0
    fps: int = 0
    # records and maps
    candidates: Sequence[str] = ("8x8", "8x16", "16x16", "16x32", "32x32")
    records: int = 64
    queries: int = 1024
    distil_steps: int = 400
    distil_batch: int = 4
    distil_rate: float = 4e-3
    # choice
    budget: float = 0.125
    probes: int = 16
    # tuning
    train: str = "attention"
    lora_rank: int = 16
    tune_steps: int = 2000
    batch: int = 16
    tune_rate: float = 3e-4
    compile: bool = False
    save_seconds: float = 120.0
    # report
    samples: int = 4
    sampling_steps: int = 0  # 0: the model's own
    guidance: float = 0.0

    def __post_init__(self):
        self.model, self.clips = Path(self.model), Path(self.clips)
        self.output = Path(self.output or self.model / "hla")
        self.work = Path(self.work or Path("out") / "convert" / self.model.resolve().name)
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {least} or more")
        if not 0 < self.budget <= 1:
            raise ValueError(f"--budget is {self.budget}, wanted a share of softmax attention's operations, 0 to 1")
        for name in self.candidates:
            if parse(name) is None:
                raise ValueError("candidate 'softmax' is always there: it needs no maps")
        for name, known in (("stages", STAGES), ("train", TRAINED)):
            given = getattr(self, name)
            for value in [given] if isinstance(given, str) else given:
                if value not in known:
                    raise ValueError(f"--{name} is {value!r}, wanted some of {', '.join(known)}")


_LEAST = {
    "records": 8, "queries": 1, "distil_steps": 1, "distil_batch": 1, "probes": 1, "lora_rank": 1, "tune_steps": 1,
    "batch": 1, "samples": 0,
}  # fmt: skip

_HELP = {
    "model": "checkpoint in the Diffusers layout",
    "clips": "folder of videos, each with a caption in a .txt of the same name; or a folder that `encode` wrote",
    "output": "folder that is written (default MODEL/hla)",
    "work": "folder of all that is kept between stages and calls (default out/convert/NAME)",
    "stages": f"some of {' '.join(STAGES)} (default: all, in this order)",
    "device": "cpu or cuda (default: cuda where there is one)",
    "seed": "of maps, noise and order",
    "width": "pixels; a clip is scaled and cropped to fit (default, as for the next three: what the model is made for)",
    "height": "pixels",
    "frames": "taken from each clip, 4 k + 1",
    "fps": "frames a second",
    "candidates": "attention that a block may get beside softmax, e.g. 16x16, 6x6x6-softplus, 16x16-hidden",
    "records": "noised clips on which the teacher's attention is recorded; an eighth of them judge the maps",
    "queries": "tokens of a record whose attention output is kept; keys and values are kept of all",
    "distil_steps": "steps for the maps of a block",
    "distil_batch": "records a step",
    "distil_rate": "highest learning rate of maps while they are fitted",
    "budget": "operations of self-attention, maps included, as a share of softmax attention's",
    "probes": "noised clips of the held-out eighth on which losses are measured",
    "train": "what is tuned: maps alone; with low-rank changes of attn1 and ffn; with attn1; with all weights",
    "lora_rank": "of the low-rank changes",
    "tune_steps": "steps of tuning",
    "batch": "clips a step of tuning",
    "tune_rate": "highest learning rate of weights; maps take three times as much",
    "compile": "torch.compile the blocks while tuning",
    "save_seconds": "time between two states of tuning that are kept",
    "samples": "clips of the report that are sampled with both attentions",
    "sampling_steps": "steps of the sampler for them (default: the model's)",
    "guidance": "guidance for them (default: the model's)",
}


def from_command_line(arguments: Optional[Sequence[str]] = None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m hla.convert",
        description="Converts the softmax self-attention of a Wan model into Hadamard linear attention. "
        "Run it again with the same options to go on after a cut. docs/CONVERSION.md walks through it.",
    )
    for field in fields(Options):
        name, kind, default = field.name, field.type, field.default
        settings: dict = {"help": _HELP[name]}
        if name == "model":
            parser.add_argument(name, **settings)
            continue
        if kind is bool:
            settings["action"] = "store_true"
        elif kind is Path or kind == Optional[Path]:
            settings.update(type=Path, required=kind is Path, metavar="FOLDER")
        else:
            several = kind == Sequence[str]
            settings.update(type=str if several else kind, default=default, metavar=name.split("_")[-1].upper())
            if several:
                settings["nargs"] = "+"
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    given: Any = parser.parse_args(arguments)
    try:
        return Options(**vars(given))
    except ValueError as error:
        parser.error(str(error))
