#!/usr/bin/env bash
# tinygrad: to write a safetensors file it compiles C, and fails where there is no clang.
#
# Versions: tinygrad 0.14.0, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: DEV=PYTHON chooses the device that interprets kernels in Python. A layer is made, trained and
#   read so without a compiler. nn.state.safe_save writes a header and the bytes of the arrays: nothing of
#   it has to be computed.
# Behaviour: safe_save starts the program clang, and raises FileNotFoundError where there is none by that
#   name (Debian's packages name it clang-14 or clang-19; the variable CC names another). What was compiled
#   is kept in a cache in the user's home folder, so that later runs on the same machine pass without it.
# Output seen:
#   device PYTHON
#   a step of BatchNorm: done
#   safe_save: FileNotFoundError clang
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet tinygrad==0.14.0 numpy==2.4.6
cd "$folder"
cat >program.py <<'PYTHON'
import numpy as np
from tinygrad import Device, Tensor, nn
from tinygrad.helpers import Context

print("device", Device.DEFAULT)
layer = nn.BatchNorm(4)
x = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
with Context(TRAINING=1):
    layer(Tensor(x)).realize(layer.running_mean, layer.running_var)
print("a step of BatchNorm: done")
try:
    nn.state.safe_save(nn.state.get_state_dict(layer), "layer.safetensors")
except FileNotFoundError as error:
    print("safe_save:", type(error).__name__, error.filename)
else:
    print("safe_save: done")
PYTHON
cat >seen.txt <<'TEXT'
device PYTHON
a step of BatchNorm: done
safe_save: FileNotFoundError clang
TEXT
# No compiler, and no cache of an earlier run.
env -i PATH="$folder/env/bin" HOME="$folder" DEV=PYTHON "$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
