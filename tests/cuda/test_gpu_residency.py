"""On a GPU: what the device says of residency, launches that it refuses, and the environment."""

import numpy as np
import pytest

import bnext
from bnext.rows import ROW

from ..compare import assert_is_forward
from ..subprocesses import output_of, run_python
from . import gpu

pytestmark = pytest.mark.gpu

SHAPE = (64, 8, 128, 128)


def limits_without_a_device(kernels, **changed):
    """Limits with the numbers of device 0 that ask no device."""
    there = kernels.limits(0)
    names = (
        "compute_capability", "multiprocessors", "shared_per_block", "shared_per_multiprocessor",
        "cluster", "cooperative",
    )  # fmt: skip
    return kernels.Limits(**({name: getattr(there, name) for name in names} | changed))


def plan_of(kernels, x, y, limits, path=None):
    strides, addresses = [x.stride(), y.stride()], [x.data_ptr(), y.data_ptr()]
    return kernels.plan("forward", "float32", tuple(x.shape), strides, addresses, 1, limits, path)


@pytest.mark.parametrize("path", gpu.PATHS)
@pytest.mark.parametrize("shape", [SHAPE, (64, 256, 14, 14), (4096, 64), (64, 20)], ids=str)
def test_plans_are_those_of_a_device_with_room_for_all(tensors, shape, path):
    kernels = gpu.kernels()
    x = tensors.xp.empty(shape, device=gpu.DEVICE)

    def launches(limits):
        try:
            return plan_of(kernels, x, x, limits, path).launches
        except ValueError as error:
            return str(error)

    assert launches(kernels.limits(0)) == launches(limits_without_a_device(kernels))


@pytest.mark.parametrize("captured", [False, True])
def test_a_grid_that_is_too_large(tensors, rng, captured):
    """Refused, and run as two kernels; in a graph as well, or the capture fails as a whole."""
    torch, kernels = tensors.xp, gpu.kernels()
    values = rng.normal(1, 2, SHAPE).astype(np.float32)
    x = tensors.put(values)
    y = torch.full_like(x, float("nan"))
    statistics = torch.empty((len(ROW), SHAPE[1]), dtype=torch.float64, device=gpu.DEVICE)
    # Each test its own grid: a refusal is remembered.
    limits = limits_without_a_device(kernels, multiprocessors=1001 + captured, cluster=1)
    plan = plan_of(kernels, x, y, limits)
    assert plan.path == "cooperative"
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=gpu.DEVICE)
    given = {"x": x, "y": y, "statistics": statistics, "workspace": workspace}
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}

    def call():
        kernels.launch(plan, 0, torch.cuda.current_stream().cuda_stream, **addresses, eps=1e-5)

    if captured:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:
            assert y.isnan().all()
            call()
        else:
            assert y.isnan().all()
            graph.replay()
    else:
        call()
    tensors.synchronize()
    assert_is_forward(tensors.get(y), values)


@pytest.mark.parametrize("variables", [{"BNEXT_CUDA_SYNC": "1"}, {"BNEXT_CUDA_RESERVE": "16"}])
def test_environment(tensors, variables):
    program = """
        import torch
        import bnext
        bn = bnext.BatchNorm2d(8).to(torch.empty(0, device="cuda"))
        x = torch.randn(64, 8, 128, 128, device="cuda")
        expected = torch.nn.functional.batch_norm(x, None, None, training=True)
        print(torch.allclose(bn(x), expected, atol=1e-4))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = bn(x)
        graph.replay()
        print(torch.allclose(y, expected, atol=1e-4))
    """
    assert output_of(program, **variables).split() == ["True", "True"]
    assert bnext.cuda.is_available()


def test_a_wait_that_nothing_ends(tensors):
    """Arrivals are lost, since the counters are zeroed meanwhile: an error, after seconds."""
    program = """
        import time
        import torch
        from bnext import _cuda as kernels

        x = torch.randn(64, 16, 128, 128, device="cuda")
        y = torch.empty_like(x)
        strides, addresses = [x.stride()] * 2, [x.data_ptr(), y.data_ptr()]
        plan = kernels.plan(
            "forward", "float32", tuple(x.shape), strides, addresses, 1, kernels.limits(0),
            "cooperative",
        )
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")
        statistics = torch.empty(len(ROW), 16, dtype=torch.float64, device="cuda")
        counters = workspace[: 2 * 4 * plan.launches[0]["slabs"]]
        zeros = torch.zeros(counters.shape, dtype=torch.uint8).pin_memory()
        working, zeroing = torch.cuda.Stream(), torch.cuda.Stream()

        def call():
            given = {"x": x, "y": y, "statistics": statistics, "workspace": workspace}
            given = {name: tensor.data_ptr() for name, tensor in given.items()}
            kernels.launch(plan, 0, working.cuda_stream, **given, eps=1e-5)

        call()
        torch.cuda.synchronize()
        with torch.cuda.stream(zeroing):
            torch.cuda._sleep(100_000_000)  # all that follows is enqueued meanwhile
            working.wait_stream(zeroing)
            for _ in range(500):  # by the copy engine: every multiprocessor is taken
                counters.copy_(zeros, non_blocking=True)
        for _ in range(10):
            call()
        begin = time.monotonic()
        try:
            torch.cuda.synchronize()
            print("ended well")
        except RuntimeError:
            print(3 < time.monotonic() - begin < 60)
        try:
            call()
        except RuntimeError as error:
            print(error)
    """
    lines = run_python(program).stdout.splitlines()
    assert lines[0] == "True"
    assert lines[1].startswith("forward (kernel fused, float32, planar, unit 4; path cooperative")
    assert "a block waits for the others for more than 4 s" in lines[1]
