"""Groups of processes: real ones, under mpiexec and with torch.distributed's gloo."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import bnext

from ..compare import assert_same_bits
from ..limits import TEST, WIDE
from ..optional import MPIEXEC, marked
from .worker import CHANNELS, STEPS, batch, layers_of, train

ROOT = pathlib.Path(__file__).parents[2]
ENGINES = ("mpi", "gloo")
# Both engines must be there, and every kind of fault is injected in two and three processes.
REQUIRED = os.environ.get("BNEXT_REQUIRE_PROCESSES")
FAULTS = int(os.environ.get("BNEXT_PROCESS_FAULTS", "3"))
SIZES = (2, 3) if REQUIRED else (2,)


@pytest.fixture(params=marked(ENGINES))
def engine(request):
    return request.param


def run(engine, program, size, folder, rounds=1, module="tests.groups.worker", **more):
    """Processes that run a program of `module`; they must end by themselves.

    Returns what they said, and their exit statuses.
    """
    package = pathlib.Path(bnext.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)]), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    task = {"engine": engine, "program": program, "folder": str(folder), "rounds": rounds, **more}
    worker = [sys.executable, "-m", module]
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE,
               "stderr": subprocess.STDOUT, "text": True}  # fmt: skip
    if engine == "mpi":
        commands = [[MPIEXEC, "-n", str(size), *worker, json.dumps(task)]]
    else:
        tasks = [task | {"rank": rank, "size": size} for rank in range(size)]
        commands = [[*worker, json.dumps(each)] for each in tasks]
    processes = [subprocess.Popen(command, **options) for command in commands]
    try:
        said = [process.communicate(timeout=WIDE + 10 * rounds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


def outcomes_of(folder, rank, said):
    file = folder / f"{rank}.json"
    assert file.exists(), said
    return json.loads(file.read_text())


def assert_learn_as_one(engine, size, folder):
    """Processes with shards of the batches; what one has after the whole ones, and statuses."""
    said, statuses = run(engine, "train", size, folder)
    files = [folder / f"{rank}.npz" for rank in range(size)]
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
    return alone, statuses


def assert_first_is_told(engine, kind, folder):
    """Of two processes, the second has a fault of this kind."""
    said, _ = run(engine, kind, 2, folder)
    (result,) = outcomes_of(folder, 0, said)
    assert result["type"] == "GroupError", result
    assert KINDS[kind][0].format(culprit=1) in result["text"]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_learn_what_one_with_the_whole_batch_learns(engine, size, tmp_path):
    alone, statuses = assert_learn_as_one(engine, size, tmp_path)
    assert set(statuses) == {0}
    assert len(alone) == 2 * (2 * STEPS + 4)
    assert batch("wide", 0, size)[0].shape[1] == CHANNELS["wide"]


# What the others are told, and what becomes of the culprit, if not the same.
KINDS = {
    "raises": ("rank {culprit} raised KeyError: 'mine'", "KeyError"),
    "other-layer": ("rank {culprit} differs from rank 0: layer 1 instead of layer 0", ""),
    "other-direction": (
        "rank {culprit} differs from rank 0: step 2 instead of step 1, forward instead of backward",
        "",
    ),
    "other-channels": ("3 channels instead of 4 channels", ""),
    "other-dtype": ("float64 instead of float32", ""),
    "late": ("time-out after 2 s: rank {culprit} is missing", ""),
    "leaves": ("rank {culprit} has left the group", "NoneType"),
    "closes": ("rank {culprit} has closed the group", "NoneType"),
    "goes": ("time-out after 2 s: rank {culprit} is missing", "NoneType"),
    "raises-and-one-is-late": (
        "rank {culprit} raised KeyError: 'mine'; time-out after 2 s: rank {before} is missing",
        "KeyError",
    ),
    "interrupted": ("rank {culprit} raised KeyboardInterrupt", "KeyboardInterrupt"),
    "dies": ("the exchange failed: rank {culprit} is missing", None),
}


# mpiexec ends the others itself where one dies.
FAULTS_OF = [
    pytest.param(*engine.values, kind, marks=engine.marks)
    for engine in marked(ENGINES)
    for kind in KINDS
    if (engine.id, kind) != ("mpi", "dies")
]


@pytest.mark.timeout(TEST + 10 * FAULTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("engine", "kind"), FAULTS_OF, indirect=["engine"])
def test_every_survivor_is_told(engine, kind, size, tmp_path):
    """All of them, which rank it is because of, and without waiting for a time-out."""
    said, _ = run(engine, kind, size, tmp_path, FAULTS)
    culprit = size - 1
    text, of_the_culprit = KINDS[kind]
    text = text.format(culprit=culprit, before=culprit - 1)
    outcomes = [outcomes_of(tmp_path, rank, said) for rank in range(size)]
    assert [len(of_rank) for of_rank in outcomes] == [FAULTS] * size
    for results in zip(*outcomes, strict=True):
        if of_the_culprit != "":
            results, its = results[:-1], results[-1]
            assert its is of_the_culprit is None or its["type"] == of_the_culprit
        for result in results:
            assert result["type"] == "GroupError", result
            assert text in result["text"]
            assert result["rank"] == culprit
        assert len({result["reason"] for result in results}) == 1


def test_who_is_waited_for_and_comes_is_not_missing(engine, tmp_path):
    """The roll has been called then, and things go on."""
    said, _ = run(engine, "slow", 2, tmp_path, 2)
    for rank in range(2):
        assert [result["type"] for result in outcomes_of(tmp_path, rank, said)] == ["NoneType"] * 2


@pytest.mark.mpi
def test_mpiexec_ends_all_when_one_dies(tmp_path):
    said, statuses = run("mpi", "dies", 3, tmp_path)
    assert statuses != [0], said
    pids = [int((tmp_path / f"{rank}.pid").read_text()) for rank in range(3)]
    deadline = time.monotonic() + WIDE
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    assert not (tmp_path / "2.json").exists()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("dies", "the exchange failed, as when a rank dies: "),
        ("freezes", "time-out after 2 s: not all ranks have come"),
    ],
)
def test_where_the_store_is_lost_with_a_rank_nobody_is_named_and_nobody_hangs(kind, text, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    said, _ = run("gloo", kind, 3, tmp_path, store=store, culprit=0)
    for rank in (1, 2):
        (result,) = outcomes_of(tmp_path, rank, said)
        assert result["type"] == "GroupError"
        assert text in result["text"]
        assert result["rank"] is None
