#!/usr/bin/env bash
# Equinox: BatchNorm with mode="batch" evaluates with a variance that is too large by 99 after a step.
#
# Versions: equinox 0.13.8, jax 0.10.2; Python 3.11 on Linux (x86-64).
# Expected: mode="batch" divides its averages by 1 - momentum^k, which takes the start out of an average
#   that began at 0. After one step what is left is the first batch's mean and variance.
# Behaviour: the mean begins at 0, the variance at 1. Divided, the 1 becomes d^k / (1 - d^k), which is
#   99 after one step with the default momentum d = 0.99, 9.5 after 10 and 0.58 after 100. Variances
#   that inference uses are too large by that, and outputs too small.
# Remedy: a thousand steps before the first evaluation, or mode="ema".
# Output seen:
#   variance that inference uses, less the batch's: 99.0 after 1 step, 9.5 after 10, 0.6 after 100
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet equinox==0.13.8 jax==0.10.2
"$folder/env/bin/python" - <<'PYTHON'
import sys

import equinox
import jax
import numpy as np

SEEN = (
    "variance that inference uses, less the batch's: 99.0 after 1 step, 9.5 after 10, 0.6 after 100"
)
x = np.random.default_rng(0).normal(2, 3, (64, 1)).astype(np.float32)
layer, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
    1, "batch", mode="batch", channelwise_affine=False
)


def vmapped(layer):
    return jax.jit(jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None)))


train, infer = vmapped(layer), vmapped(equinox.nn.inference_mode(layer))
excess = {}
for step in range(1, 101):
    _, state = train(x, state)
    if step in (1, 10, 100):
        y, _ = infer(np.array([[0.0], [1.0]], np.float32), state)
        std = 1 / float(y[1, 0] - y[0, 0])  # of what inference divides by
        excess[step] = std**2 - 1e-5 - float(x.var())
text = ", ".join(f"{excess[k]:.1f} after {k}{' step' if k == 1 else ''}" for k in excess)
line = f"variance that inference uses, less the batch's: {text}"
print(line)
if line != SEEN:
    sys.exit("this has changed")
PYTHON
