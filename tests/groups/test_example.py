"""The example: threads and processes reach the weights of the single process."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import bnext

from ..limits import WIDE
from ..optional import MPIEXEC, marked
from .test_processes import ROOT

EXAMPLE = str(ROOT / "examples" / "data_parallel.py")
PYTHON = [sys.executable, EXAMPLE]
WAYS = {
    "threads": PYTHON,
    "mpi": [str(MPIEXEC), "-n", "2", *PYTHON],
    "gloo": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", EXAMPLE],
}


def weights_of(command, file):
    environment = os.environ | {
        "PYTHONPATH": str(pathlib.Path(bnext.__file__).parents[1]), "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    subprocess.run([*command, "--save", str(file)], env=environment, check=True, timeout=WIDE)
    with np.load(file) as weights:
        return dict(weights)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return weights_of([*PYTHON, "alone"], tmp_path_factory.mktemp("alone") / "weights.npz")


@pytest.mark.parametrize("way", marked(WAYS))
def test_reaches_the_same_weights(way, alone, tmp_path):
    weights = weights_of([*WAYS[way], way], tmp_path / "weights.npz")
    assert len(weights) == 5
    for name in alone:
        np.testing.assert_allclose(weights[name], alone[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (
            ["--save", "no/x.npz"],
            2,
            "error: --save: expected a file in an existing folder, got no/",
        ),
        (["--save", "/dev/full/x.npz"], 2, "error: --save: expected a file in an existing folder"),
        pytest.param(
            ["gloo"],
            1,
            "data_parallel.py: gloo: expected to be started by torchrun",
            marks=pytest.mark.gloo,
        ),
        (["mpi"], 1, "data_parallel.py: import of mpi4py halted"),
    ],
)
def test_a_mistake_is_told_before_the_work(words, status, line):
    # What hides a module from the example: a finder that says it is not there.
    hidden = "import runpy, sys; sys.modules['mpi4py'] = None; sys.argv = sys.argv[1:]; "
    program = f"{hidden}runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment["PYTHONPATH"] = str(pathlib.Path(bnext.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program, EXAMPLE, *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == status
    assert line in result.stderr.splitlines()[-1]
