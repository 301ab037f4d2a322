#!/usr/bin/env bash
# After a compiled call that ended in an error, every call of a Python function holds its arguments once more.
#
# Versions: torch 2.13.0 (CPU), numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Behaviour: torch.compile evaluates frames in the interpreter's place while it works, and gives that back at the
#   end of a compiled call. If the call ends in an error (here the error of a BatchNorm1d for one value per
#   channel), it does not: from then on, functions that have nothing to do with torch.compile see one reference
#   more to a temporary argument, for the rest of the process, also after torch.compiler.reset(). Code that
#   decides by sys.getrefcount whether a tensor's memory may be used again changes its mind.
# Output seen: references to a temporary tensor, as a function of Python's counts them
#   before, after a compiled call, after one that failed, after a reset: 2 2 3 3
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$work/program.py" <<'PYTHON'
import sys

import torch


def holders(x):
    return sys.getrefcount(x)


def increment(x):
    return x + 1


found = [holders(torch.zeros(3))]
torch.compile(increment, backend="eager")(torch.zeros(3))
found.append(holders(torch.zeros(3)))
layer = torch.compile(torch.nn.BatchNorm1d(5), backend="eager")
try:
    layer(torch.randn(1, 5))
except Exception as error:
    assert "more than 1 value per channel" in str(error), error
else:
    raise SystemExit("the layer took one value per channel")
found.append(holders(torch.zeros(3)))
torch.compiler.reset()
found.append(holders(torch.zeros(3)))
print("before, after a compiled call, after one that failed, after a reset:", *found)
before, succeeded, failed, reset = found
if not (before == succeeded and failed == reset == before + 1):
    raise SystemExit("this has changed")
PYTHON
"$work/env/bin/python" "$work/program.py"
