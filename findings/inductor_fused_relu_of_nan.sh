#!/usr/bin/env bash
# With freezing, torch.compile on a CPU turns NaN into 0 where ReLU follows a convolution.
#
# Versions: torch 2.13.0 (CPU), numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Behaviour: with `torch._inductor.config.freezing`, which is meant for inference, Inductor hands a convolution
#   and the ReLU or ReLU6 behind it to oneDNN as one operation. ReLU of NaN is NaN in eager mode, and 0 in the
#   fused operation: values that are not finite disappear from a compiled model, and a check of its output for
#   NaN finds nothing. Without freezing NaN stays.
# Output seen: NaN in the output, eager, compiled, and compiled with freezing
#   convolution and ReLU: 72 72 0
#   convolution and ReLU6: 72 72 0
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$work/program.py" <<'PYTHON'
import torch
from torch import nn
from torch._inductor import config

torch.manual_seed(0)
image = torch.randn(2, 8, 9, 9)
image[0, 0, 4, 4] = float("nan")
changed = False
for title, activation in (("ReLU", nn.ReLU()), ("ReLU6", nn.ReLU6())):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), activation).eval()
    found = []
    with torch.no_grad():
        found.append(int(model(image).isnan().sum()))
        for freezing in (False, True):
            torch.compiler.reset()
            with config.patch(freezing=freezing):
                found.append(int(torch.compile(model)(image).isnan().sum()))
    print(f"convolution and {title}:", *found)
    changed = changed or not (found[0] == found[1] > 0 == found[2])
if changed:
    raise SystemExit("this has changed")
PYTHON
"$work/env/bin/python" "$work/program.py"
