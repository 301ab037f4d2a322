"""Norms of examples by the emulated kernels, against their definition.

Tests of tests/test_norms.py and test_norms_values.py with the fixture `place` run here as well.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

import bnext

from .. import activations
from ..activations import ACTIVATIONS, SLOPE
from ..fake_cuda import Array, InterfaceArray
from ..norms import (
    CENTERED,
    DATA,
    DTYPES,
    LAYOUTS,
    RESIDUAL,
    UNIT,
    Cells,
    Rows,
    assert_all_same_bits,
    both_passes,
    drawn,
    param,
)
from ..test_norms import test_nothing_gives_nothing  # noqa: F401
from ..test_norms_values import (  # noqa: F401
    test_constant_rows_are_the_bias,
    test_eps_of_rms_is_that_of_the_arithmetic,
    test_large_means_of_rows,
    test_rows_at_the_ends_of_float32,
    test_what_is_not_finite_stays_in_its_slab,
)
from . import gpu
from .norms import CELLS, HERE, MODULE
from .there import LARGE, SMALL, There, launches_of

pytestmark = pytest.mark.usefixtures("emulated")
F4 = np.float32

# Warps with a row each, blocks with one; units of 16 bytes and single values; rows that a small
# device keeps in part; more rows than blocks, and fewer; one value a row.
ROWS = (
    ((7, 20), 1), ((1, 1), 1), ((3, 1), 1), ((33, 17), 1), ((2, 5, 3, 8), 2), ((150, 64), 1),
    ((70, 260), 1), ((3, 1001), 1), ((13,), 1), ((3, 2, 31), 3), ((2, 1536), 1), ((3, 4104), 1),
)  # fmt: skip
# Slabs of one block, of a cluster's, of several rounds of a grid; groups of one channel, of planes
# that no unit divides, of rows that several groups share, of rows wider than a block's columns.
FEW = [
    ((3, 8, 5, 7), 8), ((4, 12, 4, 9), 3), ((2, 6, 64, 65), 2), ((2, 66, 3, 3), 2),
    ((3, 64, 7), 16), ((5, 20), 4), ((2, 3, 9000), 3),
]  # fmt: skip


@pytest.fixture
def place():
    return HERE


@pytest.fixture
def isa():
    """The kernels are the same on every instruction set."""


@CENTERED
@DATA
def test_rows(rng, dtype, centered):
    for (shape, dims), device in itertools.product(ROWS, (SMALL, LARGE)):
        inputs, where = drawn(rng, Rows(dims, centered), shape, dtype), There(Array, device)
        inputs.norm.assert_are_right(where.both(inputs), inputs, where)


LONG_ROWS = [
    *((dtype, centered, (5, 6400)) for dtype in DTYPES for centered in (True, False)),
    (np.float64, True, (130, 1600)),  # in several slots
]


@pytest.mark.parametrize(("name", "adds"), [(None, False), ("relu", True), ("gelu", False)])
@pytest.mark.parametrize(("dtype", "centered", "shape"), LONG_ROWS)
def test_rows_whose_columns_have_no_room(rng, shape, dtype, centered, name, adds):
    """A launch of their own makes sums of columns; the same bits again."""
    inputs = drawn(rng, Rows(1, centered), shape, dtype, name=name, adds=adds)
    results = HERE.both(inputs)
    if name is None:
        inputs.norm.assert_are_right(results, inputs, HERE)
    else:
        inputs.norm.assert_are_activated(results, inputs)
    requests = launches_of(MODULE, lambda: assert_all_same_bits(HERE.both(inputs), results))
    assert [what for what, _ in requests].count("run") == 4  # with forward's


def test_long_rows_at_the_ends_of_float32(rng):
    """Their columns' sums are of xhat, whose size is usual; as on the CPU."""
    inputs = drawn(rng, Rows(), (6, 6400))
    inputs.x[...] *= np.array([1, 1e37, 1e-38, 1e20, 1, 1e-30], F4)[:, None]
    found, expected = HERE.both(inputs), both_passes(inputs)
    for one, other in ((found.dweight, expected.dweight), (found.dbias, expected.dbias)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert np.abs(expected.dweight).max() > 1


@DATA
@pytest.mark.usefixtures("by_cells")
@pytest.mark.parametrize(("shape", "groups"), CELLS, ids=str)
def test_cells(rng, shape, groups, dtype):
    """In every layout; with a weight of 0 in a group, and without parameters."""
    for i, layout in enumerate(LAYOUTS):
        inputs = drawn(rng, Cells(groups), shape, dtype, layout=layout)
        if i % 3 == 1:
            inputs = inputs._replace(weight=None, bias=None)
        else:
            inputs.weight[0] = 0
        # The interface has no word for bfloat16.
        where = There(InterfaceArray if i == 2 and dtype is not ml_dtypes.bfloat16 else Array)
        results = where.both(inputs)
        inputs.norm.assert_are_right(results, inputs, where)
        assert results.y.strides == results.dx.strides
        if layout in ("planar", "interleaved"):
            assert results.y.strides == inputs.x.strides


ON_PATHS = [
    *(
        (*each, F4, None, layout)
        for each in FEW
        for layout in ("planar", "interleaved", "examples")
    ),
    ((2, 3, 4099), 3, np.float64, "silu", "planar"),
]  # fmt: skip


@pytest.mark.parametrize("path", gpu.PATHS)
@pytest.mark.parametrize(("shape", "groups", "dtype", "name", "layout"), ON_PATHS)
def test_every_path_of_cells(rng, shape, groups, dtype, name, layout, path):
    """Where whole passes have that path; a second call has the same bits."""
    adds = name is not None
    inputs = drawn(rng, Cells(groups), shape, dtype, name=name, adds=adds, layout=layout)
    results, refusal = gpu.results_or_refusal(path, lambda: HERE.both(inputs))
    if refusal is not None:
        assert path != "two_kernels"
        return
    if adds:
        inputs.norm.assert_are_activated(results, inputs)
    else:
        inputs.norm.assert_are_right(results, inputs, HERE)
    with bnext.cuda._forced_path(path):
        assert_all_same_bits(HERE.bits(HERE.both(inputs)), HERE.bits(results))


@pytest.mark.parametrize("device", range(1, 5))
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize(("shape", "groups"), FEW[:4], ids=str)
def test_devices_with_other_room(rng, shape, groups, layout, device):
    inputs, where = drawn(rng, Cells(groups), shape, layout=layout), There(Array, device)
    inputs.norm.assert_are_right(where.both(inputs), inputs, where)


@pytest.mark.usefixtures("by_cells")
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_addresses_that_no_unit_fits(rng, dtype, offset):
    inputs = drawn(rng, Cells(4), (3, 8, 4, 4), dtype)

    def moved(values):
        memory = np.empty(values.size + offset, values.dtype)[offset:].reshape(values.shape)
        memory[...] = values
        return memory

    moved = inputs._replace(x=moved(inputs.x), dy=moved(inputs.dy))
    inputs.norm.assert_are_right(HERE.both(moved), inputs, HERE)


@CENTERED
@RESIDUAL
@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
@DATA
def test_activated_rows(rng, dtype, name, adds, centered):
    for shape, dims in (((33, 17), 1), ((2, 3, 3, 4), 2), ((3, 1028), 1), ((1, 1), 1)):
        inputs = drawn(rng, Rows(dims, centered), shape, dtype, name=name, adds=adds)
        results = HERE.both(inputs)
        assert results.saved.activation == name
        inputs.norm.assert_are_activated(results, inputs)


# Slabs that a team of threads holds, and a longer one; groups of channels, and one for each.
ACTIVATED = (((3, 6, 5, 8), 2), ((3, 6, 5, 8), 6), ((2, 4, 33, 67), 2), ((2, 3, 4099), 3))
OF_CELLS = [
    *((np.float64, name, layout) for name in (*ACTIVATIONS, None)
      for layout in ("planar", "interleaved")),
    *((dtype, name, "planar") for dtype in UNIT if dtype is not np.float64
      for name in ("relu", "gelu", None)),
]  # fmt: skip


@RESIDUAL
@pytest.mark.parametrize(("dtype", "name", "layout"), OF_CELLS)
def test_activated_cells(rng, dtype, name, adds, layout):
    for shape, groups in ACTIVATED[: 4 if adds and dtype is np.float64 else 2]:
        inputs = drawn(rng, Cells(groups), shape, dtype, name=name, adds=adds, layout=layout)
        results = HERE.both(inputs)
        assert results.saved.activation == name
        inputs.norm.assert_are_activated(results, inputs)


@pytest.mark.parametrize("name", ACTIVATIONS)
@DATA
def test_forward_and_backward_agree_to_the_bit(rng, name, dtype):
    """Also where z is a kink, or one unit beside it: y tells on which side it was."""
    x = HERE.put(rng.standard_normal((9, 64)).astype(dtype))
    affine = HERE.put(np.ones(64, param(dtype))), HERE.put(np.zeros(64, param(dtype)))
    norm, _ = bnext.layer_norm_forward(x, 64, *affine)
    residual = HERE.put(-norm.values)  # z is near 0 in many places
    z, _ = bnext.layer_norm_forward(x, 64, *affine, residual=residual)
    z = z.values.astype(float)
    y, saved = bnext.layer_norm_forward(
        x, 64, *affine, residual=residual, activation=name, negative_slope=SLOPE
    )
    ones = HERE.put(np.ones((9, 64), dtype))
    *_, dresidual = bnext.layer_norm_backward(ones, x, saved, affine[0], residual=residual)
    act = activations.of(name)
    if act.kinks and act.kinks[0] == 0.0:
        assert ((y.values > 0) <= (dresidual.values == 1)).all()
        negative = SLOPE if name == "leaky_relu" else 0
        assert (dresidual.values[z < 0] == dtype(negative)).all()
    else:
        found = dresidual.values.astype(float)
        np.testing.assert_allclose(found, act.derivative(z), atol=2 * UNIT[dtype])
