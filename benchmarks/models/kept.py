"""Bytes that a training step keeps for its backward pass: PyTorch's layers beside bnext's.

    python -m benchmarks.models.kept [--size PIXELS] [--batch N] [--check]

Counted are the storages of tensors that autograd saves in the forward pass of a network, each once,
without parameters; and of what is made again, the tensors that it is made of. The flags of a fused
addition with ReLU are counted as a bit for each value. With --check it exits with 1 where a bound
is not kept.
"""

import copy
import math
import sys
import warnings

from benchmarks.kit.command import checked, command, ended, option
from bnext.command_line import at_least

MOST = {"ResNet-50": 0.80, "VGG-16-BN": 0.60, "U-Net": 0.60, "MobileNetV3": 0.60}


def bytes_kept(torch, model, x):
    """Of one forward pass."""
    from bnext.torch import recomputation

    parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
    sizes, flags = {}, 0

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    class Noted(recomputation.Kept):
        def __init__(self, tensor):
            note(tensor)
            super().__init__(tensor)

    if recomputation.is_recomputing(model):
        plain, recomputation.Kept = recomputation.Kept, Noted
        try:
            y = model(x)
        finally:
            recomputation.Kept = plain
    else:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = model(x)
    seen, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [parent for parent, _ in node.next_functions]
        saved = getattr(node, "statistics", None)
        if getattr(saved, "residual", False) and saved.activation == "relu":
            flags += math.prod(saved.shape) // 8
    y.sum().backward()
    return sum(sizes.values()) + flags


@command(
    "benchmarks.models.kept",
    __doc__,
    option("--size", type=at_least(1), default=128, metavar="PIXELS"),
    option("--batch", type=at_least(1), default=4, metavar="N"),
    checked(),
    needs_torch=True,
)
def main(options, torch):
    import bnext.torch
    from benchmarks.models.mobilenet import mobilenet_v3_large
    from benchmarks.models.networks import resnet50, vgg16
    from benchmarks.models.unet import unet

    networks = {
        "ResNet-50": resnet50, "VGG-16-BN": vgg16, "U-Net": unet, "MobileNetV3": mobilenet_v3_large,
    }  # fmt: skip
    warnings.simplefilter("ignore", bnext.torch.ConversionWarning)
    x = torch.randn(options.batch, 3, options.size, options.size)
    ways = {
        "PyTorch": lambda model: model,
        "convert": bnext.torch.convert,
        "fuse": lambda model: bnext.torch.convert(model, fuse=True),
        "fuse, recompute": lambda model: bnext.torch.convert(model, fuse=True, recompute=True),
    }
    print(
        f"MiB kept for backward, {options.batch} images of {options.size} x {options.size}; share"
    )
    broken = []
    for name, build in networks.items():
        model = build().train()
        kept = {way: bytes_kept(torch, make(copy.deepcopy(model)), x) for way, make in ways.items()}
        theirs = kept["PyTorch"]
        row = [f"{way} {size / 2**20:.0f} ({size / theirs:.2f})" for way, size in kept.items()]
        print(f"{name:11}  " + "  ".join(row))
        if kept["fuse, recompute"] > MOST[name] * theirs:
            broken.append(f"{name} keeps more than {MOST[name]} of PyTorch's bytes")
    return ended(options, broken)


if __name__ == "__main__":
    sys.exit(main())
