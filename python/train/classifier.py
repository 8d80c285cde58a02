"""The judge of generated clips: a small network that reads object, motion and background off real ones."""

import torch
import torch.nn.functional as F
import world
from stage import DEVICE, autocast
from torch import nn

FEATURES = 128


class Classifier(nn.Module):
    """Clips [n, 3, 9, 64, 64] -> scores of (object, motion) of slot 0, of slot 1 (last class: none), background;
    features."""

    def __init__(self):
        super().__init__()

        def layer(a, b, stride):
            return nn.Sequential(nn.Conv3d(a, b, 3, stride, 1, bias=False), nn.BatchNorm3d(b), nn.ReLU())

        self.body = nn.Sequential(
            layer(3, 32, (1, 2, 2)), layer(32, 64, 1), layer(64, 96, (1, 2, 2)), layer(96, 128, (2, 2, 2)),
            layer(128, 192, (2, 2, 2)), nn.Flatten(), nn.LazyLinear(FEATURES), nn.ReLU(),
        )  # fmt: skip
        sizes = [
            len(world.OBJECTS),
            len(world.MOTIONS),
            len(world.OBJECTS) + 1,
            len(world.MOTIONS) + 1,
            len(world.BACKGROUNDS),
        ]
        self.heads = nn.ModuleList(nn.Linear(FEATURES, n) for n in sizes)
        self(torch.zeros(2, 3, 9, 64, 64))

    def forward(self, x):
        features = self.body(x)
        return [head(features) for head in self.heads], features.float()


def classifier_input(clips, every: int = 4):
    """[n, 3, 33, 128, 128] -> [n, 3, 9, 64, 64]; every 1 where the frames were picked already."""
    return F.avg_pool3d(clips[:, :, ::every], (1, 2, 2))


def labels(scenes: world.Scenes, device):
    """One target a head."""
    none = scenes.object[:, 1] < 0
    second = torch.where(none, len(world.OBJECTS), scenes.object[:, 1])
    second_motion = torch.where(none, len(world.MOTIONS), scenes.motion[:, 1])
    targets = [scenes.object[:, 0], scenes.motion[:, 0], second, second_motion, scenes.background]
    return [t.to(device) for t in targets]


@torch.no_grad()
def read(classifier, inputs, scenes):
    """Accuracy on object, motion and background in percent, and the features. An object or motion counts as right
    when it is right in every slot that the caption names, and the second slot is empty where it names none."""
    correct, features = [], []
    for i in range(0, len(inputs), 250):
        with autocast():
            scores, f = classifier(inputs[i : i + 250])
        guess = [s.argmax(1) for s in scores]
        right = [g == y for g, y in zip(guess, labels(scenes[slice(i, i + 250)], DEVICE), strict=True)]
        correct.append(torch.stack([right[0] & right[2], right[1] & right[3], right[4]], 1))
        features.append(f)
    accuracy = 100 * torch.cat(correct).float().mean(0)
    return dict(zip(("object", "motion", "background"), accuracy.tolist(), strict=True)), torch.cat(features)


def frechet(a, b) -> float:
    """Frechet distance of two sets of features [n, d] seen as Gaussians."""
    a, b = a.double(), b.double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.eigvals(ca @ cb).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * roots).item()
