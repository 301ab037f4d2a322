"""Every check of the repository: ``nox -l`` lists them; ``nox -s all_checks`` is what CI runs."""

import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / ".ci"))

from sessions import behind
from sessions.kit import check

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "tests"]

# Only compiled: these run behind the others, on what they leave of the processors. First those with
# objects of their own, while `readme` and `tests` compile what all share. Last the CUDA kernels:
# they take every processor that is free at the end, where wheels keep one busy.
BEHIND = ("build_arm", "build_clang", "build_cpp", "wheels", "build_sanitized", "build_cuda")
# Each stands on environments of those before it. Measurements come last, with nothing behind them.
CHECKS = (
    "lint", "readme", "tests", "torch", "site", "libraries", "types", "processes",
    "built", "cpp", "other_builds", "cuda", "sanitizers", "import_time", "promises",
)  # fmt: skip


@check(venv_backend="none")
def all_checks(session):
    """Everything that must hold before a change lands, up to the first failure."""
    behind.start(BEHIND)
    for name in CHECKS:
        session.notify(name)


@check(venv_backend="none")
def built(session):
    """Wait for the builds that `all_checks` has started, and show what they printed."""
    behind.wait(session)
