"""U-Net, with batch normalization behind each 3x3 convolution.

Ronneberger, Fischer and Brox 2015, "U-Net", figure 1: four levels of two 3x3 convolutions and a
2x2 maximum, two at the bottom, and up again by transposed convolutions, beside whose output the
level's own is put. Convolutions are padded, so that no edges are cut off.
"""

import torch
from torch import nn

__all__ = ["unet"]


class UNet(nn.Module):
    def __init__(self, classes, widths):
        super().__init__()
        self.down = nn.ModuleList()
        channels = 3
        for width in widths:
            self.down.append(_two(channels, width))
            channels = width
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up.append(nn.ConvTranspose2d(channels, width, 2, 2))
            self.join.append(_two(2 * width, width))
            channels = width
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        levels = []
        for level in self.down[:-1]:
            x = level(x)
            levels.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([levels.pop(), up(x)], 1))
        return self.last(x)


def _two(channels, width):
    layers = []
    for each in (channels, width):
        layers += [
            nn.Conv2d(each, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]  # fmt: skip
    return nn.Sequential(*layers)


def unet(classes=2, widths=(64, 128, 256, 512, 1024)):
    return UNet(classes, widths)
