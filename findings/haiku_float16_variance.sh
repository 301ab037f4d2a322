#!/usr/bin/env bash
# haiku.BatchNorm: the variance of float16 input is NaN where squares exceed 65,504.
#
# Versions: dm-haiku 0.0.17, jax 0.10.2; Python 3.11 on Linux (x86-64).
# Expected: input near 300 with a standard deviation of 3 is in the range of float16, and so are its
#   mean and variance. flax 0.12.8 sums in float32 and stores 9.02.
# Behaviour: the variance is the mean of squares less the square of the mean, in the dtype of the
#   input. 300^2 is infinity in float16, and infinity less infinity is NaN. The output and the running
#   variance are NaN from the first step, and the running variance stays NaN.
# Output seen:
#   float32: variance finite, output finite
#   float16: variance NaN, output NaN
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet dm-haiku==0.0.17 jax==0.10.2
cd "$folder"
cat >program.py <<'PYTHON'
import haiku
import jax
import numpy as np

x = np.random.default_rng(0).normal(300, 3, (64, 3))
layer = haiku.transform_with_state(
    lambda x: haiku.BatchNorm(create_scale=False, create_offset=False, decay_rate=0.9)(x, True)
)
for dtype in (np.float32, np.float16):
    params, state = layer.init(jax.random.key(0), x.astype(dtype))
    y, state = layer.apply(params, state, None, x.astype(dtype))
    (variance,) = (v["average"] for k, v in state.items() if k.endswith("var_ema"))
    words = ["NaN" if np.isnan(np.asarray(a)).all() else "finite" for a in (variance, y)]
    print(f"{np.dtype(dtype)}: variance {words[0]}, output {words[1]}")
PYTHON
cat >seen.txt <<'TEXT'
float32: variance finite, output finite
float16: variance NaN, output NaN
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
