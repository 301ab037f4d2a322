"""What holds for every norm of examples, without and with an activation and a residual."""

import copy
import functools
import pickle
import re
import warnings

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations
from .activations import ACTIVATIONS, SLOPE
from .compare import assert_same_bits
from .everywhere import EVERY, OF_SETS, SOME, assert_same_bits_everywhere
from .fake_cuda import Array, InterfaceArray
from .norms import (
    CENTERED,
    DATA,
    LAYOUTS,
    RESIDUAL,
    Cells,
    Results,
    Rows,
    assert_all_same_bits,
    backward,
    both_passes,
    drawn,
    forward,
    laid_out,
)
from .numerical import numerical_gradient
from .snapshots import raises_exactly
from .test_norms_values import CELLS

NORMS = {
    "layer": (Rows(), (6, 5, 40)),
    "rms": (Rows(1, False), (6, 5, 40)),
    "group": (Cells(4), (3, 8, 5, 7)),
    "instance": (Cells(8), (3, 8, 5, 7)),
}
EVERY_NORM = pytest.mark.parametrize("kind", NORMS)
NARROW = ml_dtypes.bfloat16


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
    for dtype in (np.float32, np.float64, NARROW):
        inputs = drawn(rng, Rows(1, centered), shape, dtype, name=name, adds=adds)
        runs = [run for run in OF_SETS if name is None or run[0] != 4]
        assert_same_bits_everywhere(functools.partial(bits, inputs), runs, inputs.x.dtype)


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, NARROW], ids=str)
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


DIFFERENCES = {
    "layer": (Rows(), (4, 7)), "rms": (Rows(1, False), (4, 9)), "one group": (Cells(1), (2, 6, 3)),
    "group": (Cells(2), (2, 4, 3)), "instance": (Cells(6), (2, 6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENCES)
@RESIDUAL
@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
def test_gradients_are_derivatives(rng, name, adds, kind):
    # Farther from kinks than the steps of a difference; one weight is 0.
    norm, shape = DIFFERENCES[kind]
    inputs = drawn(rng, norm, shape, np.float64, name=name, adds=adds)
    inputs.weight[1] = 0
    z = np.float64(norm.argument(inputs))
    inputs = inputs._replace(dy=activations.without_kinks(inputs.dy, z, name, margin=1e-2))
    gradients = both_passes(inputs).arrays
    del gradients["y"]

    def loss(what, at):
        return float((forward(inputs._replace(**{what: at}))[0] * inputs.dy).sum())

    for of, gradient in gradients.items():
        what = of.removeprefix("d")
        expected = numerical_gradient(functools.partial(loss, what), getattr(inputs, what))
        allowed = 1e-7 if name is None and not adds else 3e-6 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=allowed)


@EVERY_NORM
def test_a_residual_alone_is_added(rng, kind):
    """Its gradient is dy itself, and all others have the bits of a call without it."""
    norm, shape = NORMS[kind]
    inputs = drawn(rng, norm, shape, adds=True)
    plain = both_passes(inputs._replace(residual=None))
    results = both_passes(inputs)
    assert_same_bits(results.y, plain.y + inputs.residual)
    saved = results.saved
    assert (saved.residual, saved.reads_residual, saved.activation) == (True, False, None)
    _, run = norm.functions(shape)
    *_, dresidual = run(inputs.dy, inputs.x, saved, inputs.weight, residual=inputs.residual)
    assert results.dresidual is dresidual is inputs.dy
    assert_all_same_bits(results._replace(y=plain.y, dresidual=None), plain)


def test_a_relu_without_flags_has_the_bits_of_batch_normalizations(rng):
    """One example of cells is a batch of channels, whose ReLU goes by flags."""
    inputs = drawn(rng, Cells(6), (1, 6, 130, 130), name="relu", adds=True)
    results = both_passes(inputs)
    expected, saved = bnext.batch_norm_forward(
        inputs.x, inputs.weight, inputs.bias, residual=inputs.residual, activation="relu"
    )
    gradients = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight)
    assert_same_bits(results.y, expected)
    assert_same_bits(results.dresidual, gradients[3])
    assert_same_bits(results.dbias, gradients[2])
    np.testing.assert_allclose(results.dx, gradients[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(results.dweight, gradients[1], rtol=1e-6)


def padded(array):
    larger = np.zeros((*array.shape[:-1], array.shape[-1] + 4), array.dtype)
    larger[..., 4:] = array
    return larger[..., 4:]


PLACES = {
    "F": np.asfortranarray, "padded": padded,
    "every second": lambda a: np.repeat(a, 2, -1)[..., ::2],  # as no kernel writes
} | {layout: functools.partial(laid_out, layout=layout) for layout in LAYOUTS}  # fmt: skip


@pytest.mark.parametrize(("name", "adds"), [("silu", False), ("silu", True), (None, False)])
@EVERY_NORM
def test_any_strides_and_out(rng, kind, name, adds):
    """x, dy, a residual and `out` that lie in other orders; `out` may be dy."""
    norm, shape = NORMS[kind]
    inputs = drawn(rng, norm, shape, name=name, adds=adds)
    expected = both_passes(inputs)
    flipped = inputs.weight[::-1].copy()[::-1] if norm.has_bias else inputs.weight
    for where, put in PLACES.items():
        moved = inputs.mapped(lambda a, put=put: put(a.copy()) if a.ndim > 1 else a)
        moved = moved._replace(weight=flipped)
        # Cells are summed along the memory of x: the same bits where that is not asked for.
        for given in (moved, moved._replace(x=inputs.x)):
            out = put(np.zeros_like(inputs.x))
            y, saved = forward(given, out=out)
            assert y is out
            dy = put(inputs.dy.copy())
            found = Results(y, saved, *backward(given._replace(dy=dy), saved, out=dy))
            assert found.dx is dy
            if isinstance(norm, Rows) or given.x is inputs.x:
                assert_all_same_bits(found, expected, where)
            for name_of, value in expected.arrays.items():
                np.testing.assert_allclose(found.arrays[name_of], value, rtol=1e-4, atol=1e-4)


def test_channels_last_axis(rng):
    inputs = drawn(rng, Cells(3), (4, 6, 5, 3))
    results = both_passes(inputs)
    last, dy_last = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (inputs.x, inputs.dy))
    out = np.empty_like(last)
    again, saved = bnext.group_norm_forward(
        last, 3, inputs.weight, inputs.bias, channel_axis=-1, out=out
    )
    assert again is out
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), results.y, rtol=1e-5, atol=1e-6)
    dx, *parameters = bnext.group_norm_backward(dy_last, last, saved, inputs.weight, out=dy_last)
    assert dx is dy_last
    np.testing.assert_allclose(np.moveaxis(dx, -1, 1), results.dx, rtol=1e-5, atol=1e-5)
    expected = results.dweight, results.dbias
    np.testing.assert_allclose(parameters, expected, rtol=1e-5, atol=1e-4)


def test_out_over_dy_of_long_rows(rng, restore_threads):
    """Rows of several pieces read dy twice, each piece before dx is written there."""
    inputs = drawn(rng, Rows(), (5, 150_001), name="gelu", adds=True)
    expected = both_passes(inputs)
    for threads in (1, 2):
        bnext.set_num_threads(threads)
        own = inputs.dy.copy()
        found = backward(inputs._replace(dy=own), expected.saved, out=own)
        assert found[0] is own
        assert_all_same_bits(Results(expected.y, expected.saved, *found), expected)


@pytest.mark.parametrize("name", ["relu", "silu", None])
@EVERY_NORM
def test_z_is_of_the_forward_calls_parameters(rng, kind, name):
    """An optimizer may change them between the passes; what is saved goes through pickles."""
    norm, shape = NORMS[kind]
    inputs = drawn(rng, norm, shape, name=name, adds=name == "relu")
    expected = both_passes(inputs)
    saved, kept = expected.saved, inputs._replace(weight=inputs.weight.copy())
    inputs.weight[...] *= -1
    inputs.bias[...] += 7
    copied = pickle.loads(pickle.dumps(saved))
    assert repr(copied) == repr(saved)
    for attribute in ("activation", "residual", "reads_residual", "shape", "eps"):
        assert getattr(copied, attribute) == getattr(saved, attribute)
    assert_same_bits(copied.rows, saved.rows)
    if isinstance(norm, Rows):
        assert copied.normalized_shape == shape[-1:]
    for other in (saved, copied):
        found = backward(kept, other)
        assert_all_same_bits(Results(expected.y, saved, *found), expected)


def test_a_saved_of_before_there_were_activations_loads():
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    _, saved = bnext.layer_norm_forward(x, 4)
    again = bnext.RowSaved.__new__(bnext.RowSaved)
    again.__setstate__(saved.__getstate__()[:7])
    assert again.activation is None
    assert np.array_equal(again.rows, saved.rows)


def test_saved_of_norms(rng):
    inputs = drawn(rng, Cells(3), (2, 6, 5))
    x, dy = inputs.x, inputs.dy
    _, saved = forward(inputs)
    _, of_batch = bnext.batch_norm_forward(x)
    assert (saved.num_groups, of_batch.num_groups) == (3, None)
    assert saved.rows.shape == (5, 2, 3)
    with pytest.raises(ValueError, match="expected what batch_norm_forward returned, got what gr"):
        bnext.batch_norm_backward(dy, x, saved)
    with pytest.raises(ValueError, match="expected what group_norm_forward returned, got what ba"):
        bnext.group_norm_backward(dy, x, of_batch)
    with pytest.raises(ValueError, match="expected what batch_norm_forward returned"):
        bnext.recompute(x, saved)
    with pytest.raises(ValueError, match="x was changed"):
        bnext.group_norm_backward(dy, x + 1, saved)


# A norm, a shape with nothing in it, and of its statistics.
NOTHING = [
    *((Rows(1, centered), (n, k), (n,)) for centered in (True, False)
      for n, k in ((0, 5), (4, 0), (0, 0))),
    (Cells(3), (0, 6, 3), (0, 3)), (Cells(3), (2, 6, 0), (2, 3)), (Cells(2), (0, 4, 5), (0, 2)),
    (Cells(3), (0, 6), (0, 3)), (Cells(3), (4, 0, 8), (4, 3)), (Cells(1), (4, 0, 8), (4, 1)),
    (Cells(0), (4, 0, 8), (4, 1)),
]  # fmt: skip


@RESIDUAL
@pytest.mark.parametrize(("norm", "shape", "of_slabs"), NOTHING, ids=str)
def test_nothing_gives_nothing(place, norm, shape, of_slabs, adds):
    x = np.empty(shape, np.float32)
    inputs = drawn(np.random.default_rng(0), norm, shape, adds=adds)
    inputs = inputs._replace(x=x, dy=x, weight=None, bias=None, name="gelu" if adds else None)
    results = place.both(inputs)
    assert results.y.shape == results.dx.shape == shape
    for each in (results.dweight, results.dbias)[: 1 + norm.has_bias]:
        assert each.shape == norm.parameter_shape(shape)
        assert not each.any()
    if adds:
        assert results.dresidual.shape == shape
    mean = place.get(results.saved.mean)
    assert mean.shape == of_slabs
    assert not mean.any()


# --- layers ---------------------------------------------------------------------------------------

LAYERS = {
    "layer": lambda **given: bnext.LayerNorm((5, 7), **given),
    "rms": lambda **given: bnext.RMSNorm((5, 7), **given),
    "group": lambda **given: bnext.GroupNorm(4, 8, **given),
    "instance": lambda **given: bnext.InstanceNorm2d(
        8, affine=True, track_running_stats=True, **given
    ),
}


def layer_of(rng, kind, name, adds):
    """A layer with drawn parameters, and the inputs of its function."""
    norm = Rows(2, kind == "layer") if kind in ("layer", "rms") else NORMS[kind][0]
    inputs = drawn(rng, norm, (3, 8, 5, 7), name=name, adds=adds)
    layer = LAYERS[kind](activation=name, negative_slope=SLOPE)
    layer.weight[...] = inputs.weight
    if norm.has_bias:
        layer.bias[...] = inputs.bias
    return layer, inputs


@RESIDUAL
@pytest.mark.parametrize("name", ["leaky_relu", "silu", None])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(rng, kind, name, adds):
    """As the functions; copies too, and an activation that changed is not gone by."""
    layer, inputs = layer_of(rng, kind, name, adds)
    if name == "leaky_relu":
        assert "activation='leaky_relu', negative_slope=0.25" in repr(layer)
    again = copy.deepcopy(layer)
    expected = both_passes(inputs, eps=layer.eps)
    given = {"residual": inputs.residual} if adds else {}
    assert_same_bits(layer(inputs.x, **given), expected.y)
    found = layer.backward(inputs.dy, residual_grad=adds)
    assert_same_bits(found[0] if adds else found, expected.dx)
    if adds:
        assert_same_bits(found[1], expected.dresidual)
    assert_same_bits(layer.weight_grad, expected.dweight)
    assert_same_bits(again(inputs.x, **given), expected.y)
    again.activation = None
    if adds:
        assert_same_bits(again.backward(inputs.dy)[1], expected.dresidual)
        again(inputs.x, **given)
        with pytest.raises(ValueError, match="residual_grad: expected True or None, since"):
            again.backward(inputs.dy, residual_grad=False)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["group", "instance"])
def test_an_activation_of_a_layer_is_one_behind_it(rng, kind, mode):
    """Also by running statistics."""
    layer, inputs = layer_of(rng, kind, "silu", False)
    assert "activation='silu'" in repr(layer)
    plain = copy.deepcopy(layer)
    plain.activation = None
    getattr(layer, mode)(), getattr(plain, mode)()
    z, act = np.float64(plain(inputs.x)), activations.of("silu")
    np.testing.assert_allclose(layer(inputs.x), act.value(z), rtol=0, atol=2e-6)
    g = (np.float64(inputs.dy) * act.derivative(z)).astype(np.float32)
    dx = layer.backward(inputs.dy)
    np.testing.assert_allclose(dx, plain.backward(g), rtol=0, atol=2e-5)
    np.testing.assert_allclose(layer.weight_grad, plain.weight_grad, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["leaky_relu", None])
def test_instance_norm_layers_with_a_residual(rng, name):
    """One example alone, and running statistics."""
    layer, inputs = layer_of(rng, "instance", name, True)
    x, dy, residual = inputs.x, inputs.dy, inputs.residual
    expected = both_passes(inputs)
    assert_same_bits(layer(x[1], residual=residual[1]), expected.y[1])
    for got, whole in zip(layer.backward(dy[1]), (expected.dx, expected.dresidual), strict=True):
        assert_same_bits(got, whole[1])
    layer.eval()
    given = layer.running_mean, layer.running_var, inputs.weight, inputs.bias
    y = bnext.normalize(x, *given, eps=layer.eps, **inputs.options)
    assert_same_bits(layer(x, residual=residual), y)
    dx, dresidual = layer.backward(dy)
    g = dy * activations.of(name).derivative(np.float64(y))  # y is positive where z is
    assert_same_bits(dresidual, g.astype(np.float32))
    scale = (inputs.weight / np.sqrt(layer.running_var + layer.eps)).reshape(-1, 1, 1)
    np.testing.assert_allclose(dx, g * scale, rtol=1e-5)


def test_other_libraries(rng):
    """Arrays of bfloat16, in a call with a residual."""
    results = both_passes(drawn(rng, Cells(2), (2, 4, 6), NARROW, name="tanh", adds=True))
    assert results.y.dtype == results.dresidual.dtype == NARROW


# --- errors ---------------------------------------------------------------------------------------


def read_only(array):
    array.flags.writeable = False
    return array


X = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
ROW = X.reshape(-1, 9)
SIX, FIVE = np.ones(6, np.float32), np.ones(5, np.float32)
WRONG_OF_ROWS = [
    ({"normalized_shape": 7}, ValueError, r"x: expected shape (*, 7), since .* got (4, 9)"),
    ({"normalized_shape": ()}, ValueError, "normalized_shape: expected at least 1 dimension"),
    ({"normalized_shape": (2, 4, 9)}, ValueError, "x: expected shape"),
    ({"normalized_shape": -8}, ValueError, "normalized_shape: expected lengths >= 0"),
    ({"normalized_shape": 8.0}, TypeError, "normalized_shape: expected an integer or"),
    ({"normalized_shape": (8.0,)}, TypeError, "normalized_shape: expected an integer, got float"),
    ({"weight": SIX}, ValueError, r"weight: expected shape (9,), got (6,"),
    ({"weight": np.ones(9)}, TypeError, "weight: expected dtype float32"),
    ({"bias": ROW[:1]}, ValueError, r"bias: expected shape (9,)"),
    ({"eps": -1}, ValueError, "eps: expected a finite number >= 0"),
    ({"x": ROW.astype(int)}, TypeError, "x: expected dtype float16"),
    ({"out": ROW}, ValueError, "out: expected memory of its own"),
    ({"out": read_only(ROW.copy())}, ValueError, "out: expected a writeable array"),
    ({"out": ROW.astype(float)}, TypeError, "out: expected dtype float32"),
]
WRONG_OF_CELLS = [
    ({"num_groups": 4}, ValueError,
     "num_groups: expected a divisor of the number of channels, 6, got 4"),
    ({"num_groups": 0}, ValueError,
     "num_groups: expected a divisor of the number of channels, 6, got 0"),
    ({"num_groups": None}, TypeError, "num_groups: expected an integer, got None"),
    ({"num_groups": 2.0}, TypeError, "num_groups: expected an integer, got float"),
    ({"x": SIX, "channel_axis": -1}, ValueError, "x: expected at least 2 dimensions, got 1"),
    ({"x": np.ones((2, 6), int)}, TypeError,
     "x: expected dtype float16, bfloat16, float32 or float64, got int64"),
    ({"x": np.ones((6, 6), np.float32), "channel_axis": 0}, ValueError,
     "channel_axis: expected an axis behind the first, which has the examples, got 0"),
    ({"channel_axis": 3}, ValueError, "channel_axis: expected an axis of a 3-dimensional array"),
    ({"weight": FIVE}, ValueError, r"weight: expected shape (6,), got (5,)"),
    ({"bias": np.ones(6)}, TypeError, "bias: expected dtype float32, got float64"),
    ({"eps": -1.0}, ValueError, "eps: expected a finite number >= 0, got -1"),
    ({"x": np.ones((1, 6, 1), np.float32), "num_groups": 6}, ValueError,
     r"Expected more than 1 value per channel when training, got input size (1, 6, 1)"),
    ({"out": X}, ValueError, "out: expected memory of its own, got .* overlaps x"),
    ({"out": read_only(X.copy())}, ValueError, "out: expected a writeable array"),
]  # fmt: skip
ANY_WRONG = [
    ({"activation": "swish"}, ValueError,
     f"activation: expected .*{', '.join(map(repr, ACTIVATIONS))}"),
    ({"activation": 3}, TypeError, "activation: "),
]  # fmt: skip
FUNCTIONS = {
    "layer": (bnext.layer_norm_forward, {"x": ROW, "normalized_shape": 9}, WRONG_OF_ROWS),
    "rms": (bnext.rms_norm_forward, {"x": ROW, "normalized_shape": 9},
            [each for each in WRONG_OF_ROWS if "bias" not in each[0]]),
    "group": (bnext.group_norm_forward, {"x": X, "num_groups": 3}, WRONG_OF_CELLS),
    "instance": (bnext.instance_norm_forward, {"x": X},
                 [each for each in WRONG_OF_CELLS if "num_groups" not in each[0]]),
}  # fmt: skip


def assert_refused(call, kind, text):
    """An error of that kind, whose text begins like that; `.*` stands for anything."""
    with pytest.raises(kind) as caught:
        call()
    pattern = "^" + re.escape(text).replace(r"\.\*", ".*")
    assert re.match(pattern, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_errors_of_forward(kind):
    run, given, wrong = FUNCTIONS[kind]
    x = given["x"]
    of_residual = [
        ({"residual": x[:1]}, ValueError, "residual: expected shape"),
        ({"residual": x.astype(float)}, TypeError, "residual: expected dtype"),
        ({"residual": (out := x + 1), "out": out}, ValueError, "out: expected memory of its own"),
    ]
    for changed, error, text in [*wrong, *ANY_WRONG, *of_residual]:
        assert_refused(lambda changed=changed: run(**{**given, **changed}), error, text)
    text = "negative_slope: expected a finite number, got nan"
    for residual in (None, x + 1):
        with raises_exactly(ValueError, text, {"x": x}):
            run(**given, activation="leaky_relu", negative_slope=np.nan, residual=residual)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_errors_of_backward(kind):
    run, given, _ = FUNCTIONS[kind]
    back = getattr(bnext, f"{kind}_norm_backward")
    of_saved = f"{kind}_norm_forward" if kind in ("layer", "rms") else ""
    x, other, dy = given["x"], given["x"] + 1, given["x"] * 2
    saved, added, of_both = (
        run(**given, **more)[1]
        for more in ({}, {"residual": dy}, {"residual": dy, "activation": "silu"})
    )
    for call, error, text in (
        (lambda: back(dy, x[:1], saved), ValueError, "saved: made from an input of shape"),
        (lambda: back(dy[:1], x, saved), ValueError, "dy: expected shape"),
        (
            lambda: back(dy, other, saved),
            ValueError,
            "saved: made from another x, or x was",
        ),
        (lambda: back(dy, x, None), TypeError, f"saved: expected what {of_saved}"),
        (lambda: back(dy, x, saved, SIX[:3]), ValueError, "weight: expected shape"),
        (lambda: back(dy, x, of_both), ValueError, "residual: expected the forward call's"),
        (lambda: back(dy, x, of_both, residual=other), ValueError, ".*another residual"),
        (lambda: back(dy, x, saved, residual=dy), ValueError, "residual: expected None"),
        (lambda: back(dy, x, added, out=dy), ValueError, ".*got dy, which is dresidual"),
    ):
        assert_refused(call, error, text)


def test_errors_of_other_norms_and_of_single_values():
    _, saved = bnext.layer_norm_forward(ROW, 9)
    with pytest.raises(ValueError, match="what rms_norm_forward"):
        bnext.rms_norm_backward(ROW, ROW, saved)
    with pytest.raises(ValueError, match=r"more than 1 spatial element .* \(2, 6, 1\)"):
        bnext.instance_norm_forward(X[:, :, :1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, _ = bnext.group_norm_forward(np.zeros_like(X), 3, eps=0.0)  # constant slabs
    assert not y.any()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_errors_of_layers(make):
    for given, error, text in ANY_WRONG:
        assert_refused(lambda given=given: make(**given), error, text)


@pytest.mark.parametrize("make", [Array, InterfaceArray])
def test_arrays_on_a_gpu_without_kernels(make, rng, monkeypatch):
    def not_built():
        raise ImportError(bnext.cuda.NOT_BUILT)

    monkeypatch.setattr(bnext.cuda, "_load", not_built)
    x = rng.standard_normal((2, 8)).astype(np.float32)
    _, saved = bnext.layer_norm_forward(x, 8)
    there = make(x)
    for call in (
        lambda: bnext.layer_norm_forward(there, 8),
        lambda: bnext.rms_norm_forward(there, 8),
        lambda: bnext.layer_norm_backward(x, there, saved),
        lambda: bnext.RMSNorm(8)(there),
    ):
        with pytest.raises(
            RuntimeError,
            match=r"^x: got an array on (a CUDA device|cuda:0), and bnext cannot compute there: ",
        ):
            call()
    assert repr(saved) == (
        "<bnext.RowSaved of a float32 input of shape (2, 8), normalized_shape (8,)>"
    )
