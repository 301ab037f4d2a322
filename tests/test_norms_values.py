"""Norms of examples on every instruction set: values and gradients against their definition."""

import functools

import ml_dtypes
import numpy as np
import pytest

import bnext

from .activations import ACTIVATIONS
from .compare import assert_same_bits
from .conftest import runtimes
from .everywhere import EVERY, OF_SETS, SOME, assert_same_bits_everywhere
from .norms import (
    CENTERED,
    DATA,
    DTYPES,
    LAYOUTS,
    RESIDUAL,
    UNIT,
    Cells,
    Rows,
    both_passes,
    check_close,
    drawn,
    param,
)

# Many short rows, few long ones (of several pieces), none, lengths that fit nothing.
ROWS = (
    ((7, 20), 1), ((1, 1), 1), ((3, 1), 1), ((33, 17), 1), ((2, 5, 3, 4), 2), ((130, 64), 1),
    ((5, 4097), 1), ((2, 70_001), 1), ((13,), 1), ((3, 2, 31), 3), ((70, 128), 1),
)  # fmt: skip
# One value of a channel, small planes, planes of odd lengths, few long slabs, slabs wider than a
# block of channels, one example, one group, a group for each channel.
CELLS = (
    ((64, 20), 4), ((7, 6, 1), 3), ((5, 12, 2, 2), 4), ((3, 8, 5, 7), 8), ((2, 6, 64, 65), 2),
    ((1, 4, 130, 130), 1), ((4, 32, 14, 14), 8), ((2, 600, 3, 3), 2), ((7, 33, 2, 1), 11),
    ((1, 3, 33_001), 3), ((3, 5, 1, 2, 17), 5),
)  # fmt: skip


@CENTERED
@DATA
def test_rows(rng, isa, dtype, centered):
    for shape, dims in ROWS:
        inputs = drawn(rng, Rows(dims, centered), shape, dtype)
        inputs.norm.assert_are_right(both_passes(inputs), inputs)


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@DATA
@pytest.mark.parametrize(("shape", "groups"), CELLS, ids=str)
def test_cells(rng, shape, groups, dtype):
    """Layouts and instruction sets take turns; a weight of 0, and none."""
    for i, layout in enumerate(LAYOUTS):
        inputs = drawn(rng, Cells(groups), shape, dtype, layout=layout)
        if i in (1, 4):
            inputs = inputs._replace(weight=None, bias=None)
        else:
            inputs.weight[0] = 0
        chosen = runtimes()
        isa, threads = chosen[(i + len(shape)) % len(chosen)]
        bnext.set_num_threads(threads)
        with bnext.use_isa(isa):
            results = both_passes(inputs)
            assert bnext._core.last_isa() == isa
        inputs.norm.assert_are_right(results, inputs)


# Pieces that end within a pack, rows of several pieces, rows shorter than a pack.
LONG = (2, 70_001)
OF_ROWS = (((33, 17), 1), ((2, 5, 3, 4), 2), ((5, 519), 1), (LONG, 1), ((1, 1), 1))


@pytest.mark.parametrize("kind", ["layer", "rms", "cells"])
@RESIDUAL
@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
@DATA
def test_activated(rng, isa, dtype, name, adds, kind):
    if kind == "cells":
        given = [(Cells(groups), shape, LAYOUTS[(len(name or "") + k) % len(LAYOUTS)])
                 for k, (shape, groups) in enumerate(CELLS)]  # fmt: skip
    else:
        given = [(Rows(dims, kind == "layer"), shape, "planar") for shape, dims in OF_ROWS
                 if shape != LONG or name in ("relu", "gelu")]  # fmt: skip
    for norm, shape, layout in given:
        inputs = drawn(rng, norm, shape, dtype, name=name, adds=adds, layout=layout)
        norm.assert_are_activated(both_passes(inputs), inputs)


# --- data at the ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_large_means_of_rows(place, dtype, rng, isa):
    """Of a mean that is thousands of times the deviation, nothing cancels."""
    for width in (100, 3001):
        inputs = drawn(rng, Rows(), (5, width), dtype)._replace(weight=None, bias=None)
        x = rng.standard_normal((5, width)) + (1e4 if dtype is np.float32 else 1e8)
        inputs = inputs._replace(x=x.astype(dtype))
        results, expected = place.both(inputs), inputs.norm.expected(inputs)
        check_close(results.y, expected.y, (8 if place.on_gpu else 4) * UNIT[dtype])
        check_close(results.dx, expected.dx, 8 * UNIT[dtype])
        scale = np.abs(expected.dweight).max()
        check_close(results.dweight, expected.dweight, 16 * UNIT[dtype], scale)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_large_means_of_cells(rng, layout):
    """Where mean / std is 1e8 in float64, and 1e3 in float32; each slab at a place of its own."""
    for dtype, far in ((np.float64, 1e8), (np.float32, 1e3)):
        norm = Cells(4)
        inputs = drawn(rng, norm, (3, 8, 6, 7), dtype, layout=layout)
        inputs = inputs._replace(weight=None, bias=None)
        x = rng.standard_normal((3, 8, 6, 7))
        x += far * (1 + np.arange(12)).reshape(3, 4, 1, 1).repeat(2, axis=1)
        inputs.x[...] = x
        results, expected = both_passes(inputs), norm.expected(inputs)
        norm.assert_close(results.y, expected.y, norm.Y[dtype])
        norm.assert_close(results.dx, expected.dx, norm.DX[dtype])


@CENTERED
@pytest.mark.parametrize("scale", [1e-35, 1e-41, 1e30, 1e37])
def test_rows_at_the_ends_of_float32(place, scale, centered, rng, isa):
    x = (rng.standard_normal((3, 50)) * scale).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32) * np.float32(scale if scale < 1 else 1)
    inputs = drawn(rng, Rows(1, centered), x.shape)
    inputs = inputs._replace(x=x, dy=dy, weight=None, bias=None)
    results, expected = place.both(inputs, eps=0.0), inputs.norm.expected(inputs, eps=0)
    check_close(results.y, expected.y, 4 * UNIT[np.float32])
    if np.abs(expected.dx).max() > 1e-30:
        check_close(results.dx, expected.dx, 8 * UNIT[np.float32])


@CENTERED
@pytest.mark.parametrize("scale", [1e-37, 1e35])
def test_activated_rows_at_the_ends_of_float32(rng, isa, scale, centered):
    """Rows that are written in double, between others."""
    inputs = drawn(rng, Rows(1, centered), (5, 300))._replace(weight=None, bias=None, name="silu")
    inputs.x[...] = rng.standard_normal((5, 300))
    inputs.x[2] *= np.float32(scale)
    found = both_passes(inputs, eps=0.0)
    wide = both_passes(inputs.mapped(np.float64), eps=0.0)
    for one, two in ((found.y, wide.y), (found.dx, wide.dx)):
        size = np.abs(two).max(axis=1, keepdims=True)
        within = size < np.finfo(np.float32).max  # gradients of small rows are beyond
        assert (np.abs(one.astype(float) - two) <= 1e-5 * size)[within[:, 0]].all()


@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_cells_at_the_ends_of_float32(rng, isa, name, adds):
    """Cells that are written in double."""
    norm = Cells(4)
    inputs = drawn(rng, norm, (2, 4, 33), name=name, adds=adds)._replace(weight=None, bias=None)
    inputs.x[...] = rng.standard_normal((2, 4, 33))
    inputs.x[:, 2] *= np.float32(1e-37)
    inputs.x[:, 3] *= np.float32(1e37)
    z = np.float64(norm.argument(inputs, eps=0.0))
    inputs.dy[np.abs(z) < 1e-3] = 0
    found = both_passes(inputs, eps=0.0)
    wide = both_passes(inputs.mapped(np.float64), eps=0.0)
    for what in ("y", "dx", "dresidual")[: 2 + adds]:
        one, two = getattr(found, what), getattr(wide, what)
        assert (np.abs(one - two) <= 4e-5 * np.abs(two).max(axis=-1, keepdims=True)).all(), what


# A norm, a shape, a slab, and some of its values.
SLABS = {
    "rows": (Rows(), (9, 100), 4, [(4, 17), (4, 0)]),
    "cells": (Cells(4), (3, 8, 5, 7), (1, slice(2, 4)), [(1, 2, 3, 4)]),
}


@pytest.mark.parametrize("activated", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("kind", "layout"), [("rows", "planar"), ("cells", "planar"), ("cells", "interleaved")]
)
def test_what_is_not_finite_stays_in_its_slab(place, rng, isa, kind, layout, value, activated):
    norm, shape, slab, indices = SLABS[kind]
    hit = np.zeros(shape, bool)
    hit[slab] = True
    for dtype in DTYPES:
        inputs = drawn(rng, norm, shape, dtype, name="silu" if activated else None,
                       adds=activated, layout=layout)  # fmt: skip
        clean = place.both(inputs)
        for index in indices:
            broken = inputs.x.copy(order="K")
            broken[index] = value
            found = place.both(inputs._replace(x=broken))
            for what in ("y", "dx", "dresidual")[: 2 + activated]:
                got, expected = getattr(found, what), getattr(clean, what)
                assert np.isnan(got[hit].astype(float)).all()
                assert got[~hit].tobytes() == expected[~hit].tobytes()
            assert np.count_nonzero(~np.isfinite(place.get(found.saved.mean))) == 1


# --- what values depend on ------------------------------------------------------------------------


def bits(inputs):
    return both_passes(inputs).bits


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@CENTERED
@pytest.mark.parametrize(
    ("name", "adds"),
    [("relu", False), ("gelu", False), ("relu", True), ("gelu", True), (None, False)],
)
@pytest.mark.parametrize("shape", [(600, 257), (3, 200_003), (40, 5000)], ids=str)
def test_the_same_bits_of_rows_everywhere(rng, shape, name, adds, centered):
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        inputs = drawn(rng, Rows(1, centered), shape, dtype, name=name, adds=adds)
        runs = [run for run in OF_SETS if name is None or run[0] != 4]
        assert_same_bits_everywhere(functools.partial(bits, inputs), runs, inputs.x.dtype)


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["planar", "interleaved", "channels"])
def test_the_same_bits_of_cells_everywhere(rng, dtype, layout):
    for shape, groups in (((64, 20), 4), ((3, 12, 7, 9), 3), ((1, 4, 90, 91), 2)):
        inputs = drawn(rng, Cells(groups), shape, dtype, layout=layout)
        assert_same_bits_everywhere(functools.partial(bits, inputs), EVERY, shape)


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize(
    ("name", "adds"),
    [("relu", False), ("silu", False), ("relu", True), ("silu", True), (None, True)],
)
@DATA
def test_the_same_bits_of_activated_cells_everywhere(rng, dtype, name, adds):
    for shape, groups in CELLS[3:8]:
        for layout in LAYOUTS[:2]:
            inputs = drawn(rng, Cells(groups), shape, dtype, name=name, adds=adds, layout=layout)
            assert_same_bits_everywhere(functools.partial(bits, inputs), SOME, shape)


# Lanes of several short planes are added up together: as many as fill a register, and the rest.
@DATA
def test_sums_of_a_channel_are_its_own(rng, isa, dtype):
    for inner in (16, 17, 49, 196, 255, 256):
        inputs = drawn(rng, Cells(19), (1, 19, inner), dtype)
        together = both_passes(inputs)
        for c in range(19):
            alone = both_passes(inputs._replace(
                norm=Cells(1), x=inputs.x[:, c : c + 1].copy(), dy=inputs.dy[:, c : c + 1].copy(),
                weight=inputs.weight[c : c + 1].copy(), bias=inputs.bias[c : c + 1].copy(),
            ))  # fmt: skip
            for what in ("dx", "dweight", "dbias"):
                whole = getattr(together, what)
                part = whole.take([c], 1 if whole.ndim > 1 else 0)
                assert getattr(alone, what).tobytes() == part.tobytes()


def test_weights_of_other_sizes(rng):
    """Some 0, some far below the others, all of a group 0."""
    inputs = drawn(rng, Cells(2), (4, 8, 33), np.float64)
    inputs.weight[:] = 1, 0, 1e-30, -2, 0, 0, 1e-200, 3e-200
    results, expected = both_passes(inputs), inputs.norm.expected(inputs)
    assert np.max(np.abs(results.dx[:, :4] - expected.dx[:, :4])) < 1e-14
    assert np.max(np.abs(results.dx[:, 4:] - expected.dx[:, 4:])) < 1e-214
    assert np.max(np.abs(results.dweight - expected.dweight)) < 1e-12
    assert not both_passes(inputs._replace(weight=np.zeros(8))).dx.any()


def test_eps_of_rms_is_that_of_the_arithmetic(place, rng):
    for dtype in DTYPES:
        x = place.put((rng.standard_normal((3, 8)) * 1e-4).astype(dtype))
        eps = np.finfo(param(dtype)).eps
        y, saved = bnext.rms_norm_forward(x, 8)
        assert saved.eps == eps
        assert_same_bits(place.get(y), place.get(bnext.rms_norm_forward(x, 8, eps=float(eps))[0]))


def test_constant_rows_are_the_bias(place):
    x, bias = np.full((3, 10), 7.25, np.float32), np.arange(10, dtype=np.float32)
    y, saved = bnext.layer_norm_forward(place.put(x), 10, None, place.put(bias), eps=0.0)
    assert (place.get(y) == bias).all()
    assert (place.get(saved.rstd) == 0).all()
