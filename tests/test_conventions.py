"""Layers in the words of PyTorch, Keras, Flax and ONNX, and back."""

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .snapshots import raises_exactly

CHANNELS = 4
COUNT = 24
NAMES = {
    "pytorch": ("weight", "bias", "running_mean", "running_var", "momentum", "eps"),
    "keras": ("gamma", "beta", "moving_mean", "moving_variance", "momentum", "epsilon"),
    "flax": ("scale", "bias", "mean", "var", "momentum", "epsilon"),
    "onnx": ("scale", "B", "input_mean", "input_var", "momentum", "epsilon"),
}


@pytest.fixture(params=NAMES)
def convention(request):
    return request.param


def trained(rng, dtype=np.float32, **options):
    bn = bnext.BatchNorm1d(CHANNELS, dtype=dtype, **options)
    for _ in range(3):
        bn(rng.normal(2, 3, (COUNT, CHANNELS)).astype(dtype))
    if bn.weight is not None:
        bn.weight[...], bn.bias[...] = rng.normal(size=(2, CHANNELS))
    return bn


def test_there_and_back(rng, dtype, convention):
    bn = trained(rng, dtype, momentum=0.25, eps=1e-4)
    values = bnext.to_convention(bn, convention)
    weight, bias, mean, var, momentum, eps = NAMES[convention]
    assert set(values) - {"num_batches_tracked"} == set(NAMES[convention])
    for name, ours in (
        (weight, "weight"),
        (bias, "bias"),
        (mean, "running_mean"),
        (var, "running_var"),
    ):
        assert_same_bits(values[name], getattr(bn, ours), name)
        assert not np.shares_memory(values[name], getattr(bn, ours))
    assert values[momentum] == (0.25 if convention == "pytorch" else 0.75)
    assert values[eps] == 1e-4

    back = bnext.from_convention(convention, values, channel_axis=1)
    assert (back.momentum, back.eps, back.dtype) == (0.25, 1e-4, dtype)
    assert back.estimator.bessel == (convention == "pytorch")
    x = rng.normal(size=(5, CHANNELS)).astype(dtype)
    assert_same_bits(back.eval()(x), bn.eval()(x))  # inference is the same
    assert back.num_batches_tracked == (3 if convention == "pytorch" else 0)


def test_variances_are_what_each_would_have_stored(rng, convention):
    """Layers trained with and without Bessel's correction, on the same batches."""
    batches = rng.normal(2, 3, (5, COUNT, CHANNELS))
    unbiased = bnext.BatchNorm1d(CHANNELS, dtype=np.float64, momentum=1.0)
    biased = bnext.BatchNorm1d(
        CHANNELS, dtype=np.float64, estimator=bnext.Exponential(1.0, bessel=False)
    )
    for x in batches:
        unbiased(x)
        biased(x)
    theirs = unbiased if convention == "pytorch" else biased
    var = NAMES[convention][3]
    ask = {"bessel": False} if convention == "onnx" else {}  # or exported from PyTorch
    for bn in (unbiased, biased):
        values = bnext.to_convention(bn, convention, count=COUNT)
        np.testing.assert_allclose(values[var], theirs.running_var, rtol=1e-14)
    stored = bnext.to_convention(theirs, convention)
    back = bnext.from_convention(convention, stored, count=COUNT, **ask)
    assert back.estimator.bessel
    np.testing.assert_allclose(back.running_var, unbiased.running_var, rtol=1e-14)
    # And as it goes on from there, both sides go on storing the same.
    plain = bnext.from_convention(convention, bnext.to_convention(theirs, convention))
    plain.channel_axis = 1
    x = rng.normal(2, 3, (COUNT, CHANNELS))
    plain.momentum = theirs.momentum = 0.5
    plain(x)
    theirs(x)
    np.testing.assert_allclose(plain.running_var, theirs.running_var, rtol=1e-14)


def test_defaults(rng, convention):
    _, _, mean, var, _, _ = NAMES[convention]
    values = {mean: rng.normal(size=CHANNELS), var: rng.uniform(1, 2, CHANNELS)}
    bn = bnext.from_convention(convention, values)
    expected = {
        "pytorch": (0.1, 1e-5, 1), "keras": (0.01, 1e-3, -1), "flax": (0.01, 1e-5, -1),
        "onnx": (0.1, 1e-5, 1),
    }  # fmt: skip
    momentum, eps, axis = expected[convention]
    assert bn.momentum == pytest.approx(momentum, rel=1e-12)
    assert (bn.eps, bn.channel_axis, bn.affine, bn.dtype) == (eps, axis, False, np.float64)
    assert bn.training


def test_layers_without_parameters(rng, convention):
    bn = trained(rng, affine=False)
    values = bnext.to_convention(bn, convention)
    weight, bias, *_ = NAMES[convention]
    if convention == "onnx":  # which asks for them
        assert_same_bits(values[weight], np.ones(CHANNELS, np.float32))
        assert_same_bits(values[bias], np.zeros(CHANNELS, np.float32))
    else:
        assert weight not in values
        assert bias not in values
    x = rng.normal(size=(5, CHANNELS)).astype(np.float32)
    back = bnext.from_convention(convention, values, channel_axis=1)
    assert_same_bits(back.eval()(x), bn.eval()(x))


def test_cumulative(rng, convention):
    bn = trained(rng, momentum=None)
    if convention == "pytorch":
        values = bnext.to_convention(bn, convention)
        assert values["momentum"] is None
        assert bnext.from_convention(convention, values).estimator == bnext.Cumulative()
    else:
        with pytest.raises(ValueError, match="bn: expected an exponential average"):
            bnext.to_convention(bn, convention)


def test_the_counter_stays_an_int64(rng):
    bn = trained(rng)
    bn.num_batches_tracked[...] = 2**50
    values = bnext.to_convention(bn, "pytorch")
    assert values["num_batches_tracked"].dtype == np.int64
    assert bnext.from_convention("pytorch", values).num_batches_tracked == 2**50


def test_torch_s_own_layers(torch, rng):
    theirs = torch.nn.BatchNorm1d(CHANNELS, momentum=0.3, eps=1e-3)
    theirs(torch.from_numpy(rng.normal(size=(9, CHANNELS)).astype(np.float32)))
    values = {**theirs.state_dict(), "momentum": theirs.momentum, "eps": theirs.eps}
    bn = bnext.from_convention("pytorch", values)
    x = rng.normal(size=(5, CHANNELS)).astype(np.float32)
    np.testing.assert_allclose(
        bn.eval()(x), theirs.eval()(torch.from_numpy(x)).detach().numpy(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda bn: bnext.to_convention(bn, "theano"),
            "convention: expected one of 'pytorch', 'torch-geometric', 'thunder', 'tinygrad', "
            "'e3nn', 'jittor', 'mlx', 'keras', 'tf-keras', 'flax', 'haiku', 'sonnet', "
            "'equinox-batch', 'equinox-ema', 'objax', 'chainer', 'mxnet', 'mxnet-symbol', "
            "'paddle', 'mindspore', 'onnx', 'caffe', 'ncnn', 'coreml', 'openvino', 'litert', "
            "got 'theano'",
        ),
        (
            lambda bn: bnext.to_convention(bn, "keras", count=1),
            "count: expected at least 2 values per channel, got 1",
        ),
        (
            lambda bn: bnext.from_convention("keras", {"mean": np.ones(3)}),
            "values: expected names among ['beta', 'epsilon', 'gamma', 'momentum', 'moving_mean', "
            "'moving_stddev', 'moving_variance', 'renorm_mean', 'renorm_stddev'], got ['mean']; "
            "prefix= reads one layer of a whole checkpoint",
        ),
        (
            lambda bn: bnext.from_convention("flax", {"mean": np.ones(3)}),
            "values: expected var, got ['mean']",
        ),
        (
            lambda bn: bnext.from_convention("flax", {"mean": np.ones(3), "var": np.ones(2)}),
            "var: expected shape (3,), got (2,)",
        ),
        (
            lambda bn: bnext.to_convention(bnext.BatchNorm1d(2, track_running_stats=False), "onnx"),
            "bn: expected a layer with running statistics, got one with track_running_stats=False",
        ),
    ],
)
def test_errors(rng, call, text):
    with raises_exactly(ValueError, text, {}):
        call(trained(rng))
