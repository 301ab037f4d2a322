"""Checks what the CUDA compiler said of each kernel: none may keep values in local memory.

    python3 .ci/check_cuda_resources.py LOG --architectures sm_80 sm_90 --sources csrc/cuda

LOG is the output of `cmake --build` after a configuration with BNEXT_CUDA_REPORT=ON, from an empty
build folder. Registers that are spilled, and arrays that are indexed at run time, live in local
memory, which is device memory: a kernel that ought to read its data once would then not. Also fails
where the report is not one of everything: an architecture, a file of instances or a kernel without
a line would otherwise pass for a kernel without spills.
"""

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BUILDING = re.compile(r"Building CUDA object .*?(\w+)\.cu\.o")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FUNCTION = re.compile(r"Function properties for (\w+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
DEFINED = re.compile(
    r"^\s*(?:BNEXT_KERNEL|__global__ void)\b(?:\s+BNEXT_\w+(?:\([^)]*\))?)*\s+(\w+)\(", re.M
)
# Of 65,536 a multiprocessor, for two blocks of 256 threads, which plans rely on.
MOST_REGISTERS = 128


@dataclass
class Kernel:
    """What the compiler said of a kernel, with the functions that it calls out of line."""

    instances: str  # the file that it was instantiated in, without its suffix
    architecture: str
    symbol: str
    registers: int = -1
    frame: int = -1
    spilled: int = 0

    @property
    def complete(self):
        """Whether the report has all of it."""
        return self.registers >= 0 and self.frame >= 0


def read(text):
    """All kernels of a build's output."""
    kernels, instances = [], ""
    for line in text.splitlines():
        if found := BUILDING.search(line):
            instances = found[1]
        elif found := ENTRY.search(line):
            kernels.append(Kernel(instances, found[2], found[1]))
        elif kernels and (found := FRAME.search(line)):
            frame, stores, loads = map(int, found.groups())
            kernels[-1].frame = max(kernels[-1].frame, frame)
            kernels[-1].spilled += stores + loads
        elif kernels and (found := USED.search(line)):
            kernels[-1].registers = int(found[1])
    return kernels


def defined(sources):
    """Find the names of the kernels that the headers define."""
    names = set()
    for path in sorted(Path(sources).glob("*.hpp")):
        names.update(DEFINED.findall(path.read_text(encoding="utf-8")))
    return names


def problems(kernels, architectures, instances, names):
    """Everything that is wrong, one line each."""
    found = []
    for k in kernels:
        where = f"{k.architecture} {k.instances}: {k.symbol}"
        if not k.complete:
            found.append(f"{where}: the report has no registers or no stack frame of it")
        elif k.spilled:
            found.append(f"{where}: {k.spilled} bytes of spill stores and loads")
        elif k.frame:
            found.append(f"{where}: {k.frame} bytes of local memory")
        elif k.registers > MOST_REGISTERS:
            found.append(f"{where}: {k.registers} registers leave no room for a second block")
    of_instances = {
        (a, i): {k.symbol for k in kernels if (k.architecture, k.instances) == (a, i)}
        for a in architectures
        for i in instances
    }
    for i in instances:
        everywhere = set.union(*(of_instances[a, i] for a in architectures))
        if not everywhere:
            found.append(f"{i}: no kernel was compiled")
            continue
        for a in architectures:
            if not of_instances[a, i]:
                found.append(f"{a} {i}: no kernel was compiled")
            found += [f"{a} {i}: lacks {s}" for s in sorted(everywhere - of_instances[a, i])]
    if not names:
        found.append("the sources define no kernel")
    for name in sorted(names):
        # Itanium mangling: a name comes after its length.
        if not any(f"{len(name)}{name}" in k.symbol for k in kernels):
            found.append(f"{name}: no file instantiates this kernel")
    return found


def table(kernels):
    """Format a line for each architecture."""
    lines = [f"{'':8} {'kernels':>7} {'most registers':>14}   in"]
    for architecture in sorted({k.architecture for k in kernels}, key=lambda a: (len(a), a)):
        of_it = [k for k in kernels if k.architecture == architecture]
        most = max(of_it, key=lambda k: k.registers)
        lines.append(
            f"{architecture:8} {len(of_it):7} {most.registers:14}   {most.instances}: {most.symbol}"
        )
    return "\n".join(lines)


def readable(text):
    """Names as C++ has them, where binutils are installed."""
    if shutil.which("c++filt") is None:
        return text
    return subprocess.run(
        ["c++filt"], input=text, capture_output=True, text=True, check=True
    ).stdout


def main(arguments=None):
    """Print the table and what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="the output of the build")
    parser.add_argument("--architectures", nargs="+", required=True, metavar="SM")
    parser.add_argument("--sources", type=Path, required=True, help="the folder of the kernels")
    options = parser.parse_args(arguments)
    instances = sorted(path.stem for path in (options.sources / "instances").glob("*.cu"))
    if not instances:
        parser.error(f"--sources: {options.sources} has no instances/*.cu")
    kernels = read(options.log.read_text(encoding="utf-8", errors="replace"))
    found = problems(kernels, options.architectures, instances, defined(options.sources))
    if kernels:
        print(readable(table(kernels)))
    for line in found:
        print(readable(line).strip())
    if found:
        print(f"{len(found)} problems with the resources of the CUDA kernels")
        return 1
    print(f"{len(kernels)} kernels, no spills, no local memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
