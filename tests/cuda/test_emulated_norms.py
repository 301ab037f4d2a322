"""Norms of examples by the emulated kernels: functions and layers, against their definition.

What stands in tests/test_norms.py and test_norms_values.py for the CPU runs here as well.
"""

import contextlib
import copy
import itertools
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.arrays import DeviceSaved

from .. import activations
from ..activations import ACTIVATIONS, SLOPE
from ..compare import assert_same_bits
from ..fake_cuda import Array, InterfaceArray
from ..norms import (
    CENTERED,
    DATA,
    LAYOUTS,
    RESIDUAL,
    UNIT,
    Cells,
    Results,
    Rows,
    assert_all_same_bits,
    backward,
    check_close,
    drawn,
    forward,
    param,
)
from ..optional import import_emulated
from ..test_norms import (  # noqa: F401
    EVERY_NORM,
    FUNCTIONS,
    NORMS,
    X,
    assert_refused,
    layer_of,
    test_nothing_gives_nothing,
)
from ..test_norms_values import (  # noqa: F401
    test_constant_rows_are_the_bias,
    test_eps_of_rms_is_that_of_the_arithmetic,
    test_large_means_of_rows,
    test_rows_at_the_ends_of_float32,
    test_what_is_not_finite_stays_in_its_slab,
)
from . import gpu
from .there import LARGE, SMALL, There, launches_of, step_of

MODULE = import_emulated()
F4 = np.float32
HERE = There()
# Warps with a row each, blocks with one; units of 16 bytes and single values; rows that a small
# device keeps in part; more rows than blocks, and fewer; one value a row.
ROWS = (
    ((7, 20), 1), ((1, 1), 1), ((3, 1), 1), ((33, 17), 1), ((2, 5, 3, 8), 2), ((150, 64), 1),
    ((70, 260), 1), ((3, 1001), 1), ((13,), 1), ((3, 2, 31), 3), ((2, 1536), 1), ((3, 4104), 1),
)  # fmt: skip
# One value of a channel, small planes, planes of odd lengths, few long slabs, slabs wider than a
# block's columns, one example, one group, a group for each channel.
CELLS = (
    ((9, 20), 4), ((7, 6, 1), 3), ((5, 12, 2, 2), 4), ((3, 8, 5, 7), 8), ((2, 6, 64, 65), 2),
    ((1, 4, 90, 130), 1), ((4, 32, 7, 14), 8), ((2, 130, 3, 3), 2), ((7, 33, 2, 1), 11),
    ((1, 3, 33_001), 3), ((3, 5, 1, 2, 17), 5), ((2, 24, 4, 4), 3),
)  # fmt: skip
# Slabs of one block, of a cluster's, of several rounds of a grid; groups of one channel, of planes
# that no unit divides, of rows that several groups share, of rows wider than a block's columns.
FEW = [
    ((3, 8, 5, 7), 8), ((4, 12, 4, 9), 3), ((2, 6, 64, 65), 2), ((2, 66, 3, 3), 2),
    ((3, 64, 7), 16), ((5, 20), 4), ((2, 3, 9000), 3),
]  # fmt: skip


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(bnext.cuda, "_load", lambda: MODULE)


@pytest.fixture
def place():
    return HERE


@pytest.fixture
def isa():
    """The kernels are the same on every instruction set."""


@pytest.fixture(params=[False, True], ids=["chosen", "cells"])
def by_cells(request):
    """Whether cells are the channels of kernels also where a team of threads could hold a slab."""
    with bnext.cuda._forced_path("two_kernels") if request.param else contextlib.nullcontext():
        yield


# --- values ---------------------------------------------------------------------------------------


@CENTERED
@DATA
def test_rows(rng, dtype, centered):
    for (shape, dims), device in itertools.product(ROWS, (SMALL, LARGE)):
        inputs, where = drawn(rng, Rows(dims, centered), shape, dtype), There(Array, device)
        inputs.norm.assert_are_right(where.both(inputs), inputs, where)


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


# --- data at the ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 50, 99])
def test_one_outlier_is_no_pilot(index, rng):
    inputs = drawn(rng, Rows(), (4, 100))._replace(weight=None, bias=None)
    inputs.x[...] = rng.standard_normal((4, 100))
    inputs.x[:, index] += 1e4
    results, of = HERE.both(inputs, eps=0.0), inputs.norm.of_rows(inputs.x, 0)
    check_close(results.y, of.y, 4 * UNIT[F4])
    rstd = results.saved.rstd.values
    np.testing.assert_allclose(rstd, of.rstd[:, 0].astype(float), rtol=1e-6)


@CENTERED
def test_gradients_at_the_upper_end_of_float32(centered, rng):
    """Sums of what a thread has leave float32's range, and the row's sums do not."""
    inputs = drawn(rng, Rows(1, centered), (3, 64))._replace(weight=None, bias=None)
    inputs.x[...] = rng.standard_normal((3, 64))
    inputs.dy[...] = rng.choice([-1.0, 1.0], (3, 64)) * 3e38
    expected = inputs.norm.expected(inputs, eps=1e10)
    check_close(HERE.both(inputs, eps=1e10).dx, expected.dx, 8 * UNIT[F4])


@pytest.mark.usefixtures("by_cells")
def test_a_mean_far_from_zero(rng):
    """Nothing cancels: neither in a cell nor between the cells of a slab."""
    for layout, groups in itertools.product(("planar", "interleaved"), (6, 3)):
        inputs = drawn(rng, Cells(groups), (2, 6, 9, 11), layout=layout)
        inputs = inputs._replace(weight=None, bias=None)
        far = 1e6 * (1 + np.arange(6)[:, None, None])
        inputs.x[...] = rng.standard_normal((2, 6, 9, 11)) + far
        results = HERE.both(inputs)
        saved, slabs = results.saved, inputs.x.astype(np.longdouble).reshape(2, groups, -1)
        mean, var = slabs.mean(axis=2), slabs.var(axis=2)
        np.testing.assert_allclose(saved.mean.values, mean.astype(float), rtol=1e-9)
        np.testing.assert_allclose(saved.var.values, var.astype(float), rtol=1e-5)
        expected = inputs.norm.expected(inputs).y
        assert np.abs(results.y - expected).max() < (1e-4 if groups == 6 else 1e-5)
        assert np.isfinite(results.dx).all()


@pytest.mark.usefixtures("by_cells")
def test_constant_slabs_have_no_variance(rng):
    for layout, groups in itertools.product(("planar", "interleaved"), (1, 2, 6)):
        inputs = drawn(rng, Cells(groups), (2, 6, 7, 5), layout=layout)
        inputs = inputs._replace(weight=None, bias=None)
        inputs.x[...] = inputs.dy[...] = 0.1
        results = HERE.both(inputs)
        assert not results.saved.m2.values.any()
        assert not results.y.any()


@DATA
@pytest.mark.usefixtures("by_cells")
def test_small_weights_in_a_group(rng, dtype):
    """Weights of 0, and far below the others, beside large ones."""
    inputs = drawn(rng, Cells(2), (2, 8, 3, 5), dtype)
    inputs.weight[:] = (0, 1e-30, -0.0, 1, 2, -1e-38, 1, 0)
    inputs.norm.assert_are_right(HERE.both(inputs), inputs, HERE)
    assert not HERE.both(inputs._replace(weight=0 * inputs.weight)).dx.any()


@DATA
@pytest.mark.parametrize("shape", [(0, 6, 3, 5), (2, 6, 0, 5), (0, 6)], ids=str)
def test_empty_cells_are_the_cpus(rng, shape, dtype):
    inputs = drawn(rng, Cells(3), shape, dtype)
    results, (_, on_the_cpu) = HERE.both(inputs), forward(inputs)
    assert results.y.shape == results.dx.shape == shape
    assert results.y.dtype == inputs.x.dtype
    np.testing.assert_array_equal(results.saved.rows.values, on_the_cpu.rows)
    assert results.saved.count == on_the_cpu.count
    assert results.dweight.dtype == param(dtype)
    assert not results.dweight.any()
    assert not results.dbias.any()


# --- bits, arguments ------------------------------------------------------------------------------


@DATA
@EVERY_NORM
def test_parameters_may_be_absent(rng, kind, dtype):
    inputs = drawn(rng, *NORMS[kind], dtype)
    inputs.weight[...], inputs.bias[...] = 1, 0
    absent = HERE.both(inputs._replace(weight=None, bias=None))
    assert_all_same_bits(HERE.bits(absent), HERE.bits(HERE.both(inputs)))


@CENTERED
@DATA
def test_the_same_bits_every_time(rng, dtype, centered):
    for shape in ((150, 64), (70, 260), (2, 4104)):
        inputs = drawn(rng, Rows(1, centered), shape, dtype)
        first, *others = (HERE.bits(HERE.both(inputs)) for _ in range(3))
        for other in others:
            assert_all_same_bits(other, first)


@pytest.mark.parametrize("make", [Array, InterfaceArray], ids=["dlpack", "interface"])
def test_any_strides_and_out_of_rows(make, rng):
    """Single values are not summed in the order of units."""
    inputs, where = drawn(rng, Rows(), (6, 5, 8)), There(make)
    expected, x = HERE.both(inputs).arrays, inputs.x
    padded = np.zeros((6, 5, 13), F4)
    padded[..., 2:10] = x  # rows that begin at no unit
    apart = np.zeros((30, 24), F4)
    apart[:, :8] = x.reshape(30, 8)
    others = {"dy": np.asfortranarray(inputs.dy), "weight": inputs.weight[::-1].copy()[::-1]}
    for other in (np.asfortranarray(x), padded[..., 2:10], apart[:, :8].reshape(x.shape),
                  x[:, ::-1].copy()[:, ::-1]):  # fmt: skip
        found = where.both(inputs._replace(x=other, **others)).arrays
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-6)
    for out in (np.empty_like(x), padded[..., 4:12], np.asfortranarray(x)):
        out, given = where.put(out), inputs.mapped(where.put)
        y, saved = forward(given, out=out)
        assert y is out
        np.testing.assert_allclose(y.values, expected["y"], rtol=1e-5, atol=2e-6)
        own = where.put(np.empty_like(out.values))
        dx, *_ = backward(given, saved, out=own)
        assert dx is own
        np.testing.assert_allclose(dx.values, expected["dx"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_out_of_cells(rng, layout):
    inputs = drawn(rng, Cells(3), (3, 12, 7, 9), layout=layout)
    plain, given = HERE.both(inputs), inputs.mapped(HERE.put)
    y_into, dx_into = (HERE.put(np.full_like(inputs.x, np.nan)) for _ in range(2))
    y, saved = forward(given, out=y_into)
    dx, *_ = backward(given, saved, out=dx_into)
    assert y is y_into
    assert dx is dx_into
    assert_same_bits(y.values, plain.y)
    assert_same_bits(dx.values, plain.dx)


def test_values_between_rows_are_left_alone(rng):
    x = rng.standard_normal((6, 8)).astype(F4)
    out = np.full((6, 12), 7, F4)
    bnext.layer_norm_forward(HERE.put(x), 8, out=HERE.put(out[:, :8]))
    assert (out[:, 8:] == 7).all()
    assert np.array_equal(out[:, :8], bnext.layer_norm_forward(HERE.put(x), 8)[0].values)


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "gelu", "relu"])
@RESIDUAL
@DATA
@CENTERED
def test_row_layers(rng, dtype, name, adds, centered):
    """As on the CPU; `to` moves the parameters there and back."""
    inputs = drawn(rng, Rows(2, centered), (9, 4, 12), dtype, name=name, adds=adds)
    kind = bnext.LayerNorm if centered else bnext.RMSNorm
    layer = kind((4, 12), dtype=param(dtype), activation=name)
    HERE.assert_moves(layer, step_of(inputs), lambda dtype: 16 * UNIT[dtype])


@pytest.mark.parametrize("name", [None, "relu"])
@RESIDUAL
@pytest.mark.parametrize(("kind", "axis"), [("group", 1), ("group", -1), ("instance", 1)])
def test_cell_layers(rng, kind, name, adds, axis):
    layer, inputs = layer_of(rng, kind, name, adds)
    if axis == -1:
        layer = bnext.GroupNorm(4, 8, channel_axis=axis, activation=name, negative_slope=SLOPE)
        inputs = inputs.mapped(
            lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)) if a.ndim > 1 else a
        )
    HERE.assert_moves(layer, step_of(inputs), lambda _: 2e-5)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_instance_norm_layers_with_running_statistics(rng, momentum):
    layer = bnext.InstanceNorm2d(6, momentum=momentum, affine=True, track_running_stats=True)
    inputs = drawn(rng, Cells(6), (3, 6, 5, 7))
    moved = []

    def step(layer, put):
        layer.train()
        layer.running_mean[...], layer.running_var[...] = 0, 1
        x, dy = put(inputs.x), put(inputs.dy)
        results = [layer(x), layer.backward(dy)]
        layer.eval()
        results += [layer(x), layer.backward(dy), layer(put(inputs.x[0]))]
        moved.append(getattr(layer.running_mean, "values", layer.running_mean).any())
        copies = [layer.running_mean, layer.running_var, layer.weight_grad]
        return [*results, *map(copy.copy, copies)]

    HERE.assert_moves(layer, step, lambda _: 2e-5)
    assert all(each == (momentum is not None) for each in moved)


def test_layers_say_where_their_arrays_are(rng):
    x = rng.standard_normal((4, 8)).astype(F4)
    norm = bnext.LayerNorm(8)
    with pytest.raises(
        TypeError,
        match=r"^weight: expected an array on cuda:0, like x, got one on the CPU; the layer's "
        r"to\(x\) moves it$",
    ):
        norm(HERE.put(x))
    norm.to(HERE.put(x))
    with pytest.raises(TypeError, match=r"^weight: expected an array on"):
        norm(There(Array, LARGE).put(x))
    with pytest.raises(TypeError, match=r"^x: expected dtype float32, float16 or bfloat16, got"):
        norm(HERE.put(x.astype(np.float64)))
    x = HERE.put(rng.standard_normal((3, 6, 5, 7)).astype(F4))
    for layer in (
        bnext.GroupNorm(3, 6),
        bnext.InstanceNorm2d(6, affine=True),
        bnext.InstanceNorm2d(6, track_running_stats=True),
        bnext.InstanceNorm2d(6, track_running_stats=True).eval(),
    ):
        with pytest.raises(TypeError, match=r"the layer's to\(x\) moves it"):
            layer(x)


# --- what is saved, errors ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "silu"])
@EVERY_NORM
def test_saved_is_copied_and_pickled(rng, kind, name):
    """With copies of the parameters: an optimizer may have changed them since."""
    inputs = drawn(rng, *NORMS[kind], name=name).mapped(lambda a: HERE.put(a.copy()))
    norm, x = inputs.norm, inputs.x
    y, saved = forward(inputs)
    expected = Results(y, saved, *backward(inputs, saved)).mapped(HERE.get)
    if isinstance(norm, Rows):
        assert repr(saved) == (
            "<bnext.DeviceRowSaved of a float32 input of shape (6, 5, 40), normalized_shape (40,), "
            "on cuda:0>"
        )
        names = "shape", "normalized_shape", "eps", "centered", "activation", "residual"
    else:
        assert isinstance(saved, DeviceSaved)
        assert (saved.num_groups, saved.rows.shape) == (norm.groups, (5, 3, norm.groups))
        assert (saved.count, saved.channel_axis, saved.shape) == (280 // norm.groups, 1, x.shape)
        assert saved.batch_statistics
        names = "shape", "num_groups", "eps", "count", "activation", "residual"
        assert bnext.batch_norm_forward(x)[1].num_groups is None
    kept = inputs._replace(weight=HERE.put(inputs.weight.values.copy()))
    inputs.weight.values[...], inputs.bias.values[...] = 100, -100
    for again in (saved, copy.copy(saved), copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert repr(again) == repr(saved)
        for attribute in names:
            assert getattr(again, attribute) == getattr(saved, attribute)
        assert_same_bits(again.rows.values, saved.rows.values)
        assert_same_bits(again.mean_low.values, saved.mean_low.values)
        found = Results(y, again, *backward(kept, again)).mapped(HERE.get)
        assert_all_same_bits(found, expected)


# Errors of the CPU that name no place, and what only a GPU refuses.
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_errors_are_the_errors_of_the_cpu(kind):
    run, given, wrong = FUNCTIONS[kind]

    def put(value):
        return HERE.put(value) if isinstance(value, np.ndarray) else value

    for changed, error, text in wrong:
        there = {key: put(value) for key, value in {**given, **changed}.items()}
        if there.get("out") is not None and changed["out"] is given["x"]:
            there["out"] = there["x"]
        assert_refused(lambda there=there: run(**there), error, text)
        if kind == "group":  # to the letter
            with pytest.raises(error) as here:
                run(**{**given, **changed})
            assert_refused(lambda there=there: run(**there), error, str(here.value))
    more = ({"residual": HERE.put(given["x"][:1])}, ValueError, "residual: expected shape"), (
        {"activation": "x"}, ValueError, "activation: expected"
    )  # fmt: skip
    there = {key: put(value) for key, value in given.items()}
    for changed, error, text in more:
        assert_refused(lambda changed=changed: run(**there, **changed), error, text)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_errors_of_what_is_elsewhere(kind):
    run, given, _ = FUNCTIONS[kind]
    back = getattr(bnext, f"{kind}_norm_backward")
    of_saved = f"{kind}_norm_forward" if kind in ("layer", "rms") else ""
    on_cpu, rest = given["x"], {k: v for k, v in given.items() if k != "x"}
    x, dy, elsewhere = HERE.put(on_cpu), HERE.put(on_cpu * 2), There(Array, LARGE).put(on_cpu)
    weight = np.ones(9 if rest.get("normalized_shape") else 6, F4)
    _, of_cpu = run(on_cpu, **rest)
    _, saved = run(x, **rest)
    _, activated = run(x, **rest, activation="relu", residual=dy)
    other = {"layer": "rms", "rms": "layer", "group": "batch", "instance": "batch"}[kind]
    more = {} if other == "batch" else rest
    _, of_other = getattr(bnext, f"{other}_norm_forward")(x, **more)
    back_of_other = getattr(bnext, f"{other}_norm_backward")
    saver, of_gpu = kind, "saved: made from an input on cuda:0"
    if other == "batch":  # one error for both norms of cells
        saver, of_gpu = "group", "saved: expected what batch_norm_forward returned, got DeviceSaved"
    for call, error, text in (
        (lambda: run(x, **rest, weight=weight), TypeError, "weight: expected an array on cuda:0"),
        (lambda: run(x, **rest, residual=on_cpu), TypeError, "residual: expected an array on cuda"),
        (lambda: back(dy, x[:1], saved), ValueError, "saved: made from an input of shape"),
        (lambda: back(dy[:1], x, saved), ValueError, "dy: expected shape"),
        (lambda: back(dy, x, None), TypeError, f"saved: expected what {of_saved}"),
        (lambda: back(dy, x, of_other), ValueError, f".*got what {other}_norm_forward did"),
        (lambda: back_of_other(dy, x, saved), ValueError, f".*got what {saver}_norm_forward"),
        (lambda: back(dy, x, of_cpu), TypeError, "saved: made from an input on the CPU, got x"),
        (lambda: back(elsewhere, elsewhere, saved), TypeError, "saved: expected an array on cuda:"),
        (lambda: back(dy, x, activated), ValueError, "residual: expected the forward call's"),
        (lambda: back(dy, x, saved, out=dy), ValueError, "out: expected memory of its own"),
        (lambda: back(on_cpu, on_cpu, saved), TypeError, of_gpu),
    ):  # fmt: skip
        assert_refused(call, error, text)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_group_is_refused(kind):
    run, given, _ = FUNCTIONS[kind]
    group = bnext.sync.ThreadGroup(1)
    refused = pytest.raises(
        ValueError, match=r"^x: expected an array on the CPU, got one on cuda:0"
    )
    with group.member(0), refused:
        run(**{**given, "x": HERE.put(given["x"])}, group=group)


# --- launches -------------------------------------------------------------------------------------


def is_small(shape, groups, layout, held=16):
    """Whether a team of up to 256 threads holds a slab in registers."""
    values, cells = int(np.prod(shape[2:])), shape[1] // groups
    lanes = min(32, 1 << max(values - 1, 0).bit_length())
    rounds = -(-cells // (256 // lanes)) * -(-values // lanes)
    return rounds <= held and (values == 1 or layout != "interleaved")


def test_small_slabs_take_one_launch(rng):
    """And a second one for the gradients of parameters."""
    for (shape, groups), layout in itertools.product(CELLS, ("planar", "interleaved", "examples")):
        inputs = drawn(rng, Cells(groups), shape, layout=layout)
        requests = launches_of(MODULE, lambda inputs=inputs: HERE.both(inputs))
        launches = [what for what, _ in requests].count("run")
        assert (launches == 3) == (is_small(shape, groups, layout) or groups == shape[1])


def test_nothing_waits_for_the_device(rng):
    """A call only enqueues, on one stream, and takes no memory but its caller's."""
    for layout, groups in itertools.product(("planar", "interleaved"), (3, 12)):
        inputs = drawn(rng, Cells(groups), (3, 12, 4, 8), layout=layout)
        HERE.both(inputs)
        requests = launches_of(MODULE, lambda inputs=inputs: HERE.both(inputs))
        assert {what for what, _ in requests} <= {"prepare", "zero", "run"}


def test_work_goes_to_the_stream_of_x(rng):
    inputs = drawn(rng, Rows(), (40, 24)).mapped(InterfaceArray)
    inputs.x.stream = 7
    requests = launches_of(MODULE, lambda: backward(inputs, forward(inputs)[1]))
    assert [stream for what, stream in requests if what == "run"] == [7] * 3
    assert {what for what, _ in requests} == {"prepare", "run"}  # nothing waits
    _, saved = forward(inputs)
    inputs.dy.stream = 8
    with pytest.raises(ValueError, match=r"^dy: expected an array on the stream of x \(7\), got"):
        backward(inputs, saved)


def test_a_kernel_that_fails_is_told_by_the_next_call(rng):
    x = There(Array, 5).put(rng.standard_normal((4, 8)).astype(F4))
    _, saved = bnext.rms_norm_forward(x, 8)  # its kernel fails
    with pytest.raises(RuntimeError) as caught:
        bnext.rms_norm_backward(x, x, saved)
    assert re.fullmatch(
        r"RMS normalization backward \(kernel differentiate_row, float32, unit 4; rows of 4 "
        r"threads, grid \d+, block 128, shared bytes \d+; device 5 \(emulation of a GPU that "
        r"fails\)\): emulated CUDA: run: a kernel has failed; a kernel launched before has "
        r"failed, of bnext or of another library \(BNEXT_CUDA_SYNC=1 names it if it is one of "
        r"bnext\); .*; the process can use this device no more",
        str(caught.value),
    )
