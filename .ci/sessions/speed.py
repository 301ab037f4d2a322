"""Measurements, with nothing else running."""

from nox.command import CommandFailed

from .kernels import LAYERS, with_module
from .kit import check, python_of, shell, stand_on

PROMISES = (
    "benchmarks/compare.py", "benchmarks/call_path.py", "-m benchmarks.models",
    "-m benchmarks.barrier",
)  # fmt: skip


@check
def promises(session):
    """Promises of speed. On a shared machine a promise counts as broken if it is broken twice."""
    stand_on(session, *LAYERS)
    commands = [f"{python_of(session)} {promise} --check" for promise in PROMISES]
    gpu_calls = f"{with_module(session, 'cuda')} --program -m benchmarks.call_path_gpu --check"
    for command in [*commands, gpu_calls]:
        try:
            shell(session, command)
        except CommandFailed:
            shell(session, command)


@check
def import_time(session):
    """The time of `import bnext`, at most 1.2 times the time of `import numpy`."""
    stand_on(session, "tests")
    session.run("python", ".ci/check_import.py")


@check
def benchmarks(session):
    """Accuracy and speed beside others; arguments go to the suite."""
    stand_on(session, "tests", "torch")
    session.run("python", "benchmarks/accuracy.py")
    session.run("python", "-m", "benchmarks", *(session.posargs or ("--quick",)))
