"""Groups of processes: real ones, under mpiexec and with torch.distributed's gloo."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import bnext

from ..compare import assert_same_bits
from .worker import CHANNELS, STEPS, batch, layers_of, train

ROOT = pathlib.Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")
ENGINES = {
    "mpi": bool(MPIEXEC and importlib.util.find_spec("mpi4py")),
    "gloo": importlib.util.find_spec("torch") is not None,
}
# Both engines must be there, and every kind of fault is injected in two and three processes.
REQUIRED = os.environ.get("BNEXT_REQUIRE_PROCESSES")
FAULTS = int(os.environ.get("BNEXT_PROCESS_FAULTS", "3"))
SIZES = (2, 3) if REQUIRED else (2,)


@pytest.fixture(params=ENGINES)
def engine(request):
    if not ENGINES[request.param] and not REQUIRED:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def run(engine, program, size, folder, rounds=1):
    """Processes that run a program of `worker.py`; they must end by themselves."""
    package = pathlib.Path(bnext.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    worker = [sys.executable, "-m", "tests.sync.worker", engine, program, str(folder), str(rounds)]
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE,
               "stderr": subprocess.STDOUT, "text": True}  # fmt: skip
    if engine == "mpi":
        commands = [[MPIEXEC, "-n", str(size), *worker]]
    else:
        commands = [[*worker, str(rank), str(size)] for rank in range(size)]
    processes = [subprocess.Popen(command, **options) for command in commands]
    try:
        said = [process.communicate(timeout=60 + 3 * rounds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said


@pytest.mark.parametrize("size", [2, 3])
def test_processes_learn_what_one_with_the_whole_batch_learns(engine, size, tmp_path):
    said = run(engine, "train", size, tmp_path)
    files = [tmp_path / f"{rank}.npz" for rank in range(size)]
    assert all(file.exists() for file in files), said
    ranks = [dict(np.load(file)) for file in files]
    alone = train(layers_of(None), -1, size)
    # Values of 1e6 have a unit of 1e-10, and the deviation is 1; nothing more may be lost.
    close = {"rtol": 1e-9, "atol": 1e-8}
    for name, expected in alone.items():
        if name.startswith(("y-", "dx-")):
            actual = np.concatenate([rank[name] for rank in ranks])
        else:
            actual = ranks[0][name]
            for rank in ranks[1:]:
                assert_same_bits(rank[name], actual, name)
        np.testing.assert_allclose(actual, expected, **close, err_msg=name)
    assert len(alone) == 2 * (2 * STEPS + 4)
    assert batch("wide", 0, size)[0].shape[1] == CHANNELS["wide"]


# What the others are told.
KINDS = {
    "raises": "rank {culprit} raised KeyError: 'mine'",
    "other-layer": "layer 1 instead of layer 0",
    "other-direction": "forward instead of backward",
    "other-channels": "3 channels instead of 4 channels",
    "other-dtype": "float64 instead of float32",
    "late": "time-out after 1 s: not all ranks have come",
    "leaves": "time-out after 1 s: not all ranks have come",
    "dies": "",
}


@pytest.mark.timeout(120 + 6 * FAULTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_survivor_is_told(engine, kind, size, tmp_path):
    if (engine, kind) == ("mpi", "dies"):
        pytest.skip("mpiexec ends the others itself")
    rounds = 1 if kind == "dies" else FAULTS
    said = run(engine, kind, size, tmp_path, rounds)
    for rank in range(size - 1):
        file = tmp_path / f"{rank}.json"
        assert file.exists(), said
        outcomes = json.loads(file.read_text())
        assert len(outcomes) == rounds
        for result in outcomes:
            assert result["type"] == "GroupError", result
            assert KINDS[kind].format(culprit=size - 1) in result["text"]
            assert result["seconds"] < 15, "not after the time-out of 30 s"
            if kind not in ("late", "leaves", "dies"):
                assert result["rank"] == size - 1
