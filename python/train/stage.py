"""What every stage of training stands on: the device, a budget of seconds over resumable slices, files that stages
wait for."""

import gc
import time
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def setup():
    """Faster arithmetic where it is exact enough, and room for one compilation a shape."""
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64


def wait_for(args, name: str) -> Path:
    """The path of a file of --work, once the stage before has written it; ends the process when the slice is over
    first."""
    path = Path(args.work) / name
    while not path.exists():
        if args.until and time.time() > args.until:
            print(f"{args.stage}: slice over while waiting for {name}")
            raise SystemExit
        time.sleep(0.2)
    return path


def release():
    """Gives back what compiling took: other stages run on the same device meanwhile."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def save_final(state, path: Path):
    """Under its name only when whole: other stages wait for it."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16)


class Stage:
    """Time budget, log and checkpoint of one stage. `fraction` runs from 0 to 1 over all slices of it."""

    def __init__(self, args, name: str, save_every: float = 120.0):
        self.path = Path(args.work) / f"{name}.pt"
        self.log_path = Path(args.work) / f"{name}.log"
        self.budget, self.smoke, self.save_every, self.until = args.seconds, args.smoke, save_every, args.until
        self.spent, self.step, self.started, self.saved = 0.0, 0, time.monotonic(), time.monotonic()
        self.objects: dict = {}

    def resume(self, **objects):
        """Objects with state_dict / load_state_dict that make up the state."""
        self.objects = objects
        if self.path.exists():
            state = torch.load(self.path, map_location=DEVICE, weights_only=True)
            self.spent, self.step = state["spent"], state["step"]
            for name, thing in objects.items():
                thing.load_state_dict(state[name])
            self.log(f"resumed at step {self.step}, {self.spent:.0f} s spent")
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        return self.step / 3 if self.smoke else self.elapsed / self.budget

    def running(self) -> bool:
        over = self.until and time.time() > self.until
        if over or time.monotonic() - self.saved > self.save_every:
            self.save()
        if over:
            self.log(f"slice over at step {self.step}")
            raise SystemExit
        return self.fraction < 1

    def save(self):
        state = {name: thing.state_dict() for name, thing in self.objects.items()}
        torch.save({**state, "spent": self.elapsed, "step": self.step}, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
        self.saved = time.monotonic()

    def log(self, text: str):
        line = f"{self.path.stem} {self.elapsed:6.0f} s  {text}"
        print(line, flush=True)
        with self.log_path.open("a") as log:
            log.write(line + "\n")
