"""What sessions are made of: times, environments that stand on others, output that is looked at."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import nox

from . import behind

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
OUTPUT = BUILD / "output"  # what programs printed, by session
TORCH = "torch==2.13.0"
JAX = "jax==0.10.2"

os.environ.setdefault("OMP_NUM_THREADS", "2")
# Modules are compiled where they are imported: of PyTorch, JAX and what they need, most never are.
os.environ.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_COMPILE="0", PYTHONUNBUFFERED="1")

# Threads of tests sleep where they wait for each other. By default the runtimes of OpenMP spin, and
# beside other processes a thread spins until the one it waits for has a processor: three quarters
# of the time of tests of teams. No result depends on it. Measurements, README.md's first command
# and the wheels beside PyTorch wait as users' programs do, and so do tests of adaptive teams.
TESTING = {"OMP_WAIT_POLICY": "passive"}

_began = time.monotonic()
_environments = {}  # of the sessions that this run of nox has finished


def check(function=None, **options):
    """Register a session. It prints how long it took, with the making of its environment."""
    if function is None:
        return functools.partial(check, **options)

    @functools.wraps(function)
    def timed(session):
        global _began
        function(session)
        seconds, _began = time.monotonic() - _began, time.monotonic()
        if options.get("venv_backend") != "none":
            _environments[function.__name__] = packages_of(session)
        print(f"=== {function.__name__}: {seconds:.0f} s", flush=True)
        behind.look(session)

    return nox.session(**options)(timed)


@contextmanager
def step(name):
    """Print the name of a part of a session, and how long it took."""
    begin = time.monotonic()
    print(f"=== {name}", flush=True)
    yield
    print(f"=== {name}: {time.monotonic() - begin:.0f} s", flush=True)


@contextmanager
def within(session, seconds, what):
    """Fail where something takes longer than that.

    README.md gives times of an idle machine. A shared one takes several times as long, at times:
    the limits tell what hangs, or does its work twice, from what waits for a processor.
    """
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    print(f"{what} took {took:.0f} s", flush=True)
    if took >= seconds:
        session.error(f"{what} took {took:.0f} s; at most {seconds} are allowed")


def python_of(session):
    """The interpreter of a session's environment, for scripts that take one."""
    return str(Path(session.bin) / "python")


def packages_of(session):
    """The folder of packages of a session's environment."""
    (folder,) = Path(session.virtualenv.location).glob("lib/python3*/site-packages")
    return folder


def stand_on(session, *names):
    """Let an environment see what sessions before it have installed, bnext among it.

    A session that runs by itself, without those before it in `CHECKS`, installs the same.
    """
    missing = [name for name in names if name not in _environments]
    below = [str(_environments[name]) for name in reversed(names) if name in _environments]
    if below:
        (packages_of(session) / "below.pth").write_text("\n".join(below) + "\n")
    for name in missing:
        install(session, name)


def install(session, name):
    """Install what the session `name` has for those that stand on it."""
    if name == "tests":
        session.install(".[test]", env=build_with_foreign_functions(session))
    elif name == "torch":
        session.install(TORCH, "onednn-devel-cpu-gomp>=2023.2", "array-api-compat>=1.12", "mypy")
        session.install("onnx", "onnxscript", "onnxruntime")
    elif name == "libraries":
        session.install(JAX, "flax==0.12.8", "equinox==0.13.8")
    elif name == "processes":
        session.install("mpi4py>=4", "mpich")
    else:
        session.error(f"no session stands on {name}")


def build_with_foreign_functions(session):
    """The variables by which pip builds everything there is on a CPU, warnings as errors.

    The headers of XLA's foreign functions come with jaxlib, which most environments do not have.
    """
    more = " ".join(foreign_functions(session))
    return cache() | {"CMAKE_ARGS": f"-DBNEXT_WERROR=ON {more}"}


def foreign_functions(session):
    """The arguments by which CMake finds the headers of jaxlib, without an installation of it."""
    folder = BUILD / "jaxlib"
    headers = folder / "jaxlib" / "include"
    if not headers.is_dir():
        mine = BUILD / f"jaxlib.{os.getpid()}"  # another nox may run behind this one
        jaxlib = JAX.replace("jax", "jaxlib", 1)
        session.run("pip", "install", "--quiet", "--no-deps", "--target", str(mine), jaxlib)
        try:
            mine.rename(folder)
        except OSError:  # the other was quicker
            shutil.rmtree(mine)
    return "-DBNEXT_XLA=ON", f"-DBNEXT_XLA_INCLUDE_DIR={headers}"


def cache():
    """The variables by which builds of this checkout, and of copies of it, share their objects.

    An install, the wheels of several interpreters and the C++ benchmarks have the same kernels: the
    same sources and flags. The cache is where `.ci/run` has put it: empty at first, unless it is
    kept from run to run.
    """
    if "CCACHE_DIR" not in os.environ:
        return {}
    return {
        "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
        "CCACHE_BASEDIR": str(ROOT),
        "CCACHE_NOHASHDIR": "1",
        "CXX": os.environ.get("CXX", "g++"),  # CMake by itself takes c++, builds by pip take g++
    }


def shell(session, command, tee=None, **options):
    """Run a line of a shell in the environment of a session; return what it printed."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / (tee or f"{session.name}.txt")
    script = f"{{ {command}\n}} 2>&1 | tee {shlex.quote(str(path))}"
    session.run("bash", "-euo", "pipefail", "-c", script, external=True, **options)
    return path.read_text(encoding="utf-8", errors="replace")


def pytest(session, *arguments, python="python -m pytest", tee=None, env=None):
    """Run tests; return what pytest printed."""
    return shell(session, f"{python} {shlex.join(arguments)}", tee, env=TESTING | (env or {}))


def nothing_skipped(session, printed, what, may_be_missing="nothing"):
    """Fail where tests were skipped or not run: everything that they want is installed.

    `may_be_missing` is a pattern of what tests may need all the same.
    """
    missing = [
        line for line in not_run(printed) if not re.search(rf"that need ({may_be_missing}) ", line)
    ]
    if "skipped" in printed.rstrip().rpartition("\n")[2] or missing:
        session.error(f"a test of {what} was skipped, or not run: {'; '.join(missing)}")


def not_run(printed):
    """What pytest could not run, by what it needs."""
    lines = re.findall(r"^not run here: (.*)$", printed, re.MULTILINE)
    return [part.strip() for line in lines for part in line.split(";")]


def built(session, name):
    """The folder of a build that another session has made."""
    folder = BUILD / name
    if not folder.is_dir():
        session.error(f"build/{name} is missing: a session `build_...` makes it (nox -l)")
    return folder


def readme_gives(session, command):
    """Fail unless README.md has a line, word for word: what is tested is what users are told."""
    if command not in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        session.error(f"README.md lacks the line: {command}")


def clean_checkout(folder):
    """Put the files of the latest commit into a folder, as a clone has them."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)
