"""MobileNetV3-large, from its published definition.

Howard et al. 2019, "Searching for MobileNetV3", table 1: bottlenecks of a 1x1 convolution that
widens, a depthwise one, squeeze and excitation (a mean over positions, two 1x1 convolutions, a
gate) where the table says so, and a 1x1 convolution that narrows, each normalized; ReLU or
hard-swish.
"""

from torch import nn

__all__ = ["mobilenet_v3_large"]

# Kernel, width inside, channels, squeeze and excitation, hard-swish, stride: the table's rows.
ROWS = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        quarter = channels / 4  # in multiples of 8, and not less than 0.9 of it
        narrow = max(int(quarter + 4) // 8 * 8, 8)
        narrow += 8 * (narrow < 0.9 * quarter)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, narrow, 1), nn.ReLU(inplace=True),
            nn.Conv2d(narrow, channels, 1), nn.Hardsigmoid(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        return x * self.gate(x)


class Bottleneck(nn.Module):
    """A row of the table."""

    def __init__(self, channels, row):
        super().__init__()
        kernel, width, out, gated, hard, stride = row
        layers = []
        if width != channels:
            layers += _convolution(channels, width, 1, hard=hard)
        layers += _convolution(width, width, kernel, stride, groups=width, hard=hard)
        if gated:
            layers.append(Gate(width))
        layers += _convolution(width, out, 1, hard=None)
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == out

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.adds else y


def _convolution(channels, out, kernel, stride=1, groups=1, hard=None):
    layers = [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=0.001, momentum=0.01),
    ]
    if hard is not None:
        layers.append(nn.Hardswish(inplace=True) if hard else nn.ReLU(inplace=True))
    return layers


def mobilenet_v3_large(classes=1000):
    """Without drop-out."""
    layers, channels = _convolution(3, 16, 3, 2, hard=True), 16
    for row in ROWS:
        layers.append(Bottleneck(channels, row))
        channels = row[2]
    layers += _convolution(channels, 960, 1, hard=True)
    layers += [
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1280), nn.Hardswish(inplace=True),
        nn.Linear(1280, classes),
    ]  # fmt: skip
    return nn.Sequential(*layers)
