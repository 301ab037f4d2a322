"""Starts processes that measure, under mpiexec and with gloo, and collects what they found."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import bnext
from benchmarks.barrier.results import usable_processors

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds for all that one number of processes does


def mpiexec():
    """The one of this Python's environment, or of the system."""
    return shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")


def reason_against(engine):
    """Why processes of this engine cannot be measured here; empty if they can."""
    if engine == "gloo":
        return "" if importlib.util.find_spec("torch") else "PyTorch is not installed"
    if not importlib.util.find_spec("mpi4py"):
        return "mpi4py is not installed"
    return "" if mpiexec() else "there is no mpiexec"


def measure(engine, scale_name, scale, log):
    """Every number of processes: rows, messages, and the version of the engine."""
    rows, messages, version = [], [], ""
    for size in scale.processes_on(usable_processors()):
        log(f"{size} processes, {engine}")
        found = run(engine, size, scale_name)
        rows += found["rows"]
        messages += found["messages"]
        version = found["version"]
    return rows, messages, version


def run(engine, size, scale_name):
    """What rank 0 of so many processes found.

    Raises
    ------
    RuntimeError
        They did not come to an end, with what they said.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = _wait_for(_commands(engine, size, scale_name, folder))
        path = pathlib.Path(folder) / "found.json"
        if not path.is_file():
            raise RuntimeError(f"{size} processes, {engine}: {said[-2000:] or 'no result in time'}")
        return json.loads(path.read_text())


def _commands(engine, size, scale_name, folder):
    worker = [sys.executable, "-m", "benchmarks.barrier.worker", engine, scale_name, folder]
    if engine == "mpi":
        return [[mpiexec(), "-n", str(size), *worker]]
    store = os.path.join(folder, "store")
    return [[*worker, store, str(rank), str(size)] for rank in range(size)]


def _wait_for(commands):
    """Run the commands until all have ended or one has failed; what they printed."""
    with tempfile.TemporaryFile("w+") as output:
        options = {"cwd": ROOT, "env": _environment(), "stdout": output, "stderr": output}
        processes = [subprocess.Popen(command, **options) for command in commands]
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline:
                codes = [process.poll() for process in processes]
                if all(code == 0 for code in codes) or any(codes):
                    break  # where one has failed, the others may wait for it
                time.sleep(0.02)
        finally:
            for process in processes:
                process.terminate()  # mpiexec ends its processes itself
            for process in processes:
                process.wait()
        output.seek(0)
        return output.read()


def _environment():
    package = pathlib.Path(bnext.__file__).parents[1]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(package), str(ROOT), *filter(None, inherited)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
