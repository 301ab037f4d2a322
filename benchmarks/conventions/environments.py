"""Environments: a virtual one for each group of releases, in which their runners run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
SECONDS = 1800  # at most, for an installation or a run


class ReleaseError(Exception):
    """A release could not be installed or run: the reason, in one line."""


def record(release, batches, output, folder):
    """Install a release in the environment at `folder`, and write what it stores."""
    python = folder / "bin" / "python"
    if not python.exists():
        _run([_interpreter(release.python), "-m", "venv", folder], "venv")
    installed = folder / f"installed-{release.runner}"
    if not installed.exists():
        if release.first:
            _pip(python, *release.first)
        _pip(python, *["--no-build-isolation"] * bool(release.first), *release.requirements)
        installed.touch()
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    own = {
        name: value.format(environment=folder.resolve())
        for name, value in release.variables.items()
    }
    _run(
        [python, "-m", f"benchmarks.conventions.runners.{release.runner}", batches, output],
        "run", cwd=ROOT, env={**variables, **own, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def removed(folder):
    """Remove an environment."""
    shutil.rmtree(folder, ignore_errors=True)


def _pip(python, *words):
    options = ("--quiet", "--disable-pip-version-check", "--no-compile")  # most is never imported
    _run([python, "-m", "pip", "install", *options, *words], "pip")


def _interpreter(version):
    if sys.version.startswith(f"{version}."):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
    for found in filter(None, candidates):
        if subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    raise ReleaseError(f"no Python {version} on PATH or under pyenv")


def _run(command, what, **options):
    command = [str(word) for word in command]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, **options
        )
    except subprocess.TimeoutExpired:
        raise ReleaseError(f"{what}: more than {SECONDS} s") from None
    if done.returncode:
        raise ReleaseError(f"{what}: {_reason(done.stderr) or f'exit status {done.returncode}'}")


def _reason(text):
    """Give the line that says most: pip's ERROR, or the end of a traceback."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [""])[-1]
