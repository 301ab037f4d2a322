#!/usr/bin/env bash
# Inductor's cache on disk takes a new release of a custom operator for the old one.
#
# Versions: torch 2.13.0, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: a library of custom operators may let an operator return one more row of statistics in
#   its next release, with the fake implementation to go with it. torch.compile then compiles anew.
# Behaviour: the compiled graph of the old release is taken from the cache, whose key depends neither
#   on the operator's implementations nor on the shapes they give. The call ends in an
#   AssertionError about the size of the result. With an empty cache the same program works.
# Remedy: operators whose results change get other names.
# Output seen:
#   torch 2.13.0
#   first release, empty cache: shape (4, 3)
#   next release, same cache: AssertionError: expected size 5==4, stride 3==3 at dim=0
#   next release, empty cache: shape (5, 3)
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
import sys

import torch

NAME, ROWS = sys.argv[1], int(sys.argv[2])


@torch.library.custom_op("norms::statistics", mutates_args=())
def statistics(x: torch.Tensor) -> torch.Tensor:
    rows = [x.mean(0), x.var(0, correction=0), x.amin(0), x.amax(0), x.sum(0)]
    return torch.stack(rows[:ROWS])


@statistics.register_fake
def _(x):
    return x.new_empty(ROWS, x.size(1))


def doubled(x):
    return torch.ops.norms.statistics(x) * 2


torch.manual_seed(0)
try:
    result = f"shape {tuple(torch.compile(doubled)(torch.randn(8, 3)).shape)}"
except AssertionError as error:
    result = f"AssertionError: {str(error).splitlines()[0]}"
print(f"{NAME}: {result}")
PYTHON
cat >seen.txt <<'TEXT'
torch 2.13.0
first release, empty cache: shape (4, 3)
next release, same cache: AssertionError: expected size 5==4, stride 3==3 at dim=0
next release, empty cache: shape (5, 3)
TEXT
{
  "$folder/env/bin/python" -c 'import torch; print("torch", torch.__version__.partition("+")[0])'
  while read -r cache rows name; do
    TORCHINDUCTOR_CACHE_DIR="$folder/$cache" "$folder/env/bin/python" program.py "$name" "$rows"
  done <<'RUNS'
one 4 first release, empty cache
one 5 next release, same cache
two 5 next release, empty cache
RUNS
} | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
