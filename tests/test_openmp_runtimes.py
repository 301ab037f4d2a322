"""Regions on the OpenMP runtime of another library, so that a process has one pool of threads."""

import ctypes.util
import shutil
from pathlib import Path

import pytest

import bnext

from .conftest import needs_openmp
from .subprocesses import output_of

pytestmark = needs_openmp

ANOTHER = """
    import ctypes, sys
    import numpy as np
    import bnext

    rng = np.random.default_rng(0)
    # Of each layout; with 3 threads the plan has one schedule for the first and one for the others.
    shapes = (64, 20), (8, 33, 20, 20), (2, 3, 300, 300), (20_000, 33)
    arrays = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]

    def compute():
        for x, dy in arrays:
            y, saved = bnext.batch_norm_forward(x)
            yield y.tobytes()
            yield from (a.tobytes() for a in bnext.batch_norm_backward(dy, x, saved))
            yield bnext.normalize(x, saved.mean, saved.var).tobytes()

    expected = list(compute())
    other = ctypes.CDLL(sys.argv[1])
    assert bnext._core.share_openmp(sys.argv[1])
    for threads in (1, 2, 3, 7):
        other.omp_set_num_threads(threads)
        assert bnext.get_num_threads() == threads  # its default is ours
        for schedule in ("serial", "channels", "split", None):
            bnext._core.force_schedule(schedule)
            assert list(compute()) == expected, (threads, schedule)
    assert bnext._core.share_openmp(sys.argv[1])
    print(bnext.show_config(mode="dicts")["threads"]["openmp_file"])
"""


def another_runtime(folder):
    """A runtime that this process has not loaded, with threads of its own."""
    own = Path(bnext.show_config(mode="dicts")["threads"]["openmp_file"])
    if "gomp" in own.name:
        return shutil.copy(own, folder / "libanother.so")
    # LLVM's ends a process that loads a copy of it.
    return ctypes.util.find_library("gomp") or pytest.skip("needs GCC's OpenMP beside LLVM's")


def test_another_runtime_runs_the_same_code(tmp_path):
    other = another_runtime(tmp_path)
    program = ANOTHER.replace("sys.argv[1]", repr(str(other)))
    assert Path(output_of(program, BNEXT_TEAM="fixed")).name == Path(other).name


def test_a_library_without_a_runtime_is_none():
    before = bnext.show_config(mode="dicts")["threads"]
    assert not bnext._core.share_openmp("no such library")
    assert not bnext._core.share_openmp(ctypes.util.find_library("c"))
    assert bnext.show_config(mode="dicts")["threads"] == before


@pytest.mark.torch
@pytest.mark.parametrize("first", ["bnext", "torch"])
def test_one_runtime_with_torch(first):
    """In either order of imports, what sets the threads of one sets the other's."""
    program = f"""
        import {first}
        import torch, bnext.torch

        for threads in (3, 1, 2):
            torch.set_num_threads(threads)
            print(bnext.get_num_threads())
    """
    assert output_of(program).split() == ["3", "1", "2"]


@pytest.mark.torch
def test_forked_processes_compute_after_torch_did():
    """Threads of the one pool do not survive a fork, also if only PyTorch has used them."""
    program = """
        import multiprocessing, warnings
        import numpy as np
        import torch, bnext.torch

        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
        torch.set_num_threads(2)
        x = torch.randn(64, 64, 32, 32)
        torch.relu(x)

        def child(pipe):
            y = bnext.torch.BatchNorm2d(64)(x).detach().numpy()
            pipe.send(bool(np.isfinite(y).all()))  # PyTorch itself would hang

        context = multiprocessing.get_context("fork")
        ends = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(ends[1],))
        process.start()
        print(ends[0].recv() if ends[0].poll(30) else "the child hangs")
        process.kill()
    """
    assert output_of(program) == "True"


CHILD_ALONE = """
    import os, sys
    import torch
    {import_before}
    torch.set_num_threads(2)
    torch.randn(4_000_000).exp().sum()  # a region of PyTorch's, of which bnext knows nothing

    pid = os.fork()
    if pid == 0:
        import numpy as np, bnext
        x = np.random.default_rng(0).normal(size=(64, 64, 32, 32)).astype(np.float32)
        y, _ = bnext.batch_norm_forward(x)
        os._exit(0 if np.isfinite(y).all() and bnext.get_num_threads() == 1 else 3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.torch
@pytest.mark.parametrize("import_before", ["import bnext", ""], ids=["before", "in-the-child"])
def test_forked_processes_compute_after_torch_alone_did(import_before):
    """bnext gets PyTorch's runtime, and had no region before the fork, or was not even there."""
    program = CHILD_ALONE.format(import_before=import_before)
    assert output_of(program) == "0"


def test_a_fork_before_any_region_costs_no_threads():
    """Where only bnext uses its runtime, and has not yet, a child has all of its threads."""
    program = """
        import os
        import bnext

        bnext.set_num_threads(2)
        pid = os.fork()
        if pid == 0:
            os._exit(bnext.get_num_threads())
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert output_of(program) == "2"


@pytest.mark.torch
def test_flushed_subnormals_of_one_thread_change_no_bit():
    """PyTorch sets the mode of the calling thread alone; so do libraries built with -ffast-math."""
    program = """
        import numpy as np
        import torch
        import bnext

        rng = np.random.default_rng(0)
        large = rng.normal(size=(64, 64, 32, 32))
        small = large[:8, :20, 0, 0]
        cases = [
            ((values * 1e-40).astype(np.float32), None) for values in (large, small)
        ] + [
            (values.astype(np.float32), np.full(values.shape[1], 1e-38, np.float32))
            for values in (large, small)
        ]

        def compute(threads):
            bnext.set_num_threads(threads)
            for x, weight in cases:
                y, saved = bnext.batch_norm_forward(x, weight)
                yield y.tobytes()
                yield from (a.tobytes() for a in bnext.batch_norm_backward(x, x, saved, weight))

        expected = list(compute(2))
        assert torch.set_flush_denormal(True)
        print(all(list(compute(threads)) == expected for threads in (1, 2, 3)))
    """
    assert output_of(program, BNEXT_TEAM="fixed") == "True"
