#!/usr/bin/env bash
# flax.linen.BatchNorm: NaN under the mask makes gradients NaN, though the statistics are right.
#
# Versions: flax 0.12.8, jax 0.10.2; Python 3.11 on Linux (x86-64).
# Expected: the documentation of the call's argument `mask` says that statistics are computed from the
#   positions where it is true. Padding under the mask, whatever it holds, should not be seen.
# Behaviour: the running statistics come from the other rows, as they should. But the gradient
#   with respect to scale, and to rows of x that the mask shows, is NaN, even where the loss leaves
#   the masked rows out by jnp.where; only the bias has a gradient.
# Cause: the statistics are sums of jnp.where(mask, x, 0), whose gradient is right; the masked rows are
#   normalized like the others, and 0 times NaN is NaN on the way back.
# Remedy: replace the padding by numbers before the layer, not behind it.
# Output seen:
#   running mean finite: True
#   gradients of scale, bias, x finite: False True False
#   the same with zeros under the mask: True True True
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet flax==0.12.8 jax==0.10.2
"$folder/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

rng = np.random.default_rng(0)
rows = rng.normal(2, 3, (9, 4)).astype(np.float32)
mask = np.arange(9) < 6
layer = linen.BatchNorm(use_running_average=False)
variables = layer.init(jax.random.key(0), rows)


def finite(padding):
    x = jnp.asarray(np.where(mask[:, None], rows, np.float32(padding)))

    def loss(params, x):
        y, moved = layer.apply(
            {"params": params, "batch_stats": variables["batch_stats"]}, x,
            mask=mask[:, None], mutable=["batch_stats"],
        )
        return jnp.where(mask[:, None], y * jnp.arange(4.0), 0).sum(), moved["batch_stats"]

    (params, dx), statistics = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
    gradients = (params["scale"], params["bias"], dx)
    return bool(jnp.isfinite(statistics["mean"]).all()), [
        bool(jnp.isfinite(g).all()) for g in gradients
    ]


mean, hidden = finite(np.nan)
_, zeros = finite(0)
print("running mean finite:", mean)
print("gradients of scale, bias, x finite:", *hidden)
print("the same with zeros under the mask:", *zeros)
if not (mean and all(zeros)) or all(hidden):
    sys.exit("this has changed")
PYTHON
