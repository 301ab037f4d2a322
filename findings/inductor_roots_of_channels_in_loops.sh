#!/usr/bin/env bash
# Inductor computes what each channel has again for each value, square roots and divisions included.
#
# Versions: torch 2.13.0, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: of `x * (rstd(x) * weight)`, rstd a vector with a value for each of C channels, compiled for
#   a CPU, the loop over the N x C values multiplies by a vector of C values.
# Behaviour: pointwise operations are put into the loops of those that read them, whatever they are. The
#   loop over values has the sum's division, the square root and its reciprocal in it, N times for each
#   channel, in the vector's dtype: in float64, as exact statistics have them, that takes longer than all
#   that is done to x.
# Remedy: an operation that wants its operand in memory, and costs nothing: a view of the vector by its
#   own shape and strides (`as_strided`).
# Output seen:
#   torch 2.13.0
#   as written: a root in the loop over values: True
#   through a view by strides: a root in the loop over values: False
#   the same values: True
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
import torch
from torch._inductor.utils import run_and_get_code

torch.manual_seed(0)
x, weight = torch.randn(203, 37), torch.randn(37)


def as_written(x):
    return x * scale_of(x)


def through_a_view(x):
    scale = scale_of(x)
    return x * scale.as_strided(scale.shape, scale.stride())


def scale_of(x):
    rstd = torch.rsqrt(x.double().square().sum(0) / len(x) + 1e-5)
    return (rstd * weight.double()).float()


print("torch", torch.__version__.partition("+")[0])
results = []
for function in (as_written, through_a_view):
    y, (code,) = run_and_get_code(torch.compile(function), x)
    results.append(y)
    last = code.split("extern \"C\"")[-1].rsplit("for(int64_t x0", 1)[1].split("\'\'\'")[0]
    title = function.__name__.replace("_", " ").replace("a view", "a view by strides")
    print(f"{title}: a root in the loop over values:", "sqrt" in last)
print("the same values:", torch.equal(*results))
PYTHON
cat >seen.txt <<'TEXT'
torch 2.13.0
as written: a root in the loop over values: True
through a view by strides: a root in the loop over values: False
the same values: True
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
