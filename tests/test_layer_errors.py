"""Every error of the layers, by its whole text; none changes a counter, a buffer or an output."""

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .snapshots import layer_state, raises_exactly

F4 = np.float32


WRONG_INPUTS = [
    (bnext.BatchNorm1d, (3,), "expected 2D or 3D input (got 1D input)"),
    (bnext.BatchNorm1d, (2, 3, 2, 2), "expected 2D or 3D input (got 4D input)"),
    (bnext.BatchNorm2d, (2, 3), "expected 4D input (got 2D input)"),
    (bnext.BatchNorm2d, (2, 3, 4), "expected 4D input (got 3D input)"),
    (bnext.BatchNorm2d, (2, 3, 2, 2, 2), "expected 4D input (got 5D input)"),
    (bnext.BatchNorm3d, (2, 3, 2, 2), "expected 5D input (got 4D input)"),
    (bnext.BatchNorm1d, (5, 32), "x: expected 3 channels at axis 1, got 32"),
    (bnext.BatchNorm2d, (2, 1, 4, 4), "x: expected 3 channels at axis 1, got 1"),
    (bnext.BatchNorm2d, (3, 4, 2, 2), "x: expected 3 channels at axis 1, got 4"),
    (
        bnext.BatchNorm2d,
        (2, 4, 4, 3),
        "x: expected 3 channels at axis 1, got 4 (axis -1 has 3: a layer for that order is made "
        "with channel_axis=-1)",
    ),
    (bnext.BatchNorm, (4, 5), "x: expected 3 channels at axis 1, got 5"),
]


SUITED = {
    "x": np.ones((2, 3, 4), F4), "dtype": np.dtype(F4), "ranks": (2, 3), "channel_axis": 1,
    "num_features": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [{}, {"ranks": ()}, {"channel_axis": -2}, {"channel_axis": -1, "num_features": 4}],
    ids=str,
)
def test_input_that_suits(more):
    assert bnext._core.suits(**SUITED | more) is True


@pytest.mark.parametrize(
    "more",
    [
        {"ranks": (2, 4)}, {"ranks": [2, 3]}, {"channel_axis": 3}, {"channel_axis": 10**30},
        {"num_features": 4}, {"num_features": 10**30}, {"dtype": np.dtype(np.float64)},
        {"x": SUITED["x"].tolist()}, {"x": np.ma.array(SUITED["x"])}, {"x": F4(3)},
        {"x": SUITED["x"].astype(">f4")},
    ],
    ids=str,
)  # fmt: skip
def test_input_that_is_asked_more(more):
    assert bnext._core.suits(**SUITED | more) is False


@pytest.mark.parametrize(("layer", "shape", "text"), WRONG_INPUTS)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_shape(layer, shape, text, training):
    bn = layer(3).train(training)
    out = np.full(shape, 7, F4)
    with raises_exactly(ValueError, text, lambda: layer_state(bn) | {"out": out}):
        bn(np.ones(shape, F4), out=out)


@pytest.mark.parametrize(
    ("layer", "shape"), [(bnext.BatchNorm1d, (1, 3)), (bnext.BatchNorm2d, (1, 3, 1, 1))]
)
def test_one_value_per_channel(layer, shape):
    bn = layer(3)
    text = f"Expected more than 1 value per channel when training, got input size {shape}"
    x = np.ones(shape, F4)
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn(x)
    assert bn.eval()(x).shape == shape  # in evaluation it is enough


def test_channel_axis_of_another_rank():
    bn = bnext.BatchNorm(3, channel_axis=2)
    text = "channel_axis: expected an axis of a 2-dimensional array (-2 to 1), got 2"
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn(np.ones((4, 3), F4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "text"),
    [
        (
            np.ones((4, 3)),
            "x: expected dtype float32, float16 or bfloat16, got float64 (convert x to float32, as "
            "x.astype(np.float32), or make the layer with dtype=np.float64)",
        ),
        (
            np.ones((4, 3), np.int64),
            "x: expected dtype float32, float16 or bfloat16, got int64 (convert x to float32, as "
            "x.astype(np.float32))",
        ),
        (
            np.ones((4, 3), ">f2"),
            "x: expected dtype float32, float16 or bfloat16, got >f2 (convert x to float32, as "
            "x.astype(np.float32))",
        ),
        (
            np.ma.ones((4, 3), F4),
            "x: expected an array without a mask, got a MaskedArray (x.filled(value) has none)",
        ),
    ],
    ids=["float64", "int64", "big-endian", "masked"],
)
def test_wrong_dtype(x, text, training):
    bn = bnext.BatchNorm1d(3).train(training)
    with raises_exactly(TypeError, text, lambda: layer_state(bn)):
        bn(x)


def test_the_remedies_for_float64_work(rng):
    """The first line of a NumPy user."""
    x = rng.normal(size=(8, 4))
    with pytest.raises(TypeError, match=r"x\.astype\(np\.float32\), or make .* dtype=np\.float64"):
        bnext.BatchNorm1d(4)(x)
    assert bnext.BatchNorm1d(4)(x.astype(np.float32)).dtype == np.float32
    assert bnext.BatchNorm1d(4, dtype=np.float64)(x).dtype == np.float64
    wide = bnext.BatchNorm1d(4, dtype=np.float64)
    with pytest.raises(TypeError, match=r"x\.astype\(np\.float64\), or make .* dtype=np\.float32"):
        wide(x.astype(np.float32))


def test_the_remedy_for_channels_elsewhere_works(rng):
    rows, planes = rng.normal(size=(2, 5, 6, 3)), rng.normal(size=(2, 3, 5, 6))
    last = bnext.BatchNorm2d(3, dtype=np.float64, channel_axis=-1)
    with pytest.raises(ValueError, match=r"axis 1 has 3: .* channel_axis=1"):
        last(planes)
    assert last(rows).shape == rows.shape
    with pytest.raises(ValueError, match=r"axis -1 of x has 3: channel_axis=-1"):
        bnext.batch_norm_forward(rows, np.ones(3))
    with pytest.raises(ValueError, match=r"axis -1 of x has 3: channel_axis=-1"):
        bnext.normalize(rows, np.ones(3), np.ones(3))
    assert bnext.batch_norm_forward(rows, np.ones(3), channel_axis=-1)[0].shape == rows.shape


@pytest.mark.parametrize("training", [True, False])
def test_wrong_out(training):
    bn = bnext.BatchNorm1d(3).train(training)
    x = np.arange(12, dtype=F4).reshape(4, 3)
    overlap = "out: expected memory of its own, got an array that overlaps x"
    for out, kind, text in (
        (np.empty((3, 4), F4), ValueError, "out: expected shape (4, 3), got (3, 4)"),
        (np.empty((4, 3)), TypeError, "out: expected dtype float32, got float64"),
        (x[::-1], ValueError, overlap),
        ([1.0], TypeError, "out: expected a numpy array, got list"),
    ):
        with raises_exactly(kind, text, lambda: layer_state(bn) | {"x": x}):
            bn(x, out=out)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_replaced_arrays_are_checked_when_they_are_used(name, training):
    bn = bnext.BatchNorm1d(3).train(training)
    x = np.arange(12, dtype=F4).reshape(4, 3)
    for value, kind, text in (
        (np.ones(5, F4), ValueError, f"{name}: expected shape (3,), got (5,)"),
        (np.ones(3), TypeError, f"{name}: expected dtype float32, got float64"),
    ):
        with pytest.raises(kind) as caught:  # at the assignment or at the call
            _assign_and_call(bn, name, value, x)
        assert str(caught.value) == text
        assert bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    "value",
    [0, np.int64(3), np.zeros((), np.int32), np.zeros((), F4), np.zeros(1, np.int64), "frozen"],
    ids=repr,
)
def test_a_replaced_counter_is_checked_before_anything_changes(value):
    bn = bnext.BatchNorm1d(3)
    if isinstance(value, str):
        value = np.zeros((), np.int64)
        value.flags.writeable = False
    bn.num_batches_tracked = value
    x = np.arange(12, dtype=F4).reshape(4, 3)
    text = f"num_batches_tracked: expected a writeable int64 array of shape (), got {value!r}"
    with raises_exactly(TypeError, text, lambda: layer_state(bn)):
        bn(x)
    bn.eval()(x)  # where nothing is counted
    bn.num_batches_tracked = None
    bn.train()(x)
    assert (bn.running_mean != 0).any()


def _assign_and_call(bn, name, value, x):
    setattr(bn, name, value)
    bn(x)


def test_backward_needs_a_forward():
    bn = bnext.BatchNorm1d(3)
    dy = np.ones((4, 3), F4)
    text = (
        "backward: expected a forward call before it, "
        "since the latest one was consumed or there was none"
    )
    with raises_exactly(RuntimeError, text, lambda: layer_state(bn)):
        bn.backward(dy)
    bn(np.arange(12, dtype=F4).reshape(4, 3))
    bn.backward(dy)
    with raises_exactly(RuntimeError, text, lambda: layer_state(bn)):
        bn.backward(dy)


@pytest.mark.parametrize("training", [True, False])
def test_a_failed_backward_consumes_nothing(rng, training):
    x, dy = rng.normal(size=(2, 4, 3)).astype(F4)
    expected = bnext.BatchNorm1d(3).train(training)
    expected(x)
    bn = bnext.BatchNorm1d(3).train(training)
    bn(x)
    for wrong, kind, text in (
        (dy[:3], ValueError, "dy: expected shape (4, 3), got (3, 3)"),
        (dy.astype(np.float64), TypeError, "dy: expected dtype float32, got float64"),
    ):
        with raises_exactly(kind, text, lambda: layer_state(bn)):
            bn.backward(wrong)
    out = np.full((3, 4), 7, F4)
    with raises_exactly(
        ValueError, "out: expected shape (4, 3), got (3, 4)", lambda: layer_state(bn) | {"out": out}
    ):
        bn.backward(dy, out=out)
    assert_same_bits(bn.backward(dy), expected.backward(dy))


def test_a_failed_forward_leaves_the_one_before_it(rng):
    x, dy = rng.normal(size=(2, 4, 3)).astype(F4)
    expected = bnext.BatchNorm1d(3)
    expected(x)
    bn = bnext.BatchNorm1d(3)
    bn(x)
    with raises_exactly(
        ValueError, "x: expected 3 channels at axis 1, got 2", lambda: layer_state(bn)
    ):
        bn(x[:, :2])
    assert_same_bits(bn.backward(dy), expected.backward(dy))


def test_changed_input_is_noticed(rng):
    x, dy = rng.normal(size=(2, 4, 3)).astype(F4)
    bn = bnext.BatchNorm1d(3)
    bn(x)
    x += 1
    text = "saved: made from another x, or x was changed since (their elements differ)"
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn.backward(dy)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"num_features": -1}, ValueError, "num_features: expected an integer >= 0, got -1"),
        ({"eps": -1.0}, ValueError, "eps: expected a finite number >= 0, got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps: expected a finite number >= 0, got nan"),
        ({"eps": "1"}, TypeError, "eps: expected a real number, got str"),
        (
            {"momentum": float("nan")},
            ValueError,
            "momentum: expected a finite number or None, got nan",
        ),
        (
            {"momentum": float("inf")},
            ValueError,
            "momentum: expected a finite number or None, got inf",
        ),
        ({"channel_axis": 1.0}, TypeError, "channel_axis: expected an integer, got float"),
    ],
)
def test_constructor(arguments, kind, text):
    with raises_exactly(kind, text, {}):
        bnext.BatchNorm2d(**({"num_features": 3} | arguments))


@pytest.mark.parametrize("dtype", [np.int32, np.float16, np.complex64, "float128"])
def test_dtype_of_the_layer(dtype):
    with pytest.raises(TypeError, match="float32 or float64"):
        bnext.BatchNorm2d(3, dtype=dtype)
