"""Development tasks: ``nox -l`` lists them."""

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "venv"

TORCH = "torch==2.13.0"


@nox.session
def lint(session: nox.Session) -> None:
    """Every linter, on every file."""
    session.install("pre-commit")
    session.run("pre-commit", "run", "--all-files", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, as a user installs it; arguments go to pytest."""
    session.install(".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def torch(session: nox.Session) -> None:
    """All tests, also those that compare with PyTorch, none of which may be skipped."""
    session.install(TORCH)
    session.install(".[test]")
    session.run("pytest", *session.posargs, env={"BNEXT_REQUIRE_TORCH": "1"})


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Accuracy and speed beside others; arguments go to the suite."""
    session.install(TORCH)
    session.install(".[bench]")
    session.run("python", "benchmarks/accuracy.py")
    session.run("python", "-m", "benchmarks", *(session.posargs or ("--quick",)))
