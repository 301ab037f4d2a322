"""Folded networks against the unfolded ones, in inference."""

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import reference
from .snapshots import raises_exactly

IN, OUT, GROUPS = 6, 9, 3


def layer_of(rng, channels, dtype=np.float32, **options):
    bn = bnext.BatchNorm(channels, dtype=dtype, **options).eval()
    bn.running_mean[...] = rng.normal(1, 2, channels)
    bn.running_var[...] = rng.uniform(0.1, 4, channels)
    if bn.weight is not None:
        bn.weight[...] = rng.uniform(0.5, 2, channels) * rng.choice([-1, 1], channels)
        bn.bias[...] = rng.normal(size=channels)
    return bn


def assert_relative(actual, expected, tolerance):
    """Relative to the largest magnitude, as rounding is where terms cancel."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}], ids=str)
def test_as_affine(rng, dtype, options):
    bn = layer_of(rng, OUT, dtype, **options)
    scale, shift = bn.as_affine()
    assert scale.dtype == shift.dtype == np.float64
    x = rng.normal(size=(50, OUT)).astype(dtype)
    weight = 1 if bn.weight is None else bn.weight.astype(np.float64)
    bias = 0 if bn.bias is None else bn.bias.astype(np.float64)
    rstd = 1 / np.sqrt(bn.running_var.astype(np.float64) + bn.eps)
    np.testing.assert_allclose(scale, weight * rstd, rtol=1e-14)
    np.testing.assert_allclose(
        shift, bias - bn.running_mean * weight * rstd, rtol=1e-13, atol=1e-13
    )
    assert_relative(bn(x), scale * x + shift, 1e-5 if dtype == np.float32 else 1e-13)


def test_as_affine_where_variance_and_eps_are_0(rng):
    bn = layer_of(rng, 3, eps=0.0)
    bn.running_var[1] = 0
    scale, shift = bn.as_affine()
    assert (scale[1], shift[1]) == (0, bn.bias[1])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_linear_before(rng, dtype, axis, with_bias):
    bn = layer_of(rng, OUT, dtype)
    weight = rng.normal(size=(OUT, IN) if axis == 0 else (IN, OUT)).astype(dtype)
    bias = rng.normal(size=OUT).astype(dtype) if with_bias else None
    x = rng.normal(size=(40, IN)).astype(dtype)
    product = (lambda w: x @ w.T) if axis == 0 else (lambda w: x @ w)
    folded, offset = bnext.fold(weight, bias, bn, axis=axis)
    assert folded.dtype == offset.dtype == dtype
    unfolded = bn(product(weight) + (0 if bias is None else bias))
    assert_relative(product(folded) + offset, unfolded, 1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("axis", [(1, 0), (1, 0, 1)])
def test_linear_after(rng, dtype, axis):
    bn = layer_of(rng, IN, dtype)
    inputs, outputs = axis[:2]
    weight = rng.normal(size=(OUT, IN)).astype(dtype)
    bias = rng.normal(size=OUT).astype(dtype)
    x = rng.normal(size=(40, IN)).astype(dtype)
    folded, offset = bnext.fold_into_next(bn, weight, bias, axis=inputs, output_axis=outputs)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    assert_relative(x @ folded.T + offset, bn(x) @ weight.T + bias, tolerance)
    turned, offset = bnext.fold_into_next(bn, weight.T, bias, axis=0, output_axis=1)
    assert_relative(x @ turned + offset, bn(x) @ weight.T + bias, tolerance)
    turned, offset = bnext.fold_into_next(bn, weight.T, None, axis=-2, output_axis=-1)
    assert_relative(x @ turned + offset, bn(x) @ weight.T, tolerance)


def test_depthwise_kernels_of_keras(rng):
    """(height, width, in, multiplier): outputs along two axes."""
    bn = layer_of(rng, 8, np.float64)
    weight, bias = rng.normal(size=(3, 3, 4, 2)), rng.normal(size=8)
    folded, offset = bnext.fold(weight, bias, bn, axis=(2, 3))
    scale, shift = bn.as_affine()
    np.testing.assert_allclose(folded, weight * scale.reshape(4, 2), rtol=1e-14)
    np.testing.assert_allclose(offset, bias * scale + shift, rtol=1e-14)
    swapped, _ = bnext.fold(weight.swapaxes(2, 3), bias, bn, axis=(3, 2))
    np.testing.assert_array_equal(swapped.swapaxes(2, 3), folded)


def test_float16(rng):
    """Rounded once: as close to the exact result as half-precision weights can be."""
    bn = layer_of(rng, OUT)
    weight, bias = (rng.normal(size=s).astype(np.float16) for s in ((OUT, IN), OUT))
    folded, offset = bnext.fold(weight, bias, bn)
    assert folded.dtype == offset.dtype == np.float16
    x = rng.normal(size=(200, IN))
    exact = reference.normalize(
        x @ weight.T.astype(np.float64) + bias, bn.running_mean, bn.running_var, bn.weight, bn.bias,
        eps=bn.eps,
    )  # fmt: skip
    actual = x @ folded.T.astype(np.float64) + offset
    assert_relative(actual, exact, IN * np.finfo(np.float16).eps)
    brain, _ = bnext.fold(weight.astype(ml_dtypes.bfloat16), None, bn)
    assert brain.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_digits_networks(rng, kind):
    """All normalization folded away, and no layer of it left."""
    from bnext.demo.layers import Bias, Normalization
    from bnext.demo.networks import build

    network = build(kind, normalized=True, seed=1)
    for _ in range(3):
        network.forward(rng.normal(size=(32, 1, 8, 8)).astype(np.float32))
    network.train(False)
    x = rng.normal(size=(40, 1, 8, 8)).astype(np.float32)
    expected = network.forward(x)
    for place, layer in enumerate(network.layers):
        if isinstance(layer, Normalization):
            before = network.layers[place - 1]
            before.weight, bias = bnext.fold(before.weight, None, layer.bn)
            network.layers[place] = Bias(bias)
    assert_relative(network.forward(x), expected, 1e-5)


# --- against PyTorch's layers ---------------------------------------------------------------------

CONVOLUTIONS = {
    "1d": {}, "2d": {"stride": 2, "padding": 1}, "3d": {"dilation": 2, "padding": 1},
    "2d-groups": {"groups": GROUPS, "padding": 2}, "2d-depthwise": {"groups": IN, "out": 2 * IN},
}  # fmt: skip


def torch_layer(torch, kind, rng, *, out=OUT, bias=True, inputs=IN, **options):
    rank = int(kind[0])
    name = ("ConvTranspose" if "transposed" in kind else "Conv") + f"{rank}d"
    layer = getattr(torch.nn, name)(inputs, out, 3, bias=bias, **options).double().eval()
    x = torch.from_numpy(rng.normal(size=(2, inputs, *(11,) * rank)))
    return layer, x


def as_torch(torch, bn):
    """PyTorch's layer of the same state, on float64."""
    layer = torch.nn.BatchNorm1d(bn.num_features, eps=bn.eps, dtype=torch.float64).eval()
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in bn.state_dict().items()}
    layer.load_state_dict(state)
    return lambda y: layer(y.flatten(2)).reshape(y.shape)


def folded_into(torch, layer, weight, bias):
    layer.weight = torch.nn.Parameter(weight)
    layer.bias = torch.nn.Parameter(bias)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_torch_convolution_before(torch, rng, kind, bias):
    layer, x = torch_layer(torch, kind, rng, bias=bias, **CONVOLUTIONS[kind])
    bn = layer_of(rng, layer.out_channels, np.float64)
    with torch.no_grad():
        expected = as_torch(torch, bn)(layer(x))
        weight, offset = bnext.fold(layer.weight, layer.bias, bn)
        assert weight.dtype == torch.float64
        actual = folded_into(torch, layer, weight, offset)(x)
    assert_relative(actual, expected, 1e-13)


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_torch_transposed_convolution_before(torch, rng, rank, groups):
    options = {"groups": groups, "stride": 2, "padding": 1}
    layer, x = torch_layer(torch, f"{rank}d-transposed", rng, **options)
    bn = layer_of(rng, OUT, np.float64)
    with torch.no_grad():
        expected = as_torch(torch, bn)(layer(x))
        parts = bnext.fold(layer.weight, layer.bias, bn, axis=1, groups=groups)
        actual = folded_into(torch, layer, *parts)(x)
    assert_relative(actual, expected, 1e-13)


@pytest.mark.parametrize("groups", [1, GROUPS])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_torch_convolution_after(torch, rng, rank, groups):
    layer, x = torch_layer(torch, f"{rank}d", rng, groups=groups, stride=2)
    bn = layer_of(rng, IN, np.float64)
    with torch.no_grad():
        expected = layer(as_torch(torch, bn)(x))
        parts = bnext.fold_into_next(bn, layer.weight, layer.bias, groups=groups)
        actual = folded_into(torch, layer, *parts)(x)
    assert_relative(actual, expected, 1e-12)


@pytest.mark.parametrize("groups", [1, GROUPS])
def test_torch_transposed_convolution_after(torch, rng, groups):
    """Exact where the shift is 0, or the kernel has one position."""
    options = {"axis": 0, "output_axis": 1, "groups": groups, "transposed": True}
    layer, x = torch_layer(torch, "2d-transposed", rng, groups=groups, stride=2)
    bn = layer_of(rng, IN, np.float64)
    with pytest.raises(ValueError, match="expected a shift of 0 before a transposed convolution"):
        bnext.fold_into_next(bn, layer.weight, layer.bias, **options)
    bn.bias[...] = bn.bias - bn.as_affine().shift
    bn.running_mean[...] = 0
    bn.bias[...] = 0
    with torch.no_grad():
        expected = layer(as_torch(torch, bn)(x))
        parts = bnext.fold_into_next(bn, layer.weight, layer.bias, **options)
        assert_relative(folded_into(torch, layer, *parts)(x), expected, 1e-13)

        layer = torch.nn.ConvTranspose2d(IN, OUT, 1, groups=groups).double()
        bn = layer_of(rng, IN, np.float64)
        expected = layer(as_torch(torch, bn)(x))
        parts = bnext.fold_into_next(bn, layer.weight, layer.bias, **options)
        assert_relative(folded_into(torch, layer, *parts)(x), expected, 1e-12)


def test_torch_float32_and_bfloat16(torch, rng):
    bn = layer_of(rng, OUT)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        layer = torch.nn.Linear(IN, OUT).to(dtype)
        weight, bias = bnext.fold(layer.weight, layer.bias, bn)
        assert weight.dtype == bias.dtype == dtype
        assert not weight.requires_grad
        scale = torch.from_numpy(bn.as_affine().scale)
        exact = layer.weight.detach().double() * scale[:, None]
        torch.testing.assert_close(weight, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


# --- what does not fold ---------------------------------------------------------------------------


def test_padding_is_exact_only_without_a_shift(rng):
    bn = layer_of(rng, IN)
    weight = rng.normal(size=(OUT, IN, 3, 3)).astype(np.float32)
    with pytest.raises(ValueError, match="bn: expected a shift of 0 before a padded convolution"):
        bnext.fold_into_next(bn, weight, None, padded=True)
    bn.running_mean[...] = bn.bias[...] = 0
    folded, offset = bnext.fold_into_next(bn, weight, None, padded=True)
    np.testing.assert_allclose(folded, weight * bn.as_affine().scale[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(offset, np.zeros(OUT))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda bn, w: bnext.fold(w, None, bn, axis=1), ValueError,
            "weight: expected 9 outputs, as bn has channels, got 6 (shape (9, 6), axis 1, 1 "
            "group(s))",
        ),
        (
            lambda bn, w: bnext.fold(w, np.zeros(3, np.float32), bn), ValueError,
            "bias: expected shape (9,), got (3,)",
        ),
        (
            lambda bn, w: bnext.fold(w.astype(int), None, bn), TypeError,
            "weight: expected dtype float16, bfloat16, float32 or float64, got int64",
        ),
        (
            lambda bn, w: bnext.fold(w, None, bn, axis=2), ValueError,
            "axis: expected different axes of a 2-dimensional array, got 2",
        ),
        (
            lambda bn, w: bnext.fold(w, None, bn, axis=(0, -2)), ValueError,
            "axis: expected different axes of a 2-dimensional array, got (0, -2)",
        ),
        (
            lambda bn, w: bnext.fold(w, None, bn, axis="out"), TypeError,
            "axis: expected integers, got 'out'",
        ),
        (
            lambda bn, w: bnext.fold(w, None, bn, groups=2, axis=1), ValueError,
            "groups: expected a divisor of the 9 channels along axis 0 of weight, got 2",
        ),
        (
            lambda bn, w: bnext.fold(w, None, bn, groups=3), ValueError,
            "groups: expected 1 with outputs along axis 0, got 3",
        ),
        (
            lambda bn, w: bnext.fold_into_next(bn, w, None), ValueError,
            "weight: expected 9 inputs, as bn has channels, got 6 (shape (9, 6), axis 1, 1 "
            "group(s))",
        ),
        (
            lambda bn, w: bnext.fold_into_next(bn, w, None, axis=0), ValueError,
            "output_axis: expected another than axis, got 0 for both",
        ),
        (
            lambda bn, w: bnext.fold(w, None, bnext.BatchNorm1d(9, track_running_stats=False)),
            ValueError,
            "bn: expected a layer with running statistics, got one with track_running_stats=False",
        ),
    ],
)  # fmt: skip
def test_errors(rng, call, kind, text):
    bn = layer_of(rng, OUT)
    with raises_exactly(kind, text, {}):
        call(bn, rng.normal(size=(OUT, IN)).astype(np.float32))
