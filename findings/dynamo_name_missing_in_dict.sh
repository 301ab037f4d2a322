#!/usr/bin/env bash
# Code that Dynamo has compiled for one layer runs for another, which has an attribute more.
#
# Versions: torch 2.13.0, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: compiled code is kept for a class, and runs for another layer of the class if its guards
#   hold. A layer whose forward pass asks for a name in its own `__dict__` (to be spared the look at
#   the class) takes another branch if the name is there, so it is compiled again.
# Behaviour: Dynamo makes no guard of a name that is missing in `self.__dict__`, be it asked by `in`
#   or by `get`. The second layer runs the code of the first, without its activation, and nothing
#   says so. For an attribute with a default in the class there is a guard.
# Remedy: code that Dynamo traces reads attributes.
# Output seen:
#   torch 2.13.0
#   name in self.__dict__: without 1.5, with 1.5; eager 1.5, 3.0
#   self.__dict__.get: without 1.5, with 1.5; eager 1.5, 3.0
#   attribute: without 1.5, with 3.0; eager 1.5, 3.0
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


class Layer(torch.nn.Module):
    doubles = None

    def __init__(self, doubles=None):
        super().__init__()
        self.shift = 0.5
        if doubles:
            self.doubles = doubles


class ByName(Layer):
    def forward(self, x):
        y = x + self.shift
        return y * 2 if "doubles" in self.__dict__ else y


class ByGet(Layer):
    def forward(self, x):
        y = x + self.shift
        return y * 2 if self.__dict__.get("doubles") else y


class ByAttribute(Layer):
    def forward(self, x):
        y = x + self.shift
        return y * 2 if self.doubles else y


print("torch", torch.__version__.partition("+")[0])
for name, kind in (
    ("name in self.__dict__", ByName),
    ("self.__dict__.get", ByGet),
    ("attribute", ByAttribute),
):
    x = torch.ones(())
    layers = kind(), kind(doubles=True)
    plain, doubled = (torch.compile(layer, backend="eager")(x).item() for layer in layers)
    eager = ", ".join(str(layer(x).item()) for layer in layers)
    print(f"{name}: without {plain}, with {doubled}; eager {eager}")
PYTHON
cat >seen.txt <<'TEXT'
torch 2.13.0
name in self.__dict__: without 1.5, with 1.5; eager 1.5, 3.0
self.__dict__.get: without 1.5, with 1.5; eager 1.5, 3.0
attribute: without 1.5, with 3.0; eager 1.5, 3.0
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
