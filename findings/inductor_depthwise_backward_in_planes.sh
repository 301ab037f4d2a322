#!/usr/bin/env bash
# Inductor lays depthwise convolutions out with channels last, and their derivatives in planes.
#
# Versions: torch 2.13.0, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: on a CPU Inductor gives convolutions tensors with channels last, in a compiled network's
#   forward pass and in its backward pass.
# Behaviour: a graph of a backward pass has no convolution, only derivatives, and each takes the
#   order of strides of its gradient of weights. A depthwise convolution's weights have one input
#   channel, so that order says nothing, and is read as planes: x and the gradient are copied from
#   channels last to planes before each, and the gradient of x comes in planes. oneDNN's derivative
#   takes more than 1.5 times as long of planes (1.5 to 5 times as long for MobileNetV3).
# Remedy: graphs that are laid out as their forward pass was
#   (torch._inductor.config.force_layout_optimization, which means every graph).
# Output seen:
#   torch 2.13.0
#   gradient of x, dense 1 x 1: channels last
#   gradient of x, depthwise 5 x 5: planes
#   gradient of x, forced, dense 1 x 1: channels last
#   gradient of x, forced, depthwise 5 x 5: channels last
#   planes take more than 1.5 times as long: True
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet numpy==2.4.6
cd "$folder"
cat >program.py <<'PYTHON'
import re
import statistics
import time

import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

CHANNELS = 96
LAYOUTS = {True: "channels last", False: "planes"}
backward = torch.ops.aten.convolution_backward


def layouts_of_gradients(title):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU6(),
        nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, groups=CHANNELS, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU6(),
        nn.Conv2d(CHANNELS, 7, 1, bias=False),
    )
    x, call = torch.randn(5, 3, 13, 13), torch.compile(network)
    _, (_, code) = run_and_get_code(lambda: call(x).square().sum().backward())
    found = re.findall(
        rf"assert_size_stride\(\w+, \(5, {CHANNELS}, 11, 11\), \(\d+, (\d+), \d+, \d+\), "
        r"'torch\.ops\.aten\.convolution_backward",
        code,
    )
    for name, stride in zip(("dense 1 x 1", "depthwise 5 x 5"), found, strict=True):
        print(f"gradient of x, {title}{name}: {LAYOUTS[stride == '1']}")


def seconds(memory_format):
    x, dy = torch.randn(2, 8, 960, 6, 6).unbind()
    x, dy = (each.contiguous(memory_format=memory_format) for each in (x, dy))
    weight, taken = torch.randn(960, 1, 5, 5), []
    for _ in range(40):
        start = time.perf_counter()
        backward(dy, x, weight, [0], [1, 1], [2, 2], [1, 1], False, [0, 0], 960, [True, True, False])
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


print("torch", torch.__version__.partition("+")[0])
layouts_of_gradients("")
with torch._inductor.config.patch(force_layout_optimization=True):
    layouts_of_gradients("forced, ")
ratio = seconds(torch.contiguous_format) / seconds(torch.channels_last)
print("planes take more than 1.5 times as long:", ratio > 1.5)
PYTHON
cat >seen.txt <<'TEXT'
torch 2.13.0
gradient of x, dense 1 x 1: channels last
gradient of x, depthwise 5 x 5: planes
gradient of x, forced, dense 1 x 1: channels last
gradient of x, forced, depthwise 5 x 5: channels last
planes take more than 1.5 times as long: True
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
