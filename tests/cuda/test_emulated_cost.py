"""What a call on PyTorch's tensors on a GPU costs besides its kernels: Python, plans, memory."""

import gc
import resource
import sys
import threading

import pytest

import bnext
from benchmarks import call_path_gpu

from ..python_work import functions_entered
from . import gpu
from .roads import arguments, assert_equal, both_ways, layer, torch

pytestmark = pytest.mark.usefixtures("pretended", "seeded")


# --- work -----------------------------------------------------------------------------------------


def test_functions_run_little_python():
    """Times depend on the machine; this is what they come from (benchmarks.call_path_gpu)."""
    x, dy, weight, bias, *_ = arguments((64, 20), torch.float32)
    _, saved = bnext.batch_norm_forward(x, weight, bias)
    assert functions_entered(lambda: bnext.batch_norm_forward(x, weight, bias)) <= 12
    assert functions_entered(lambda: bnext.batch_norm_backward(dy, x, saved, weight)) <= 12


def test_the_measurement_runs(monkeypatch, capsys):
    monkeypatch.setattr(call_path_gpu, "TURNS", 2)
    monkeypatch.setattr(call_path_gpu, "CALLS", 2)
    assert call_path_gpu.main([]) == 0
    assert "layer, forward and backward" in capsys.readouterr().out


def test_layers_run_little_python():
    bn = bnext.torch.BatchNorm1d(20)
    x = torch.randn(64, 20)
    leaf = x.clone().requires_grad_()
    assert functions_entered(lambda: bn(leaf)) <= 20
    bn.requires_grad_(False)
    assert functions_entered(lambda: bn(x)) <= 20


# --- plans ----------------------------------------------------------------------------------------


def test_a_call_is_planned_once(pretended):
    x = torch.empty(4096).view(torch.uint8)
    offset = -x.data_ptr() % 256
    x = x[offset : offset + 4 * 7 * 3].view(torch.float32).view(7, 3).normal_()
    out = torch.empty(4096).view(torch.uint8)
    offset = -out.data_ptr() % 256
    out = out[offset : offset + 4 * 7 * 3].view(torch.float32).view(7, 3)
    pretended.forget_plans()
    bnext.batch_norm_forward(x, out=out)
    made = pretended.plan_figures()["made"]
    for _ in range(3):
        bnext.batch_norm_forward(x, torch.ones(3), out=out)
    assert pretended.plan_figures()["made"] == made
    bnext.batch_norm_forward(x[:5], out=out[:5])
    bnext.normalize(x, torch.ones(3), torch.ones(3), out=out)
    assert pretended.plan_figures()["made"] == made + 2
    pretended.forget_plans()
    assert pretended.plan_figures()["kept"] == 0
    bnext.batch_norm_forward(x, out=out)
    assert pretended.plan_figures()["made"] == made + 3


def test_alignment_is_part_of_the_plan(roads):
    """An address of a smaller alignment takes smaller units, whatever was planned before."""
    memory = torch.randn(64 + 8 * 64)
    for start in (0, 1, 2, 3, 4, 0, 1):
        x = memory[start : start + 8 * 64].view(8, 4, 16)
        both_ways(roads, lambda x=x: bnext.batch_norm_forward(x))


def test_a_forced_path_is_part_of_the_plan(roads, pretended):
    x, dy, weight, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        y, saved = bnext.batch_norm_forward(x, weight)
        return y, saved, bnext.batch_norm_backward(dy, x, saved, weight)

    both_ways(roads, everything)
    for path in pretended.paths("forward"):
        with bnext.cuda._forced_path(path):
            before = pretended.plan_figures()["made"]
            both_ways(roads, everything)
            assert pretended.plan_figures()["made"] > before
    before = pretended.plan_figures()["made"]
    both_ways(roads, everything)
    big = torch.randn(64, 2, 40, 40)
    with bnext.cuda._forced_path("block"):
        first, _ = roads.short(bnext.batch_norm_forward, big)
        assert_equal(first, roads.general(bnext.batch_norm_forward, big)[0])
    assert issubclass(first[0], ValueError)
    assert first[1].startswith("path:")


def test_plans_are_bounded(pretended):
    most = pretended.plan_figures()["most"]
    pretended.run_kernels(False)
    try:
        for n in range(2, most + 100):
            bnext.batch_norm_forward(torch.empty(n, 1))
            assert 0 < pretended.plan_figures()["kept"] <= most
    finally:
        pretended.run_kernels(True)


def test_threads_share_the_plans(pretended):
    """Each thread has shapes of its own and one that all have, in any order; plans are dropped."""
    pretended.forget_plans()
    wrong = []

    def work(number):
        for turn in range(40):
            for x in (torch.full((3 + number, 2), 2.0), torch.full((9, 2), 2.0)):
                x[0] = 5
                y, saved = bnext.batch_norm_forward(x)
                if saved.count != len(x) or not torch.allclose(
                    y.mean(0), torch.zeros(2), atol=1e-5
                ):
                    wrong.append((number, turn))
            if turn % 10 == number:
                pretended.forget_plans()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- memory ---------------------------------------------------------------------------------------


def test_results_are_memory_of_pytorchs():
    """Whose allocator knows streams and graphs; memory that is lent cannot be resized."""
    x, dy, weight, *_ = arguments((4, 6, 3, 5), torch.float32)
    for w in (weight, None):
        y, saved = bnext.batch_norm_forward(x, w)
        for result in (y, saved.rows, *bnext.batch_norm_backward(dy, x, saved, w)):
            assert type(result) is torch.Tensor
            assert result.untyped_storage().resizable()


def test_calls_leave_nothing_behind():
    tensors = x, dy, w, b, mean, var, counter = arguments((40, 20), torch.float32)
    calls = bnext.arrays.engine_of(x)
    options = {
        "eps": 1e-5, "channel_axis": 1, "out": None, "running_mean": mean, "running_var": var,
        "momentum": 0.1, "num_batches_tracked": counter, "plain": True,
    }  # fmt: skip
    saved_type = bnext.arrays.DeviceSaved

    def run(number):
        for _ in range(number):
            y, saved = calls.forward(x, w, b, **options)
            calls.backward(dy, x, saved, w, None, plain=True)
            calls.forward(x, w, b, **options, keeps=False)
            bnext.batch_norm_forward(x, w, b, out=y)
            _, given_ones = calls.normalize_by_running(x, mean, var, w, b, 1e-5, 1, None)
            calls.backward_constant(dy, given_ones, None, None)
            with pytest.raises(TypeError):
                calls.forward(x, w, b.double(), **options)

    def figures():
        gc.collect()
        alive = sum(type(o) is saved_type for o in gc.get_objects())
        tensors_alive = sum(type(o) is torch.Tensor for o in gc.get_objects())
        return [sys.getrefcount(t) for t in (*tensors, None.__class__)], alive, tensors_alive

    run(3)
    before = figures()
    run(30)
    assert figures() == before


def test_the_workspace_is_given_back(pretended):
    """Two kernels take one: 24 KB for 500 channels, 480 MB for all calls if it were kept."""
    x = torch.randn(2, 500)
    with bnext.cuda._forced_path("two_kernels"):
        for _ in range(3):
            bnext.batch_norm_forward(x)
        pretended.run_kernels(False)
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(20_000):
                bnext.batch_norm_forward(x)
        finally:
            pretended.run_kernels(True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KB


@pytest.mark.parametrize("shape", [(6, 5, 7), (9, 5)])
@pytest.mark.parametrize("path", ["block", "cluster", "cooperative", "chunked", "two_kernels"])
def test_batches_are_counted_once_on_every_path(pretended, path, shape):
    """By the kernel that moves the running statistics."""
    bn = layer(shape, torch.float32)
    with torch.no_grad():
        for expected in (1, 2, 3):
            assert gpu.forced(path, lambda: bn(torch.randn(shape))).shape == shape
            assert bn.num_batches_tracked == expected
