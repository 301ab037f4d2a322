"""Small networks as people write them, for conversion tests: blocks of the families, few channels.

Each has PyTorch's layers and a note of how many of them are followed by an activation, an addition,
or both, in the forward of one module.
"""

from functools import partial

from .support import torch

nn, functional = torch.nn, torch.nn.functional
IMAGE, POINTS, VECTOR = (6, 3, 10, 10), (5, 3, 14), (12, 10)


class Basic(nn.Module):
    """As torchvision's BasicBlock: one ReLU module for both, in place; `+=`."""

    def __init__(self, channels, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.stride = stride

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """A ResNet's stem and blocks."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Basic(8, 8), Basic(8, 12, 2))
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Bottleneck(nn.Module):
    def __init__(self, channels=3, width=6):
        super().__init__()
        sizes = ((channels, width, 1), (width, width, 3), (width, 2 * width, 1))
        for number, (inputs, outputs, size) in enumerate(sizes, 1):
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, size, padding=size // 2))
            setattr(self, f"bn{number}", nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(channels, 2 * width, 1)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ConvNormActivation(nn.Sequential):
    """As torchvision's: a subclass of Sequential."""

    def __init__(self, inputs, outputs, size=3, stride=1, groups=1, activation=nn.ReLU):
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs), activation(inplace=True),
        )  # fmt: skip
        self.out_channels = outputs


class SqueezeExcitation(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        scale = self.fc2(functional.relu(self.fc1(functional.adaptive_avg_pool2d(x, 1))))
        return torch.sigmoid(scale) * x


class InvertedResidual(nn.Module):
    """As MobileNet's and EfficientNet's: the last layer of the branch has no activation."""

    def __init__(self, channels, wide, activation=nn.ReLU6, excitation=False):
        super().__init__()
        block = partial(ConvNormActivation, activation=activation)
        layers = [block(channels, wide, 1), block(wide, wide, 3, groups=wide)]
        if excitation:
            layers.append(SqueezeExcitation(wide))
        layers += [nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = True

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class DenseLayer(nn.Module):
    """As torchvision's: a list of tensors, or one; layers in a method; drop-out of the mode."""

    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, growth, 3, 1, 1, bias=False)
        self.drop_rate, self.memory_efficient = 0.0, False

    def bn_function(self, inputs):
        return self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))

    def forward(self, input):
        previous = [input] if isinstance(input, torch.Tensor) else input
        if self.memory_efficient:
            raise NotImplementedError
        features = self.conv2(self.relu2(self.norm2(self.bn_function(previous))))
        if self.drop_rate > 0:
            features = functional.dropout(features, self.drop_rate, self.training)
        return features


class DenseBlock(nn.ModuleDict):
    def __init__(self):
        super().__init__()
        for number in range(3):
            self.add_module(f"layer{number}", DenseLayer(3 + 4 * number, 4))

    def forward(self, x):
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class Preactivated(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, 1, 1)

    def forward(self, x):
        y = self.conv1(functional.leaky_relu(self.bn1(x), 0.1))
        y = self.conv2(functional.gelu(self.bn2(y), approximate="tanh"))
        return x + y


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 12, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(8), nn.BatchNorm1d(12), nn.BatchNorm1d(6)
        self.fc1, self.fc2 = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = torch.max(x, 2)[0]
        return self.fc2(functional.relu(self.bn3(self.fc1(x))))


class CrossStage(nn.Module):
    """As YOLO's: SiLU by name, layers of layers, chunks."""

    class Conv(nn.Module):
        default_act = nn.SiLU()

        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(outputs)
            self.act = self.default_act

        def forward(self, x):
            return self.act(self.bn(self.conv(x)))

    def __init__(self):
        super().__init__()
        self.cv1, self.cv2 = self.Conv(3, 8), self.Conv(12, 6)
        self.m = nn.ModuleList([self.Conv(4, 4)])

    def forward(self, x):
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(m(parts[-1]) for m in self.m)
        return self.cv2(torch.cat(parts, 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = self.block(3, 6), self.block(9, 4)

    @staticmethod
    def block(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ELU(),
        )  # fmt: skip

    def forward(self, x):
        y = functional.interpolate(functional.max_pool2d(self.down(x), 2), scale_factor=2.0)
        return self.up(torch.cat([x, y], 1))


def perceptron():
    layers = []
    for inputs in (10, 8, 8):
        layers += [nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def vgg():
    layers = []
    for inputs, outputs in ((3, 6), (6, 6), (6, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(
        nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    )


# name: (how to build it, shape of the input, layers that are fused, layers that are not)
ARCHITECTURES = {
    "residual": (Residual, IMAGE, 5, 1),
    "bottleneck": (Bottleneck, IMAGE, 3, 0),
    "mobilenet": (
        lambda: nn.Sequential(ConvNormActivation(3, 4), InvertedResidual(4, 8)),
        IMAGE,
        3,
        1,
    ),
    "hardswish": (partial(InvertedResidual, 3, 8, nn.Hardswish, True), IMAGE, 2, 1),
    "efficientnet": (partial(InvertedResidual, 3, 8, nn.SiLU, True), IMAGE, 2, 1),
    "dense": (DenseBlock, IMAGE, 6, 0),
    "preactivated": (Preactivated, IMAGE, 2, 0),
    "pointnet": (PointNet, POINTS, 2, 1),
    "crossstage": (CrossStage, IMAGE, 3, 0),
    "unet": (UNet, IMAGE, 2, 2),
    "perceptron": (perceptron, VECTOR, 3, 0),
    "vgg": (vgg, IMAGE, 3, 0),
}
