#!/usr/bin/env bash
# NVIDIA's wheel of cuobjdump cannot disassemble by itself, and does not require the wheel that it needs.
#
# Versions: nvidia-cuda-cuobjdump 13.5.37, nvidia-cuda-nvdisasm 13.5.37, nvidia-cuda-nvcc 13.5.37 (for
#   ptxas); Python 3.11 on Linux (x86-64).
# Behaviour: `cuobjdump -sass` of a valid cubin prints the architecture and ends with an error, since it
#   runs `nvdisasm`, which lies beside it in the CUDA toolkit. On PyPI nvdisasm is a distribution of its
#   own, and the metadata of nvidia-cuda-cuobjdump require nothing. With both distributions in one
#   environment the same command prints the machine code, also with neither program on PATH.
# Output seen, without nvidia-cuda-nvdisasm and then with it:
#   requires: []
#   code for sm_90
#   cuobjdump fatal   : Could not find executable file 'nvdisasm'; you can try adding path to
#   environment variables PATH or NVDISASM_PATH
#   /*0010*/                   EXIT ;
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
pip() { "$work/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip nvidia-cuda-cuobjdump==13.5.37
pip --target "$work/compiler" --no-deps nvidia-cuda-nvcc==13.5.37

cat >"$work/nothing.ptx" <<'PTX'
.version 8.0
.target sm_90
.address_size 64
.visible .entry nothing() { ret; }
PTX
ptxas=$(find "$work/compiler" -path '*/bin/ptxas')
"$ptxas" -arch=sm_90 "$work/nothing.ptx" -o "$work/nothing.cubin"

cuobjdump=$(find "$work/env" -path '*/bin/cuobjdump')
disassemble() { env -i PATH=/usr/bin:/bin "$cuobjdump" -sass "$work/nothing.cubin"; }

"$work/env/bin/python" - <<'PYTHON'
from importlib import metadata

requires = metadata.requires("nvidia-cuda-cuobjdump") or []
print("requires:", requires)
assert not any("nvdisasm" in name for name in requires), "it requires nvdisasm now"
PYTHON
if disassemble >"$work/without.txt" 2>&1; then
  echo "this has changed: it disassembles alone"
  exit 1
fi
cat "$work/without.txt"
grep -q "Could not find executable file 'nvdisasm'" "$work/without.txt"

pip nvidia-cuda-nvdisasm==13.5.37
disassemble >"$work/with.txt"
grep "EXIT" "$work/with.txt"
