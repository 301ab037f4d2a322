"""On a GPU: layer and RMS normalization, in every library, against long double and PyTorch."""

import itertools

import numpy as np
import pytest

import bnext

from .. import activations
from .. import row_reference as reference
from ..compare import assert_same_bits
from ..test_layer_norm import DTYPES, DX, UNIT, Y, both, check_close, data, param
from ..test_layer_norm_activated import argument, assert_close, backward, drawn, forward, rows
from . import gpu

pytestmark = pytest.mark.gpu

DATA = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
CENTERED = pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
# Warps and blocks with a row each; units and single values; rows and sums of columns that exceed
# shared memory; one value a row.
SHAPES = (
    ((70, 20), 1), ((3, 1), 1), ((1000, 17), 1), ((2, 5, 3, 8), 2), ((4099, 64), 1), ((13,), 1),
    ((700, 1001), 1), ((600, 4096), 1), ((3, 16_392), 1), ((2, 70_001), 1), ((5, 200_000), 1),
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@CENTERED
@DATA
def test_gpu_rows_against_the_reference(library, rng, dtype, centered, shape):
    (shape, dims), unit, eps = shape, UNIT[dtype], 1e-5
    x, dy, weight, bias = data(rng, shape, dims, dtype)
    of = reference.forward(x, dims, weight, bias if centered else None, eps=eps, centered=centered)
    given = [library.put(each) for each in (x, dy, weight, bias)]

    def call():
        return both(*given[:2], dims, *given[2:], eps, centered)

    y, saved, *gradients = call()
    largest = np.abs(of.xhat).max() * np.abs(weight).max() + np.abs(bias).max()
    check_close(library.get(y), of.y, (Y[dtype] + 1) * unit, largest)
    close = 4 * UNIT[param(dtype)]
    rstd = library.get(saved.rstd).ravel()
    np.testing.assert_allclose(rstd, of.rstd[:, 0].astype(float), rtol=close)
    exact = reference.backward(dy, x, dims, weight, eps=eps, centered=centered)
    scale = of.rstd * np.abs(dy.astype(float)).max() * np.abs(weight).max() * 2
    scale = scale * (1 + np.abs(of.xhat).max() ** 2 / 4)
    dx, *parameters = (library.get(each) for each in gradients)
    check_close(dx, exact[0], (DX[dtype] + 2) * unit, scale)
    size = np.abs(dy.astype(float)).max() * max(1, np.abs(of.xhat).max()) * np.sqrt(len(of.rstd))
    bound = (32 if dtype is np.float64 else 6) * UNIT[param(dtype)]
    for found, expected in zip(parameters, exact[1:], strict=False):
        check_close(found.ravel(), expected, bound, size)
    for _ in range(3):
        again_y, again_saved, *again = call()
        assert_same_bits(library.get(again_saved.rows), library.get(saved.rows))
        for one, other in zip((again_y, *again), (y, *gradients), strict=True):
            assert_same_bits(library.get(one), library.get(other))


@CENTERED
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", None])
@DATA
def test_gpu_rows_activated(library, rng, dtype, name, adds, centered):
    act = activations.of(name)
    for shape, dims in (((33, 17), 1), ((300, 1028), 1), ((2, 70_001), 1)):
        x, dy, weight, bias, residual = drawn(rng, shape, dims, dtype, name, adds, centered)
        there = [library.put(each) for each in (x, dy, weight, bias)]
        added = None if residual is None else library.put(residual)
        y, saved = forward(there[0], dims, *there[2:], name, added, centered)
        dx, *others = backward(there[1], there[0], saved, there[2], added)
        z = argument(x, dims, weight, bias, residual, centered)
        of = reference.forward(x, dims, eps=1e-5, centered=centered)
        g = rows(dy, dims) * act.derivative(z)
        exact = reference.backward(
            g, rows(x, dims), 1, weight.ravel(), eps=1e-5, centered=centered
        )  # fmt: skip
        xhat = np.abs(np.float64(of.xhat)).max(axis=1, keepdims=True)
        largest = xhat * np.abs(weight).max() + np.abs(bias).max() + np.abs(z).max()
        assert_close(library.get(y), act.value(z), 8, dtype, largest, "y")
        if adds:
            units = 0 if name is None else 16
            scale = np.abs(rows(dy, dims)).max() * (1 + largest)
            assert_close(library.get(others[-1]), g, units, dtype, scale, "dresidual")
        scale = np.float64(of.rstd) * np.abs(rows(dy, dims)).max() * np.abs(weight).max() * 2
        scale = scale * (1 + xhat**2) * (1 + largest)
        assert_close(library.get(dx), np.float64(exact[0]), 16, dtype, scale, "dx")


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
    x, dy, weight, bias = data(rng, (40, 33), 1, np.float32)
    norm = bnext.LayerNorm(33)
    norm.weight[...], norm.bias[...] = weight, bias
    expected = [norm(x), norm.backward(dy), norm.weight_grad, norm.bias_grad]
    there = library.put(x)
    norm.to(there)
    found = [norm(there), norm.backward(library.put(dy)), norm.weight_grad, norm.bias_grad]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(library.get(one), other, rtol=1e-5, atol=2e-5)
