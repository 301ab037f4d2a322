"""What tests need that may be missing: markers say it, and this module looks for it.

``@pytest.mark.torch`` selects a test by ``-m torch``, and before the test runs, asks for PyTorch.
`NEEDS` has every marker; pyproject.toml explains them. A module whose imports need something asks
for it by the same function.

A test whose need is missing is neither passed nor failed nor skipped: the end of the run says in
one line what could not be run here, and why. Skipped is only what somebody should look at. The
hooks are in conftest.py.
"""

import collections
import importlib
import importlib.util
import os
import shutil
import sys

import pytest

from bnext import _core, cuda

# Distributions that have another name than their module.
INSTALLED_AS = {"haiku": "dm-haiku", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")
COUNTED = pytest.StashKey[dict]()


class NotHere(pytest.skip.Exception):
    """Ends a test, or a whole file of tests, that needs what is not there."""

    def __init__(self, what, remedy):
        super().__init__(f"needs {what}: {remedy}", allow_module_level=True)
        self.what, self.remedy = what, remedy


def import_torch():
    """torch, or a test that is not run; with BNEXT_REQUIRE_TORCH=1 its absence is a failure."""
    return _imported("torch", "PyTorch", "BNEXT_REQUIRE_TORCH")


def import_jax():
    """jax, or a test that is not run; with BNEXT_REQUIRE_JAX=1 its absence is a failure."""
    return _imported("jax", "JAX", "BNEXT_REQUIRE_JAX")


def import_extra(name):
    """A module of an extra, or a test that is not run. The extra `test` has all but these two."""
    return _imported(name, name, None)


def require_libraries(*names):
    """A test that is not run without these modules; BNEXT_REQUIRE_LIBRARIES=1 makes that an error.

    They are looked for, and not imported.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("BNEXT_REQUIRE_LIBRARIES") == "1":
        raise ModuleNotFoundError(f"No module named {missing[0]!r}", name=missing[0])
    if missing:
        packages = [INSTALLED_AS.get(name, name) for name in missing]
        raise NotHere(" and ".join(packages), f"pip install {' '.join(packages)}")


def require_foreign_functions():
    """A test that is not run by a build that knows nothing of JAX, which BNEXT_REQUIRE_JAX=1 is."""
    if _core.foreign_targets() is None and os.environ.get("BNEXT_REQUIRE_JAX") != "1":
        raise NotHere("foreign functions for JAX", "a build with jaxlib installed, or BNEXT_XLA=ON")


def require_onednn():
    """A test that is not run where oneDNN cannot be had, and why."""
    from benchmarks import shared_libraries

    try:
        shared_libraries.onednn()
    except shared_libraries.UnavailableError as reason:
        raise NotHere("oneDNN", str(reason)) from None


def _imported(name, title, required):
    if required and os.environ.get(required) == "1":
        return importlib.import_module(name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        also = f"; {required}=1 makes its absence an error" if required else ""
        raise NotHere(title, f"pip install {name.partition('.')[0]}{also}") from None


def import_emulated():
    """The CUDA kernels compiled for the CPU, or a test that is not run."""
    return _built("bnext._cuda_emulated")


def import_kernels():
    """`bnext._cuda`, or the same made for the CPU; or a test that is not run."""
    return _built("bnext._cuda", "bnext._cuda_emulated")


def _built(*names):
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise NotHere("CUDA kernels for the CPU", "a build with BNEXT_CUDA_EMULATION=ON")


def require_gpu():
    """A test that is not run where bnext finds no GPU."""
    if not cuda.is_available():
        raise NotHere("a GPU", cuda.reason().partition(";")[0].partition("\n")[0])


def require_mpi():
    """A test that is not run without MPI; BNEXT_REQUIRE_PROCESSES=1 makes that an error."""
    _require_engine("MPI", "mpi4py mpich", importlib.util.find_spec("mpi4py") and MPIEXEC)


def require_gloo():
    """A test that is not run without gloo; BNEXT_REQUIRE_PROCESSES=1 makes that an error."""
    _require_engine("PyTorch", "torch", importlib.util.find_spec("torch"))


def _require_engine(title, packages, found):
    if not found and not os.environ.get("BNEXT_REQUIRE_PROCESSES"):
        raise NotHere(title, f"pip install {packages}")


# --- markers --------------------------------------------------------------------------------------

NEEDS = {
    "gloo": require_gloo,
    "gpu": require_gpu,
    "jax": import_jax,
    "libraries": require_libraries,
    "mpi": require_mpi,
    "onednn": require_onednn,
    "torch": import_torch,
}


def marked(names):
    """Parameters by these names; a name that is a marker has that marker."""
    return [
        pytest.param(name, id=name, marks=[getattr(pytest.mark, name)] if name in NEEDS else [])
        for name in names
    ]


def marks_of(modules):
    """The markers of a test that needs these modules."""
    return [
        getattr(pytest.mark, name) if name in NEEDS else pytest.mark.libraries(name)
        for name in modules
    ]


def mark_by_fixtures(item):
    """A test that takes the fixture `torch` or `jax` has the marker of that name."""
    for name in NEEDS.keys() & set(item.fixturenames):
        item.add_marker(name)


def require_what_is_marked(item):
    """Ask for all that the markers of a test say."""
    for mark in item.iter_markers():
        if mark.name in NEEDS:
            NEEDS[mark.name](*mark.args)


# --- hooks of pytest ------------------------------------------------------------------------------


def not_here(report, call):
    """Note that a report is of a test, or a file, that is not run here."""
    error = call.excinfo.value if call is not None and call.excinfo else None
    if isinstance(error, NotHere):
        report.not_here = (error.what, error.remedy)
        return True
    return False


def count(config, what, remedy, kind):
    """Count a test or a file that is not run."""
    counted = config.stash.setdefault(COUNTED, collections.defaultdict(collections.Counter))
    counted[what, remedy][kind] += 1


def hand_over(config):
    """In a worker process of pytest-xdist: let the process that reports know the counts."""
    if hasattr(config, "workeroutput"):
        config.workeroutput["not_here"] = [
            (what, remedy, dict(kinds))
            for (what, remedy), kinds in config.stash.get(COUNTED, {}).items()
        ]


def take_over(config, node):
    """Add the counts of a worker process: its own tests, and the files that every worker found."""
    counted = config.stash.setdefault(COUNTED, collections.defaultdict(collections.Counter))
    for what, remedy, kinds in getattr(node, "workeroutput", {}).get("not_here", ()):
        kinds_so_far = counted[what, remedy]
        kinds_so_far["test"] += kinds.get("test", 0)
        kinds_so_far["file"] = max(kinds_so_far["file"], kinds.get("file", 0))


def line_of(config):
    """What was not run here, in one line; empty if everything was."""
    parts = []
    by_what = collections.defaultdict(collections.Counter)
    remedies = {}
    for (what, remedy), kinds in config.stash.get(COUNTED, {}).items():
        by_what[what].update(kinds)
        remedies.setdefault(what, remedy)
    for what, kinds in by_what.items():
        numbers = [
            f"{kinds[kind]:,} {kind}{'' if kinds[kind] == 1 else 's'}"
            for kind in ("test", "file")
            if kinds[kind]
        ]
        parts.append(f"{' and '.join(numbers)} that need {what} ({remedies[what]})")
    return f"not run here: {'; '.join(parts)}" if parts else ""
