"""The world that hla-tiny is trained on: one or two emoji sprites that move over a background, and a sentence about it.

A scene is a row of numbers (what, how it moves, where, how large, which background). From it follow the clip,
rendered on the device, and its captions. A tenth of all (object, motion, background) triples is held out: never
trained on.

Clips are [batch, 3, frames, size, size] in [-1, 1].
"""

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SIZE, FRAMES, FPS = 128, 33, 16

OBJECTS = [
    ("rocket", 0x1F680), ("car", 0x1F697), ("tractor", 0x1F69C), ("helicopter", 0x1F681), ("sailboat", 0x26F5),
    ("bicycle", 0x1F6B2), ("train", 0x1F682), ("balloon", 0x1F388), ("guitar", 0x1F3B8), ("trumpet", 0x1F3BA),
    ("drum", 0x1F941), ("umbrella", 0x2602), ("key", 0x1F511), ("hammer", 0x1F528), ("book", 0x1F4D5),
    ("pencil", 0x270F), ("clock", 0x23F0), ("crown", 0x1F451), ("hat", 0x1F3A9), ("shoe", 0x1F45F),
    ("cat", 0x1F431), ("dog", 0x1F436), ("fox", 0x1F98A), ("panda", 0x1F43C), ("frog", 0x1F438),
    ("penguin", 0x1F427), ("owl", 0x1F989), ("fish", 0x1F41F), ("whale", 0x1F433), ("octopus", 0x1F419),
    ("crab", 0x1F980), ("butterfly", 0x1F98B), ("snail", 0x1F40C), ("turtle", 0x1F422), ("elephant", 0x1F418),
    ("apple", 0x1F34E), ("banana", 0x1F34C), ("carrot", 0x1F955), ("mushroom", 0x1F344), ("pizza", 0x1F355),
    ("hamburger", 0x1F354), ("cake", 0x1F382), ("tree", 0x1F332), ("cactus", 0x1F335), ("snowman", 0x26C4),
    ("robot", 0x1F916), ("ghost", 0x1F47B), ("house", 0x1F3E0),
]  # fmt: skip

# motion: direction (x right, y down) or None, and the verbs that say it
MOTIONS = [
    ("right", (1, 0), ["flies right", "moves right", "moves to the right", "slides right"]),
    ("left", (-1, 0), ["flies left", "moves left", "moves to the left", "slides left"]),
    ("up", (0, -1), ["flies up", "moves up", "floats up", "rises"]),
    ("down", (0, 1), ["falls down", "moves down", "sinks", "flies down"]),
    ("up right", (1, -1), ["flies up and to the right", "moves to the top right", "moves up right"]),
    ("up left", (-1, -1), ["flies up and to the left", "moves to the top left", "moves up left"]),
    ("down right", (1, 1), ["flies down and to the right", "moves to the bottom right", "moves down right"]),
    ("down left", (-1, 1), ["flies down and to the left", "moves to the bottom left", "moves down left"]),
    ("spin", None, ["spins", "rotates", "turns around"]),
    ("bounce", None, ["bounces", "jumps up and down", "hops"]),
    ("grow", None, ["grows", "gets bigger", "becomes larger"]),
    ("shrink", None, ["shrinks", "gets smaller", "becomes smaller"]),
]
SPIN, BOUNCE, GROW, SHRINK = 8, 9, 10, 11
PARTICIPLE = {
    "flies": "flying", "moves": "moving", "slides": "sliding", "floats": "floating", "rises": "rising",
    "falls": "falling", "sinks": "sinking", "spins": "spinning", "rotates": "rotating", "turns": "turning",
    "bounces": "bouncing", "jumps": "jumping", "hops": "hopping", "grows": "growing", "gets": "getting",
    "becomes": "becoming", "shrinks": "shrinking",
}  # fmt: skip

# background: phrase, colour at the top, colour at the bottom
BACKGROUNDS = [
    ("a blue background", (0.20, 0.45, 0.90), (0.16, 0.38, 0.82)),
    ("a green background", (0.25, 0.70, 0.35), (0.20, 0.62, 0.30)),
    ("a yellow background", (0.98, 0.86, 0.35), (0.95, 0.80, 0.25)),
    ("a pink background", (0.98, 0.68, 0.80), (0.95, 0.60, 0.74)),
    ("a white background", (0.97, 0.97, 0.97), (0.90, 0.90, 0.90)),
    ("a starry night", (0.03, 0.03, 0.14), (0.10, 0.08, 0.28)),
    ("a sunset", (0.45, 0.20, 0.50), (0.98, 0.60, 0.25)),
    ("a meadow", (0.60, 0.85, 0.98), (0.80, 0.93, 0.99)),
]
NIGHT, MEADOW = 5, 7


@dataclass
class Scenes:
    """A batch of scenes; slot 0 is the only object or the left one, slot 1 the right one or -1."""

    object: torch.Tensor  # [n, 2] int64
    motion: torch.Tensor  # [n, 2] int64
    background: torch.Tensor  # [n] int64
    centre: torch.Tensor  # [n, 2, 2] pixels, x then y
    side: torch.Tensor  # [n, 2] pixels
    reach: torch.Tensor  # [n, 2, 2] pixels travelled on x and y by a moving object
    phase: torch.Tensor  # [n, 2] 0..1

    def __len__(self) -> int:
        return len(self.background)

    def __getitem__(self, rows) -> "Scenes":
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})

    def to(self, device) -> "Scenes":
        return Scenes(**{name: value.to(device) for name, value in vars(self).items()})


def held_out(obj: torch.Tensor, motion: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """True for the tenth of all triples that training never sees."""
    key = (obj * len(MOTIONS) + motion) * len(BACKGROUNDS) + background
    return ((key * 2654435761) % (1 << 32) >> 7) % 10 == 0


def sample_scenes(n: int, generator: torch.Generator, test: bool = False, pairs: float = 0.25) -> Scenes:
    """n random scenes, a share `pairs` of them with two objects; test takes held-out triples only, training none."""
    rows, have = [], 0
    while have < n:
        m = 4 * n + 64

        def integers(high, *shape):
            return torch.randint(high, (m, *shape), generator=generator)

        def uniform(low, high, *shape):
            return low + (high - low) * torch.rand(m, *shape, generator=generator)

        two = torch.rand(m, generator=generator) < pairs
        obj, motion, background = integers(len(OBJECTS), 2), integers(len(MOTIONS), 2), integers(len(BACKGROUNDS))
        out = held_out(obj, motion, background[:, None])
        out[:, 1] = torch.where(two, out[:, 1], out[:, 0])
        distinct = (obj[:, 0] != obj[:, 1]) | ~two
        keep = (out.all(1) if test else ~out.any(1)) & distinct
        obj[~two, 1] = -1
        single = torch.stack([uniform(54, 74), uniform(54, 74)], -1)
        left = torch.stack([uniform(31, 37), uniform(56, 72)], -1)
        right = torch.stack([uniform(91, 97), uniform(56, 72)], -1)
        centre = torch.stack([torch.where(two[:, None], left, single), right], 1)
        side = torch.where(two[:, None], uniform(38, 46, 2), uniform(48, 60, 2))
        reach = torch.where(
            two[:, None, None],
            torch.stack([uniform(20, 24, 2), uniform(48, 60, 2)], -1),
            torch.stack([uniform(56, 68, 2), uniform(56, 68, 2)], -1),
        )
        rows.append(Scenes(obj, motion, background, centre, side, reach, uniform(0, 1, 2))[keep.nonzero()[:, 0]])
        have += len(rows[-1])
    parts = [vars(r) for r in rows]
    return Scenes(**{name: torch.cat([p[name] for p in parts])[:n] for name in parts[0]})


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def captions(scenes: Scenes, rng: random.Random) -> list[str]:
    """One sentence a scene, its wording drawn at random; some begin with a capital, some end with a full stop."""
    sentences = _plain_captions(scenes, rng)
    sentences = [s[0].upper() + s[1:] if rng.random() < 0.2 else s for s in sentences]
    return [s + "." if rng.random() < 0.2 else s for s in sentences]


def _plain_captions(scenes: Scenes, rng: random.Random) -> list[str]:
    sentences = []
    for objects, motions, background in zip(
        scenes.object.tolist(), scenes.motion.tolist(), scenes.background.tolist(), strict=True
    ):
        place = BACKGROUNDS[background][0]
        nouns = [_article(OBJECTS[o][0]) for o in objects if o >= 0]
        verbs = [rng.choice(MOTIONS[m][2]) for m in motions]
        if len(nouns) == 2:
            left, right = rng.choice([("", ""), (" on the left", " on the right")])
            what = f"{nouns[0]}{left} {verbs[0]} and {nouns[1]}{right} {verbs[1]}"
            sentences.append(
                rng.choice([f"{what} over {place}", f"over {place}, {what}", f"{what} in front of {place}"])
            )
            continue
        noun, verb = nouns[0], verbs[0]
        first, _, rest = verb.partition(" ")
        doing = f"{PARTICIPLE[first]} {rest}".strip()
        sentences.append(
            rng.choice(
                [
                    f"{noun} {verb} over {place}",
                    f"{noun} {verb} over {place}",
                    f"{noun} {doing} over {place}",
                    f"{noun} is {doing} in front of {place}",
                    f"over {place}, {noun} {verb}",
                    f"{place} with {noun} that {verb}",
                    f"{noun} that {verb} over {place}",
                ]
            )
        )
    return sentences


def _background_images(device) -> torch.Tensor:
    """[8, 3, SIZE, SIZE] in 0..1."""
    images = torch.empty(len(BACKGROUNDS), 3, SIZE, SIZE)
    down = torch.linspace(0, 1, SIZE)[None, :, None]
    for image, (_, top, bottom) in zip(images, BACKGROUNDS, strict=True):
        top, bottom = torch.tensor(top)[:, None, None], torch.tensor(bottom)[:, None, None]
        image.copy_((top + (bottom - top) * down).expand(3, SIZE, SIZE))
    rng = random.Random(7)
    for _ in range(36):
        x, y, bright = rng.randrange(2, SIZE - 3), rng.randrange(2, SIZE - 3), rng.uniform(0.5, 1.0)
        images[NIGHT, :, y : y + 2, x : x + 2] = bright
    hills = SIZE * 0.66 + 5 * torch.sin(torch.arange(SIZE) * (2 * math.pi / SIZE) * 1.5)
    grass = torch.arange(SIZE)[:, None] > hills[None, :]
    images[MEADOW] = torch.where(grass, torch.tensor([0.36, 0.68, 0.25])[:, None, None], images[MEADOW])
    return images.to(device)


class Renderer:
    """Draws scenes on a device. sprites: [objects, s, s, 4] uint8, premultiplied (sprites.py)."""

    def __init__(self, sprites, device):
        self.sprites = torch.as_tensor(sprites, device=device).permute(0, 3, 1, 2).float() / 255
        self.backgrounds = _background_images(device)
        self.directions = torch.tensor([list(d) if d else [0, 0] for _, d, _ in MOTIONS], device=device).float()
        axis = torch.arange(SIZE, device=device) + 0.5
        self.pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # [y, x, (x, y)]

    def _path(self, scenes: Scenes, slot: int, time: torch.Tensor):
        """Centre [n, T, 2], side [n, T] and angle [n, T] of a slot's object at times [T] in 0..1."""
        motion, phase = scenes.motion[:, slot, None], scenes.phase[:, slot, None]
        direction = self.directions[scenes.motion[:, slot]]
        diagonal = torch.where(direction.abs().sum(-1, keepdim=True) > 1, 0.8, 1.0)
        travel = direction * scenes.reach[:, slot] * diagonal
        centre = scenes.centre[:, slot, None] + travel[:, None] * (time[None, :, None] - 0.5)
        hop = (torch.pi * (2 * time[None] + phase)).sin().abs()
        centre[..., 1] += torch.where(motion == BOUNCE, 22 - 44 * hop, 0.0)
        growth = torch.where(motion == GROW, 0.45 + 0.75 * time, torch.where(motion == SHRINK, 1.2 - 0.75 * time, 1.0))
        side = scenes.side[:, slot, None] * growth
        angle = torch.where(motion == SPIN, 2 * torch.pi * 1.25 * time[None], 0.0)
        return centre, side, angle

    def __call__(self, scenes: Scenes, frames=None):
        """Clips [n, 3, T, SIZE, SIZE] in [-1, 1] and the objects' coverage [n, 1, T, SIZE, SIZE] in 0..1; frames: which
        frame numbers of the clip to draw (default all)."""
        scenes = scenes.to(self.pixels.device)
        frames = torch.arange(FRAMES) if frames is None else torch.as_tensor(frames)
        time = frames.to(self.pixels.device).float() / (FRAMES - 1)
        n, steps = len(scenes), len(time)
        image = self.backgrounds[scenes.background][:, None].expand(n, steps, 3, SIZE, SIZE).flatten(0, 1)
        cover = torch.zeros(n * steps, 1, SIZE, SIZE, device=image.device)
        for slot in range(2):
            present = scenes.object[:, slot] >= 0
            centre, side, angle = self._path(scenes, slot, time)
            offset = (self.pixels - centre[:, :, None, None]) * (2 / side[:, :, None, None, None])
            cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
            x, y = offset.unbind(-1)
            grid = torch.stack([cos * x + sin * y, cos * y - sin * x], -1).flatten(0, 1)
            sprite = self.sprites[scenes.object[:, slot].clamp(min=0)] * present[:, None, None, None]
            sprite = sprite[:, None].expand(n, steps, *sprite.shape[1:]).flatten(0, 1)
            drawn = F.grid_sample(sprite, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            colour, alpha = drawn.split([3, 1], 1)
            image = colour + image * (1 - alpha)
            cover = alpha + cover * (1 - alpha)

        def arrange(t):
            return t.unflatten(0, (n, steps)).transpose(1, 2)

        return arrange(image) * 2 - 1, arrange(cover)
