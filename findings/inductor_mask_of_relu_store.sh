#!/usr/bin/env bash
# Compiled for a CPU, a ReLU that is differentiated takes longer than all that is before it, by its mask.
#
# Versions: torch 2.13.0, numpy 2.4.6; Python 3.11 on Linux (x86-64 with AVX2 or AVX-512).
# Expected: a compiled forward pass that autograd records writes a boolean mask beside its result: a
#   quarter of the bytes of float32, so about a quarter more time.
# Behaviour: where no operation behind the ReLU keeps its result (a mean over positions at the end of a
#   residual network, say), Inductor keeps the mask `y <= 0` for the backward pass. Storing it takes
#   nanoseconds a value (2.4 ms for 512 x 512 values on a Zen 4, where the pass without a gradient
#   takes 0.05 ms and the eager pass with one 0.09 ms), and loading it in the backward pass half as long.
# Remedy: activations whose derivative is taken from x or y (a custom function that saves either).
# Output seen:
#   torch 2.13.0
#   keeps a mask: True
#   recorded, over 5 times the time of the same pass without a gradient: True
#   recorded, over 3 times the time of the eager pass: True
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
import time

import torch
from torch._inductor.utils import run_and_get_code

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(509, 521, requires_grad=True)


def eager(x):
    return (x * 2 + 1).relu()


def seconds(call):
    taken = []
    for _ in range(40):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


call = torch.compile(eager)
_, codes = run_and_get_code(lambda: call(x).sum().backward())


def without_gradient():
    with torch.no_grad():
        return call(x)


without_gradient()
recorded, alone, by_eager = (seconds(each) for each in (lambda: call(x), without_gradient, lambda: eager(x)))
print("torch", torch.__version__.partition("+")[0])
print("keeps a mask:", any("torch.bool" in code and "bool*" in code for code in codes))
print("recorded, over 5 times the time of the same pass without a gradient:", recorded > 5 * alone)
print("recorded, over 3 times the time of the eager pass:", recorded > 3 * by_eager)
PYTHON
cat >seen.txt <<'TEXT'
torch 2.13.0
keeps a mask: True
recorded, over 5 times the time of the same pass without a gradient: True
recorded, over 3 times the time of the eager pass: True
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
