"""The worked example of "Add a formula" in CONTRIBUTING.md: a patch of a copy of the sources."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from .limits import SOAK
from .optional import NotHere

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests/examples"
# The sources of the operation besides the kernels; without OpenMP.
SOURCES = (
    "core/problem", "core/tiling", "cpu/control_group", "cpu/machine", "cpu/openmp",
    "cpu/operations", "cpu/pages", "cpu/pool", "cpu/schedule", "cpu/small_blocks", "cpu/team_size",
    "cpu/weighted_operations",
)  # fmt: skip


def tool(*names):
    for name in names:
        if found := shutil.which(name):
            return found
    raise NotHere("the example of a new formula", f"{names[0]}, which is not installed")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_example_of_a_new_formula(tmp_path):
    """It touches three files; with BNEXT_SOAK it is compiled, which takes a while, and run."""
    git = tool("git")
    patch = EXAMPLE / "add_a_formula.patch"
    touched = re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.MULTILINE)
    assert touched == [
        "csrc/core/formulas.hpp",
        "csrc/cpu/operations.cpp",
        "csrc/cpu/operations.hpp",
    ]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "tests/cpp", tmp_path / "tests/cpp")
    shutil.copytree(EXAMPLE, tmp_path / "tests/examples")
    run(git, "apply", "-C1", str(patch), cwd=tmp_path)
    if SOAK != 1:
        compile_and_run(tmp_path)


def compile_and_run(tmp_path):
    """It reads and writes two arrays of each layout and alignment."""
    compiler = tool(*filter(None, (os.environ.get("CXX"), "g++", "clang++")))
    flags = ["-std=c++20", "-ffp-contract=off", "-Wno-psabi", "-Icsrc"]
    example = "tests/examples/add_a_formula.cpp"
    run(compiler, *flags, "-O1", "-c", example, "-o", "example.o", cwd=tmp_path)
    sources = [f"csrc/{name}.cpp" for name in SOURCES]
    libraries = ["-ldl", "-pthread", "-o", "example"]
    run(compiler, *flags, "-O0", "example.o", *sources, *libraries, cwd=tmp_path)
    assert run("./example", cwd=tmp_path) == "144 shapes\n"
