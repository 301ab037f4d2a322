"""The example: threads and processes reach the weights of the single process."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import bnext

from ..limits import WIDE
from ..optional import require_engine
from .test_processes import ENGINES, MPIEXEC, ROOT

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


@pytest.mark.parametrize("way", WAYS)
def test_reaches_the_same_weights(way, alone, tmp_path):
    if way in ENGINES:
        require_engine(way, ENGINES[way])
    weights = weights_of([*WAYS[way], way], tmp_path / "weights.npz")
    assert len(weights) == 5
    for name in alone:
        np.testing.assert_allclose(weights[name], alone[name], rtol=0, atol=1e-10)
