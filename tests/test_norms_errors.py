"""What functions of norms of examples refuse, by name, before anything is written."""

import functools
import re
import warnings

import numpy as np
import pytest

import bnext

from .activations import ACTIVATIONS
from .fake_cuda import Array, InterfaceArray
from .snapshots import raises_exactly


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


OF_CELLS = "group_norm_forward or instance_norm_forward"
# Whose result a backward function takes as `saved`, as errors name it.
TAKES = {
    "batch": "batch_norm_forward", "group": OF_CELLS, "instance": OF_CELLS,
    "layer": "layer_norm_forward", "rms": "rms_norm_forward",
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
        (lambda: back(dy, x, None), TypeError, f"saved: expected what {TAKES[kind]}"),
        (lambda: back(dy, x, saved, SIX[:3]), ValueError, "weight: expected shape"),
        (lambda: back(dy, x, of_both), ValueError, "residual: expected the forward call's"),
        (lambda: back(dy, x, of_both, residual=other), ValueError, ".*another residual"),
        (lambda: back(dy, x, saved, residual=dy), ValueError, "residual: expected None"),
        (lambda: back(dy, x, added, out=dy), ValueError, ".*got dy, which is dresidual"),
    ):
        assert_refused(call, error, text)


def saved_for(kind, x, **options):
    """What a forward function leaves for its backward function."""
    of_rows = {"normalized_shape": x.shape[-1]}
    given = {"layer": of_rows, "rms": of_rows, "group": {"num_groups": 3}}.get(kind, {})
    return getattr(bnext, f"{kind}_norm_forward")(x, **given, **options)[1]


def assert_wrong_saved_is_told(kind, x, saved):
    """The error names the function whose result was expected."""
    text = f"saved: expected what {TAKES[kind]} returned, got "
    calls = [getattr(bnext, f"{kind}_norm_backward")]
    if kind == "batch":
        calls.append(functools.partial(bnext.batch_norm_double_backward, x))
    for call in calls:
        assert_refused(lambda call=call: call(x, x, saved), (TypeError, ValueError), text)


@pytest.mark.parametrize("kind", TAKES)
@pytest.mark.parametrize("other", [None, (), *TAKES], ids=str)
def test_another_saved_is_told(kind, other):
    saved = saved_for(other, X) if other in TAKES else other
    if TAKES.get(other) != TAKES[kind]:
        assert_wrong_saved_is_told(kind, X, saved)


@pytest.mark.parametrize("kind", TAKES)
@pytest.mark.parametrize("other", TAKES)
def test_another_saved_of_a_group_is_told(kind, other):
    group = bnext.sync.ThreadGroup(1)
    with group.member(0):
        saved = saved_for(other, X, group=group)
        if TAKES[other] != TAKES[kind]:
            assert_wrong_saved_is_told(kind, X, saved)


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
