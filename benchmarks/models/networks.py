"""The networks, from their published definitions.

ResNet-18, ResNet-50    He, Zhang, Ren and Sun 2016, "Deep Residual Learning for Image
                        Recognition", table 1: a stem, four stages of residual blocks, a classifier.
                        The stride of a bottleneck is in its 3x3 convolution (which is called v1.5),
                        not in the first 1x1 one (v1): it has the same parameters, and is what most
                        people train. Where extents change, the shortcut is a strided 1x1
                        convolution (option B).
VGG-16                  Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", table 1,
                        configuration D, with batch normalization behind each convolution, and one
                        linear layer behind the mean over positions.
MLP                     Ioffe and Szegedy 2015, "Batch Normalization", section 4.1: three hidden
                        layers of 100 sigmoids between 28x28 inputs and 10 classes.
GIN                     Xu, Hu, Leskovec and Jegelka 2019, "How Powerful are Graph Neural
                        Networks?", section 7: each layer sums over neighbours and runs a perceptron
                        of two normalized layers; on a random graph.

Layers of batch normalization are PyTorch's; `bnext.torch.convert` makes them bnext's.
"""

import torch
from torch import nn

__all__ = ["GIN", "MLP", "ResNet", "resnet18", "resnet50", "vgg16"]

WIDTHS = (64, 128, 256, 512)  # of the four stages


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution of fewer channels between two 1x1 ones."""

    expansion = 4

    def __init__(self, channels, width, stride):
        super().__init__()
        wide = self.expansion * width
        self.conv1, self.bn1 = _convolution(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, wide, 1), nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(channels, wide, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of `depths` blocks in its four stages, for images of 3 channels."""

    def __init__(self, block, depths, classes=1000):
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, WIDTHS[0], 7, 2),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages, channels = [], WIDTHS[0]
        for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            for index in range(depth):
                stride = 2 if index == 0 and number > 0 else 1
                stages.append(block(channels, width, stride))
                channels = block.expansion * width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))


class MLP(nn.Sequential):
    """A perceptron with three hidden layers, each normalized before its sigmoid."""

    def __init__(self, inputs=784, width=100, classes=10):
        layers = []
        for size in (inputs, width, width):
            # No bias: the normalization would take it away again, and has one of its own.
            layers += [nn.Linear(size, width, bias=False), nn.BatchNorm1d(width), nn.Sigmoid()]
        super().__init__(*layers, nn.Linear(width, classes))


class GIN(nn.Module):
    """A graph network on the nodes of one graph: (nodes, width) to (nodes, classes)."""

    def __init__(self, nodes=2000, edges=8000, width=64, depth=3, classes=10):
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            halves = [(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(2)]
            self.layers.append(nn.Sequential(*halves[0], *halves[1]))
        self.classifier = nn.Linear(width, classes)
        for end in ("sources", "targets"):
            self.register_buffer(end, torch.randint(nodes, (edges,)))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.index_add(0, self.targets, x[self.sources]))
        return self.classifier(x)


def resnet18(classes=1000):
    return ResNet(Basic, (2, 2, 2, 2), classes)


def resnet50(classes=1000):
    return ResNet(Bottleneck, (3, 4, 6, 3), classes)


def vgg16(classes=1000):
    layers, channels = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def _convolution(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(channels, outputs, stride):
    if stride == 1 and channels == outputs:
        return nn.Identity()
    return nn.Sequential(_convolution(channels, outputs, 1, stride), nn.BatchNorm2d(outputs))


BUILDERS = {"resnet18": resnet18, "resnet50": resnet50, "mlp": MLP}
