"""How exact results are: ours and PyTorch's beside PyTorch's in float64."""

import copy

import numpy as np
import pytest

from ..exact import assert_is_exact, require_long_double
from .support import (
    DTYPES,
    LIBRARIES,
    layers,
    name_of,
    name_of_dtype,
    torch,
)

WIDE = [torch.float32, torch.float64]
NARROW = [torch.float16, torch.bfloat16]
RESULTS = ("y", "dx", "weight", "bias", "running_mean", "running_var")


def results_of(layer, x, dy):
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    results = {"y": y, "dx": leaf.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    return results | {name: getattr(layer, name) for name in RESULTS[4:]}


def errors(shape, dtype, *, mean, training, parameters=None):
    """By result: how far the two are off what float64 gives, in units in the last place there."""
    pair = layers(name_of(shape), shape[1], dtype=parameters or dtype)
    x = (torch.randn(shape, dtype=torch.float64) + mean).to(dtype)
    dy = torch.randn(shape, dtype=torch.float64).to(dtype)
    exact = copy.deepcopy(pair[0]).double()
    for layer in (*pair, exact):
        layer.train(training)
    expected = results_of(exact, x.double(), dy.double())
    found = {}
    for library, layer in zip(LIBRARIES, pair, strict=True):
        for name, actual in results_of(layer, x, dy).items():
            unit = torch.finfo(actual.dtype).eps * expected[name].abs().max()
            off = (actual.double() - expected[name]).abs().max()
            found[library, name] = (off / unit).item()
    return found


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("mean", [0.0, 100.0], ids=["centred", "far-from-zero"])
@pytest.mark.parametrize("shape", [(512, 20), (16, 8, 33, 31), (4, 3, 5, 17, 19)], ids=str)
def test_layers_are_as_exact_as_torch_s_in_float32(shape, mean, training, kernel_calls):
    found = errors(shape, torch.float32, mean=mean, training=training)
    for name in RESULTS:
        theirs, ours = found["torch.nn", name], found["bnext.torch", name]
        assert ours <= max(2 * theirs, 3.0), (name, ours, theirs)
    assert sum(kernel_calls.values()) == 2


@pytest.mark.parametrize("dtype", NARROW, ids=name_of_dtype)
@pytest.mark.parametrize("parameters", ["own", "float32"])
@pytest.mark.parametrize("shape", [(2, 5), (40, 5), (8, 6, 9, 7)], ids=str)
def test_layers_round_16_bits_once(shape, parameters, dtype, kernel_calls):
    """Half a unit, and what float32 in between is worth. PyTorch's are often several off."""
    wide = torch.float32 if parameters == "float32" else dtype
    found = errors(shape, dtype, mean=1.0, training=True, parameters=wide)
    for name in RESULTS:
        assert found["bnext.torch", name] <= (0.51 if name in ("y", "dx") else 1.01), (name, found)
    assert kernel_calls == {"forward": 1, "backward": 1}


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_running_statistics_are_rounded_once_a_step(dtype):
    """Two hundred steps of little momentum: float64 from the same roundings, each in its place."""
    _, layer = layers("BatchNorm1d", 4, dtype=dtype, momentum=0.03)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for _ in range(200):
        x = (torch.randn(32, 4) * 2 + 5).to(dtype)
        layer(x)
        batch = x.double()
        for kept, value in ((mean, batch.mean(0)), (var, batch.var(0))):
            kept.copy_((1 - 0.03) * kept.double() + 0.03 * value)
    # The batch's own statistics are float64 in both, summed in another order.
    unit = 4 * torch.finfo(dtype).eps
    assert (layer.running_mean - mean).abs().max() <= 2 * unit
    assert (layer.running_var - var).abs().max() <= 2 * unit


@pytest.mark.parametrize("shape", [(40, 5), (6, 3, 5, 17)], ids=str)
@pytest.mark.parametrize("far", [0.0, 1e4, 1e8])
def test_float64_is_as_exact_far_from_zero(shape, far):
    """Eagerly, by the coefficients that compilers write y from, and by the statistics alone."""
    require_long_double()
    rng = np.random.default_rng(len(shape))
    x, dy = rng.normal(far, 1, shape), rng.normal(size=shape)
    weight, bias = rng.normal(size=(2, shape[1]))
    x_, dy_, weight_, bias_ = map(torch.from_numpy, (x, dy, weight, bias))
    for operator in (
        torch.ops.bnext.batch_norm_training,
        torch.ops.bnext.fused_batch_norm_training,
    ):
        y, statistics = operator(x_, weight_, bias_, 1e-5)[:2]
        dx, dweight, _ = torch.ops.bnext.batch_norm_backward(dy_, x_, weight_, statistics, 1e-5)
        assert_is_exact([y.numpy(), dx.numpy(), dweight.numpy()], x, dy, weight, bias)
    layer = layers("BatchNorm1d" if len(shape) == 2 else "BatchNorm2d", shape[1])[1].double()
    with torch.no_grad():
        layer.weight[...], layer.bias[...] = weight_, bias_
    results = results_of(layer, x_, dy_)
    found = [results[name].detach().numpy() for name in ("y", "dx", "weight")]
    assert_is_exact(found, x, dy, weight, bias)
