"""On a GPU: norms of examples in every library, over dtypes, layouts and paths."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import bnext

from ..norms import (
    CENTERED,
    DATA,
    RESIDUAL,
    Cells,
    Place,
    Rows,
    assert_all_same_bits,
    drawn,
)
from . import gpu

pytestmark = pytest.mark.gpu

# Warps and blocks with a row each; units and single values; rows and sums of columns that exceed
# shared memory; one value a row.
ROWS = (
    ((70, 20), 1), ((3, 1), 1), ((1000, 17), 1), ((2, 5, 3, 8), 2), ((4099, 64), 1), ((13,), 1),
    ((700, 1001), 1), ((600, 4096), 1), ((3, 16_392), 1), ((2, 70_001), 1), ((5, 200_000), 1),
)  # fmt: skip
# What a stage of ResNet-50 has, few large slabs, many small ones, odd extents, rows.
CELLS = (
    ((8, 256, 56, 56), 32), ((8, 2048, 7, 7), 32), ((2, 32, 64, 64, 32), 32), ((64, 20), 4),
    ((1, 4, 520, 521), 1), ((33, 30, 9, 7), 5), ((257, 48, 3), 48), ((3, 6000, 2, 2), 2),
)  # fmt: skip


@pytest.fixture
def place(library):
    """Where the arrays of a library are."""
    there = Place()
    there.on_gpu, there.put, there.get = True, library.put, library.get
    return there


def bits_of(place, inputs):
    """Results of both passes, fetched, and what is saved of them."""
    results = place.both(inputs)
    return results, results.arrays | {"rows": place.get(results.saved.rows)}


@pytest.mark.parametrize(("shape", "dims"), ROWS, ids=str)
@CENTERED
@DATA
def test_gpu_rows(place, rng, dtype, centered, shape, dims):
    inputs = drawn(rng, Rows(dims, centered), shape, dtype)
    results, bits = bits_of(place, inputs)
    inputs.norm.assert_are_right(results, inputs, place)
    for _ in range(3):
        assert_all_same_bits(bits_of(place, inputs)[1], bits)


@CENTERED
@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", None])
@DATA
def test_gpu_activated_rows(place, rng, dtype, name, adds, centered):
    for shape in ((33, 17), (300, 1028), (2, 70_001)):
        inputs = drawn(rng, Rows(1, centered), shape, dtype, name=name, adds=adds)
        inputs.norm.assert_are_activated(place.both(inputs), inputs, sums=False)


@DATA
@pytest.mark.parametrize("layout", ["planar", "interleaved", "channels", "examples"])
@pytest.mark.parametrize(("shape", "groups"), CELLS, ids=str)
def test_gpu_cells(library, place, shape, groups, layout, dtype, rng):
    if library.name == "cupy" and dtype is ml_dtypes.bfloat16:
        pytest.skip("CuPy has no bfloat16")
    inputs = drawn(rng, Cells(groups), shape, dtype, layout=layout)
    inputs.norm.assert_are_right(place.both(inputs), inputs, place)


@pytest.mark.parametrize("path", gpu.PATHS)
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("channels", [4, 64])
def test_gpu_every_path_of_instance_norm(place, channels, layout, path, rng):
    """A second call has the same bits."""
    inputs = drawn(rng, Cells(channels), (3, channels, 130, 66), layout=layout)
    results, bits = gpu.forced(path, lambda: bits_of(place, inputs))
    inputs.norm.assert_are_right(results, inputs, place)
    assert_all_same_bits(gpu.forced(path, lambda: bits_of(place, inputs))[1], bits)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("groups", [4, 32])
def test_gpu_a_call_gives_the_same_bits_every_time(place, groups, layout, rng):
    inputs = drawn(rng, Cells(groups), (8, 32, 61, 64), name="silu", layout=layout)
    _, first = bits_of(place, inputs)
    for _ in range(5):
        assert_all_same_bits(bits_of(place, inputs)[1], first)


def test_gpu_row_modules_in_a_graph(tensors):
    """A training step is captured and replayed; eager bits."""
    torch = tensors.xp
    import bnext.torch

    for kind, dtype in itertools.product(("LayerNorm", "RMSNorm"), (torch.float32, torch.bfloat16)):
        norm = getattr(bnext.torch, kind)(1024, device=gpu.DEVICE, dtype=dtype)
        x, dy = (torch.randn(512, 1024, device=gpu.DEVICE, dtype=dtype) for _ in range(2))

        def step(norm=norm, x=x, dy=dy):
            leaf = x.detach().requires_grad_()
            y = norm(leaf)
            return [y, *torch.autograd.grad(y, (leaf, *norm.parameters()), dy)]

        eager = step()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(captured, eager, strict=True):
            assert torch.equal(one, other)


def test_gpu_row_layers(library, rng):
    _, x, dy, weight, bias, *_ = drawn(rng, Rows(), (40, 33))
    norm = bnext.LayerNorm(33)
    norm.weight[...], norm.bias[...] = weight, bias
    expected = [norm(x), norm.backward(dy), norm.weight_grad, norm.bias_grad]
    there = library.put(x)
    norm.to(there)
    found = [norm(there), norm.backward(library.put(dy)), norm.weight_grad, norm.bias_grad]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(library.get(one), other, rtol=1e-5, atol=2e-5)


def test_layers_of_tensors_are_pytorchs(tensors):
    """And so are modules, with what autograd makes of them; the running statistics move alike."""
    torch = tensors.xp
    for shape in ((16, 32, 20, 21), (16, 32, 700)):
        norms = [
            (bnext.torch.GroupNorm(8, 32, device=gpu.DEVICE), torch.nn.GroupNorm(8, 32)),
            (
                getattr(bnext.torch, f"InstanceNorm{len(shape) - 2}d")(
                    32, affine=True, track_running_stats=True, device=gpu.DEVICE
                ),
                getattr(torch.nn, f"InstanceNorm{len(shape) - 2}d")(
                    32, affine=True, track_running_stats=True
                ),
            ),
        ]
        for ours, theirs in norms:
            x, dy = (torch.randn(shape) for _ in range(2))
            found = []
            for norm, device in ((ours, gpu.DEVICE), (theirs, "cpu")):
                leaf = x.to(device).requires_grad_()
                y = norm(leaf)
                y.backward(dy.to(device))
                values = [y.detach(), leaf.grad, *(p.grad for p in norm.parameters())]
                found.append([each.cpu() for each in (*values, *norm.buffers())])
            torch.testing.assert_close(*found, rtol=2e-4, atol=2e-4)
