"""Every error of arrays on a GPU, by its text; nothing is launched. Over the stand-in's kernels."""

import re

import numpy as np
import pytest

import bnext

from .. import test_errors
from ..fake_cuda import Array, InterfaceArray
from .stand_in import StandIn

F4 = np.float32


@pytest.fixture
def kernels(monkeypatch):
    module = StandIn(devices=2)
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)
    return module


def moved(value, make):
    """The argument of a test of the CPU, if it is one of those, on the GPU."""
    return make(value) if type(value) is np.ndarray else value


def as_on_the_cpu():
    """The cases of test_errors.py about arrays, shapes and options: the texts are the same."""
    cases = []
    for number, (operations, argument, value, kind, text) in enumerate(test_errors.REPLACED):
        replaced = value(test_errors.world())
        array = (
            type(replaced) is np.ndarray and replaced.dtype.isnative and replaced.dtype != object
        )
        if array or argument in ("channel_axis", "eps"):
            cases += [
                pytest.param(operation, argument, value, kind, text, id=f"{operation}-{number}")
                for operation in operations.split()
            ]
    return cases


@pytest.mark.parametrize(("operation", "argument", "value", "kind", "text"), as_on_the_cpu())
def test_wrong_argument(kernels, make, operation, argument, value, kind, text):
    world = test_errors.world()
    _, world["saved"] = bnext.batch_norm_forward(make(world["x"]))
    kernels.launches.clear()
    world[argument] = value(world)
    function, names = test_errors.CALLS[operation]
    given = {name: moved(world[name], make) for name in names}
    given |= {name: world[name] for name in ("eps", "channel_axis") if name in world}
    with pytest.raises(kind) as caught:
        function(**given)
    assert type(caught.value) is kind
    assert str(caught.value) == text
    assert kernels.launches == []


@pytest.mark.parametrize("name", ["weight", "bias", "mean", "var"])
def test_output_that_overlaps_a_parameter(kernels, make, name):
    world = test_errors.world()
    memory = np.ones(24, F4)
    world |= {name: memory[5:8], "out": memory.reshape(4, 3, 2)}
    names = ("x", "mean", "var", "weight", "bias", "out")
    text = f"^out: expected memory of its own, got an array that overlaps {name}$"
    with pytest.raises(ValueError, match=text):
        bnext.normalize(**{name: make(world[name]) for name in names})
    assert kernels.launches == []


def test_interleaved_but_separate_memory_is_no_overlap(kernels, make, rng):
    memory = rng.normal(size=(4, 3, 4)).astype(F4)
    x, out = memory[..., ::2], memory[..., 1::2]
    expected, _ = bnext.batch_norm_forward(x.copy())
    bnext.batch_norm_forward(make(x), out=make(out))
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_calls_in_place_and_recomputation_are_refused(kernels, make, rng):
    x = make(rng.normal(size=(4, 3)).astype(F4))
    bn = bnext.BatchNorm1d(3, in_place=True).to(x)
    _, saved = bnext.batch_norm_forward(x)
    plain = bnext.BatchNorm1d(3).to(x)
    plain(x)
    kernels.launches.clear()
    for call, text in (
        (lambda: bnext.batch_norm_forward(x, out=x),
         "out: expected memory of its own, got an array that overlaps x"),
        (lambda: bn(x), "in_place: expected False for an input on a GPU, got True"),
        (lambda: bnext.recompute(x, saved),
         "x: expected an array on the CPU, to recompute y from, got one on a GPU"),
        (plain.recomputed, "saved: expected of a call on the CPU, got of one on a GPU"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{text}$"):
            call()
    assert kernels.launches == []


X, VECTOR = np.ones((4, 3), F4), np.ones(3, F4)
MIXED = {
    "NumPy": (VECTOR, "weight: expected an array on cuda:0, like x, got one on the CPU"),
    "list": ([1.0, 1.0, 1.0], "weight: expected an array on cuda:0, like x, got one on the CPU"),
    "device": (Array(VECTOR, 1), "weight: expected an array on cuda:0, like x, got one on cuda:1"),
    "library": (
        InterfaceArray(VECTOR),
        "weight: expected an array on cuda:0, like x, got one on a CUDA device",
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices(kernels, name):
    weight, text = MIXED[name]
    x = Array(X)
    _, saved = bnext.batch_norm_forward(x)
    kernels.launches.clear()
    for call in (
        lambda: bnext.batch_norm_forward(x, weight),
        lambda: bnext.normalize(x, Array(VECTOR), Array(VECTOR), weight),
        lambda: bnext.batch_norm_backward(x, x, saved, weight),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == text
    assert kernels.launches == []


def test_mixed_arguments_are_named(kernels):
    x, there, here = Array(X), Array(VECTOR), VECTOR
    _, saved = bnext.batch_norm_forward(x)
    for name, call in {
        "bias": lambda: bnext.batch_norm_forward(x, there, here),
        "out": lambda: bnext.batch_norm_forward(x, out=X),
        "mean": lambda: bnext.normalize(x, here, there),
        "var": lambda: bnext.normalize(x, there, here),
        "dy": lambda: bnext.batch_norm_backward(X, x, saved),
    }.items():
        text = f"^{name}: expected an array on cuda:0, like x, got one on the CPU$"
        with pytest.raises(TypeError, match=text):
            call()


@pytest.mark.parametrize("name", ["mean", "var"])
def test_statistics_that_are_missing(kernels, name):
    given = {"mean": Array(VECTOR), "var": Array(VECTOR)} | {name: None}
    with pytest.raises(TypeError, match=rf"^{name}: expected an array of shape \(3,\), got None$"):
        bnext.normalize(Array(X), **given)


def test_one_value_per_channel(kernels, make):
    text = r"^Expected more than 1 value per channel when training, got input size \(1, 3\)$"
    with pytest.raises(ValueError, match=text):
        bnext.batch_norm_forward(make(X[:1]))


def test_saved_of_something_else(kernels):
    x, other = Array(X), Array(X, 1)
    _, here = bnext.batch_norm_forward(X)
    _, there = bnext.batch_norm_forward(x)
    _, of_doubles = bnext.batch_norm_forward(Array(X.astype(float)))
    _, of_fewer = bnext.batch_norm_forward(Array(X[:3]))
    for given, saved, kind, text in (
        (x, here, TypeError, "saved: made from an input on the CPU, got x on cuda:0"),
        (x, of_fewer, ValueError,
         "saved: made from an input of shape (3, 3), got x of shape (4, 3)"),
        (x, of_doubles, ValueError, "saved: made from a float64 input, got x of float32"),
        (other, there, TypeError,
         "saved: expected an array on cuda:1, like x, got one on cuda:0"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            bnext.batch_norm_backward(given, given, saved)
        assert str(caught.value) == text
    with pytest.raises(TypeError, match=r"^saved: made from an input on cuda:0, got x on the CPU$"):
        bnext.batch_norm_backward(X, X, there)


def test_streams_of_the_interface(kernels):
    """The array says on which stream its values are made; bnext's work follows there."""
    x = InterfaceArray(X)
    x.stream = 77
    bnext.batch_norm_forward(x)
    assert kernels.launches == [("forward", 0, 77)]
    weight = InterfaceArray(VECTOR)
    weight.stream = 78
    text = r"^weight: expected an array on the stream of x \(77\), got one on stream 78$"
    with pytest.raises(ValueError, match=text):
        bnext.batch_norm_forward(x, weight)


def test_streams_of_dlpack(kernels):
    """The producer is told the stream that work is put on: CUDA's legacy default."""
    x, weight = Array(X), Array(VECTOR)
    bnext.batch_norm_forward(x, weight)
    assert kernels.launches == [("forward", 0, 1)]
    assert set(x.streams) == set(weight.streams) == {1}


def test_the_device_of_the_array_is_used(kernels):
    x = Array(X, 1)
    y, saved = bnext.batch_norm_forward(x)
    assert kernels.launches == [("forward", 1, 1)]
    assert y.device == saved.mean.device == 1
    assert repr(saved) == "<bnext.DeviceSaved of a float32 input of shape (4, 3) on cuda:1>"


def test_layer_and_input_in_different_places(kernels, make):
    where = "cuda:0"
    bn = bnext.BatchNorm1d(3)
    text = f"weight: expected an array on {where}, like x, got one on the CPU; "
    for layer in (bn, bnext.BatchNorm1d(3).eval()):
        with pytest.raises(TypeError) as caught:
            layer(make(X))
        assert str(caught.value) == text + "the layer's to(x) moves it"
        assert layer.num_batches_tracked == 0
    bn = bnext.BatchNorm1d(3, affine=False)
    with pytest.raises(TypeError, match=r"^running_mean: .*; the layer's to\(x\) moves it$"):
        bn(make(X))
    bn.to(make(X))
    place = where if make is Array else "a CUDA device"
    text = f"^running_mean: expected an array on the CPU, like x, got one on {place}$"
    with pytest.raises(TypeError, match=text):
        bn(X)
    assert bn.num_batches_tracked == 0


def test_layer_s_checks_of_x(kernels, make):
    bn = bnext.BatchNorm1d(3).to(make(X))
    for x, kind, text in (
        (np.ones((4, 5), F4), ValueError, "x: expected 3 channels at axis 1, got 5"),
        (np.ones(3, F4), ValueError, "expected 2D or 3D input (got 1D input)"),
        (np.ones((4, 3)), TypeError,
         "x: expected dtype float32, float16 or bfloat16, got float64 (convert x to float32, as "
         "x.astype(np.float32), or make the layer with dtype=np.float64)"),
        (np.ones((1, 3), F4), ValueError,
         "Expected more than 1 value per channel when training, got input size (1, 3)"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            bn(make(x))
        assert str(caught.value) == text
    bn.num_batches_tracked = np.zeros((), np.int32)
    with pytest.raises(TypeError, match=r"^num_batches_tracked: expected a writeable int64 array"):
        bn(make(X))
    assert kernels.launches == []


def test_running_statistics_must_be_contiguous(kernels, make):
    bn = bnext.BatchNorm1d(3).to(make(X))
    bn.running_var = make(np.ones((3, 2), F4)[:, 0])
    text = "^running_var: expected a writeable, contiguous array, got one that is not$"
    with pytest.raises(ValueError, match=text):
        bn(make(X))
    assert kernels.launches == []
    assert bn.num_batches_tracked == 0


def test_a_layer_moved_forgets_its_input(kernels, make):
    bn = bnext.BatchNorm1d(3)
    bn(np.arange(12, dtype=F4).reshape(4, 3))
    bn.to(make(X))
    with pytest.raises(RuntimeError, match="expected a forward call before"):
        bn.backward(make(X))


def test_epilogues_that_are_none(kernels, make):
    """As on the CPU, by the same texts."""
    x, wide = make(X), make(X.astype(np.float64))
    bn = bnext.BatchNorm1d(3, activation="relu").to(x)
    mean = make(VECTOR)
    functions = [
        lambda **given: bnext.batch_norm_forward(x, **given),
        lambda **given: bnext.normalize(x, mean, mean, **given),
    ]
    layers = [lambda **given: bn.train()(x, **given), lambda **given: bn.eval()(x, **given)]
    for given, text in (
        ({"activation": "rely"}, "activation: expected 'relu', "),
        ({"negative_slope": np.nan, "activation": "relu"}, "negative_slope: expected a finite "),
        ({"residual": make(X[:3])}, "residual: expected shape (4, 3), got (3, 3)"),
        ({"residual": wide}, "residual: expected dtype float32, got float64"),
        ({"residual": X}, "residual: expected an array on cuda:0, like x, got one on the CPU"),
    ):
        for call in functions + (layers if "residual" in given else []):
            with pytest.raises((ValueError, TypeError), match="^" + re.escape(text)):
                call(**given)
    assert kernels.launches == []
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_a_residual_that_is_missing(kernels, make, name):
    """It is read again after every activation, unlike on the CPU, which keeps flags."""
    x = make(X)
    _, saved = bnext.batch_norm_forward(x, activation=name, residual=make(X + 1))
    assert (saved.activation, saved.residual, saved.reads_residual) == (name, True, True)
    assert not saved.in_place
    kernels.launches.clear()
    text = (
        f"residual: expected the forward call's, since the derivative of {name} follows from it, "
        "got None"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        bnext.batch_norm_backward(x, x, saved)
    with pytest.raises(ValueError, match=re.escape("residual: expected shape (4, 3), got (3, 3)")):
        bnext.batch_norm_backward(x, x, saved, residual=make(X[:3]))
    assert kernels.launches == []


def test_a_residual_for_a_call_that_had_none(kernels, make):
    _, saved = bnext.batch_norm_forward(make(X))
    kernels.launches.clear()
    text = "^residual: expected None, since the forward call had none$"
    with pytest.raises(ValueError, match=text):
        bnext.batch_norm_backward(make(X), make(X), saved, residual=make(X))
    assert kernels.launches == []
