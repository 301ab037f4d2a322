"""Layers of the forms that other packages write: the code of PyTorch again, frozen layers."""

from .support import torch

nn, functional = torch.nn, torch.nn.functional


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: PyTorch's code again, then two modules."""

    def __init__(self, features, act=None, drop=None):
        super().__init__(features)
        self.drop = drop or nn.Identity()
        self.act = act or nn.LeakyReLU(0.1)

    def forward(self, x):
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        moves = not self.training or self.track_running_stats
        x = functional.batch_norm(
            x, self.running_mean if moves else None, self.running_var if moves else None,
            self.weight, self.bias, by_batch, factor, self.eps,
        )  # fmt: skip
        x = self.drop(x)
        x = self.act(x)
        return x


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d: eps is an attribute."""

    def __init__(self, features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.rand(features) + 0.5)
        self.register_buffer("bias", torch.randn(features))
        self.register_buffer("running_mean", torch.randn(features))
        self.register_buffer("running_var", torch.rand(features) + 0.5)

    def constants(self, eps: float):
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, var = self.running_mean.view(1, -1, 1, 1), self.running_var.view(1, -1, 1, 1)
        scale = weight * (var + eps).rsqrt()
        return scale, bias - mean * scale

    def forward(self, x):
        scale, shift = self.constants(self.eps)
        return x * scale + shift


class FrozenByNumber(Frozen):
    """As DETR's: eps is a number in the code."""

    def forward(self, x):
        scale, shift = self.constants(1e-3)
        return x * scale + shift


class FrozenByFunction(Frozen):
    """As Detectron2's: PyTorch's function where no gradient is wanted."""

    def forward(self, x):
        if x.requires_grad:
            scale, shift = self.constants(self.eps)
            return x * scale.to(x.dtype) + shift.to(x.dtype)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False,
            eps=self.eps,
        )  # fmt: skip


class FrozenActivated(Frozen):
    """As timm's FrozenBatchNormAct2d."""

    def __init__(self, features):
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        scale, shift = self.constants(self.eps)
        x = x * scale + shift
        x = self.act(self.drop(x))
        return x


FROZEN = [Frozen, FrozenByNumber, FrozenByFunction, FrozenActivated]


class ByType(nn.Module):
    """As PyG's HeteroBatchNorm: a row of statistics for each type of node."""

    def __init__(self, features, types):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(types, features))
        self.register_buffer("running_mean", torch.zeros(types, features))


class Split(nn.BatchNorm2d):
    """As timm's SplitBatchNorm2d: a layer of its own for each part of the batch."""

    def __init__(self, features):
        super().__init__(features)
        self.aux_bn = nn.ModuleList([nn.BatchNorm2d(features)])

    def forward(self, input):
        if not self.training:
            return super().forward(input)
        first, *others = input.split(input.shape[0] // 2)
        parts = [super().forward(first)]
        parts += [layer(part) for layer, part in zip(self.aux_bn, others, strict=True)]
        return torch.cat(parts)
