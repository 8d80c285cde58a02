"""Golden trajectories of diffusers' UniPCMultistepScheduler over a toy velocity; read by tests/sampler.

Run from the repository's root:  python tests/golden/make_sampler.py
One file a shift: for each number of steps n the tensors n.sigmas, n.timesteps, n.start and n.path (x after each step).
"""
import pathlib

import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "sampler"
STEPS = (1, 2, 4, 9, 10, 50)  # 9: a timestep falls on a whole number exactly
SHIFTS = (1.0, 3.0, 5.0, 8.0)
COUNT = 13  # not a multiple of anything


def velocity(x, t):
    return 0.7 * torch.tanh(x) + 0.001 * t * x - 0.2


def trajectory(n, shift, order):
    scheduler = UniPCMultistepScheduler(
        solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(n)
    start = torch.randn(1, COUNT, generator=torch.Generator().manual_seed(7 + n))
    x, path = start, []
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(t)), t, x, return_dict=False)[0]
        path.append(x[0])
    return {
        f"{n}.sigmas": scheduler.sigmas.float(),
        f"{n}.timesteps": scheduler.timesteps.float(),
        f"{n}.start": start[0].contiguous(),
        f"{n}.path": torch.stack(path),
    }


def main():
    OUT.mkdir(exist_ok=True)
    for order in (1, 2):
        for shift in SHIFTS:
            tensors = {}
            for n in STEPS:
                tensors.update(trajectory(n, shift, order))
            save_file(tensors, OUT / f"order{order}_shift{shift:g}.safetensors")


if __name__ == "__main__":
    main()
