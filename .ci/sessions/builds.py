"""Everything that is only compiled, warnings as errors: these sessions run behind the tests."""

import shlex
import shutil
from pathlib import Path

from .kit import BUILD, cache, check, foreign_functions, packages_of, python_of, step

TOOLS = ("cmake", "ninja", "pybind11>=3,<4", "numpy")
TSAN = ("thread_group_stress", "team_accounts", "pool_stress", "cuda_walk")
# How to try a compiler: host code is not optimized, and kernels little. (Without any, they take
# longer: every function of a pack is written out.)
TRIED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-DNDEBUG",
         "-DBNEXT_KERNELS_OPTIMIZED=-O1")  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


def configure(session, name, *arguments, preset=None, env=None):
    """Configure a build in a new folder; return the folder and what CMake printed."""
    folder = BUILD / name
    how = ("--preset", preset) if preset else ("-G", "Ninja")
    python = f"-DPython_EXECUTABLE={python_of(session)}"
    said = session.run(
        "cmake", *how, "-S", ".", "-B", str(folder), "-DBNEXT_WERROR=ON", python, *arguments,
        env=cache() | (env or {}), silent=True,
    )  # fmt: skip
    return folder, said


def compile_(session, folder, *targets):
    """Compile targets of a build, or everything."""
    chosen = ("--target", *targets) if targets else ()
    session.run("cmake", "--build", str(folder), *chosen, env=cache(), silent=True)


def fresh(name):
    """Remove a build."""
    shutil.rmtree(BUILD / name, ignore_errors=True)


def expect(session, text, printed, what):
    """Fail unless a text was printed."""
    if text not in printed:
        session.error(f"{what}: expected {text!r} in what CMake prints, got\n{printed}")


@check
def build_cpp(session):
    """C++ benchmarks and tests, also for the thread sanitizer; GCC without OpenMP.

    Of the last only what CMake says, and the two smallest of the files that know OpenMP:
    `build_clang` has a whole build without it.
    """
    session.install(*TOOLS)
    fresh("cpp")
    folder, _ = configure(session, "cpp", preset="benchmarks")
    compile_(session, folder)
    programs = BUILD / "programs"
    fresh("programs")
    programs.mkdir()
    for path in [
        folder / "benchmarks" / "bnext_benchmarks",
        folder / "cells",
        *folder.glob("activations_*"),
    ]:
        shutil.copy(path, programs)
    fresh("tsan")
    compile_(session, configure(session, "tsan", preset="tsan")[0], *TSAN)
    folder, said = configure(session, "cpp", "-DBNEXT_OPENMP=OFF")
    for text in ("built without OpenMP", "BNEXT_OPENMP=ON"):
        expect(session, text, said, "BNEXT_OPENMP=OFF")
    objects = (f"CMakeFiles/bnext_cpu.dir/csrc/cpu/{name}.cpp.o" for name in ("openmp", "reorder"))
    compile_(session, folder, *objects)


@check
def build_clang(session):
    """The extension by the oldest Clang that is promised, and by the newest.

    The newest lacks its OpenMP, and CMake names the package that is missing. The oldest optimizes
    little, in less time: what it does not know is an error at any level.
    """
    session.install(*TOOLS)
    lacking = ("built without OpenMP", "libomp-19-dev")
    for version, texts, *arguments in (
        (14, ("Found OpenMP",), *TRIED),
        (19, lacking, "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON"),
    ):
        name = f"clang-{version}"
        fresh(name)
        compiler = f"-DCMAKE_CXX_COMPILER=clang++-{version}"
        folder, said = configure(session, name, "-DBNEXT_CUDA=OFF", compiler, *arguments)
        for text in texts:
            expect(session, text, said, name)
        compile_(session, folder, "_core")


@check
def build_arm(session):
    """The kernels for another architecture, by both compilers; nothing here can run them."""
    session.install(*TOOLS)
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DBNEXT_PYTHON=OFF",
              *TRIED)  # fmt: skip
    for name, *compiler in (
        ("arm", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"),
        ("arm-clang", "-DCMAKE_CXX_COMPILER=clang++-14",
         "-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu"),
    ):  # fmt: skip
        fresh(name)
        compile_(session, configure(session, name, *system, *compiler)[0])


@check
def build_sanitized(session):
    """The extension with the address and undefined-behaviour sanitizers."""
    session.install(*TOOLS)
    fresh("sanitize")
    compile_(session, configure(session, "sanitize", preset="sanitize")[0])


def cuda_toolkit(session):
    """The variables by which CMake finds nvcc.

    Where the machine has none, NVIDIA's packages need a link to look like a toolkit.
    """
    if shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists():
        return {}
    parts = ("cuda-nvcc", "cuda-crt", "cuda-runtime", "cuda-cccl", "nvvm")
    session.install(*(f"nvidia-{part}==13.0.*" for part in parts))
    folder = packages_of(session) / "nvidia" / "cu13"
    (folder / "lib64").symlink_to("lib")
    return {"CUDA_HOME": str(folder)}


@check
def build_cuda(session):
    """The CUDA kernels and their handlers for JAX, for every architecture and for the CPU.

    No kernel may use local memory, and the instructions of a batch are counted.
    """
    session.install(*TOOLS)
    env = cuda_toolkit(session)
    fresh("cuda")
    options = ("-DBNEXT_CUDA_EMULATION=ON", *foreign_functions(session))
    folder, _ = configure(session, "cuda", *options, preset="cuda", env=env)
    printed = folder / "ptxas.txt"
    noise = "^ptxas info\\|^    .* stack frame"
    command = (
        f"cmake --build {shlex.quote(str(folder))} --target _cuda >{shlex.quote(str(printed))} 2>&1"
    )
    failed = f"{{ grep -v '{noise}' {shlex.quote(str(printed))}; exit 1; }}"
    with step("_cuda for four architectures"):
        session.run("bash", "-c", f"{command} || {failed}", env=cache() | env, external=True)
    session.run(
        "python", ".ci/check_cuda_resources.py", str(printed),
        "--architectures", *ARCHITECTURES, "--sources", "csrc/cuda",
    )  # fmt: skip
    # (The one runs the other, beside it.)
    session.install("nvidia-cuda-cuobjdump==13.*", "nvidia-cuda-nvdisasm==13.*")
    (disassembler,) = (packages_of(session) / "nvidia").glob("**/bin/cuobjdump")
    (module,) = folder.glob("**/_cuda.*.so")
    session.run(
        "python", ".ci/check_cuda_instructions.py", str(module), "--cuobjdump", str(disassembler)
    )
    compile_(session, folder, "_cuda_emulated")
