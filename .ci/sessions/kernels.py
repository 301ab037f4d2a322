"""Builds of other sessions: C++ programs, other compilers, emulation of CUDA, sanitizers."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

from .kit import OUTPUT, TESTING, built, check, nothing_skipped, pytest, python_of, stand_on

LAYERS = ("tests", "torch", "libraries", "processes")


def with_module(session, name):
    """The command that runs tests with the modules of a build."""
    return f".ci/with-module {built(session, name)} {python_of(session)}"


@check(venv_backend="none")
def cpp(session):
    """C++ programs: benchmarks, cells, activations of every set, threads under their sanitizer."""
    programs = built(session, "programs")
    for program in [programs / "cells", *sorted(programs.glob("activations_*"))]:
        session.run(str(program), external=True)
    session.run(
        str(programs / "bnext_benchmarks"), "--benchmark_min_time=0.05", "--benchmark_filter="
        "(forward|backward|copy_streaming)/float32/planar/512x28x28/threads:2", external=True,
    )  # fmt: skip
    for name in ("thread_group_stress", "team_accounts", "pool_stress", "cuda_walk"):
        session.run(str(built(session, "tsan") / name), external=True)


@check
def other_builds(session):
    """Symbols of builds by GCC and Clang; bits of those by Clang, and that they work.

    The objects of an instruction set leave nothing to the linker that others could pick up. Results
    have the bits of the installed build's, whose tests have passed, on every instruction set, for
    every case and dtype. The package raises its errors, and says whether it has OpenMP: the
    newest Clang's has none.
    """
    stand_on(session, "tests")
    session.install("cmake")
    session.run(".ci/check-compilers", external=True)
    fingerprints, names = ".ci/fingerprints.py", ("clang-14", "clang-19")
    for name in ("cpp", *names):
        session.run(".ci/check-symbols", str(built(session, name)), external=True)
    commands = {"installed": [python_of(session), fingerprints]}
    for name in names:
        commands[name] = [*with_module(session, name).split(), "--program", fingerprints]
    with ThreadPoolExecutor(2) as pool:  # each keeps one processor busy
        files = dict(zip(commands, pool.map(bits, commands, commands.values()), strict=True))
    cases = len(files["installed"].read_text(encoding="utf-8").splitlines())
    for name in names:
        session.run("diff", str(files["installed"]), str(files[name]), external=True)
        print(f"{name}: the same bits as the installed build in {cases} cases", flush=True)
        chosen = ("tests/test_without_openmp.py", "tests/test_errors.py")
        pytest(session, "-q", "-n", "auto", *chosen, python=with_module(session, name))


def bits(name, command):
    """Keep what a program prints of every result; return the file."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"bits-{name}.txt"
    with path.open("w", encoding="utf-8") as file:
        subprocess.run(command, stdout=file, check=True)
    return path


@check
def cuda(session):
    """The CUDA kernels as a program for the CPU; only tests that need a GPU may not run."""
    stand_on(session, *LAYERS)
    printed = pytest(session, "-q", "-n", "auto", "tests/cuda", python=with_module(session, "cuda"))
    nothing_skipped(session, printed, "the CUDA kernels", "a GPU|arrays on a GPU")


@check
def sanitizers(session):
    """The tests that touch memory most, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    stand_on(session, *LAYERS)
    folder = built(session, "sanitize")
    command = (".ci/with-sanitizers", str(folder), python_of(session))
    session.run(*command, env=TESTING, external=True)
