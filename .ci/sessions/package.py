"""What the package is besides its results: files, types, documentation, wheels."""

import shutil

from .kit import BUILD, cache, check, python_of, stand_on

LEAST_TYPES = 95.0  # per cent of public names whose types are known


@check
def lint(session):
    """Every linter, on every file."""
    session.install("pre-commit")
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@check
def types(session):
    """The types of public names, as a checker of users' programs sees them."""
    stand_on(session, "tests", "torch", "libraries")
    session.install("pyright[nodejs]==1.1.414")
    session.run("python", ".ci/check_types.py", str(LEAST_TYPES))


@check
def site(session):
    """The documentation site, warnings as errors, with its links; a folder as argument."""
    stand_on(session, "tests", "torch")
    session.run(".ci/site", *session.posargs, env={"PYTHON": python_of(session)}, external=True)


@check(venv_backend="none")
def wheels(session):
    """Wheels of every interpreter here, each tried without a compiler; a folder as argument.

    A release also compares a second build, without the cache: `.ci/wheels` by itself.
    """
    if not session.posargs:
        shutil.rmtree(BUILD / "wheels", ignore_errors=True)
    env = cache() | {"WHEELS_TWICE": "0"}
    session.run(".ci/wheels", *(session.posargs or ("build/wheels",)), env=env, external=True)
