"""Arrays of checkpoints, and what the layers made of them must have."""

import numpy as np

import bnext

from .compare import assert_same_bits

CHANNELS = 5


def arrays_of(rng, names, dtype=np.float32):
    weight, bias, mean, var = names
    return {
        weight: rng.normal(size=CHANNELS).astype(dtype),
        bias: rng.normal(size=CHANNELS).astype(dtype),
        mean: rng.normal(size=CHANNELS).astype(dtype),
        var: rng.uniform(0.3, 4, CHANNELS).astype(dtype),
    }


PYTORCH = ("weight", "bias", "running_mean", "running_var")
KERAS = ("gamma", "beta", "moving_mean", "moving_variance")


def checkpoint(rng):
    """A state dict of PyTorch's kind: two layers, and a convolution beside them."""
    state = {"conv.weight": rng.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)}
    for layer in ("bn1", "body.0.bn"):
        state |= {f"{layer}.{name}": array for name, array in arrays_of(rng, PYTORCH).items()}
        state[f"{layer}.num_batches_tracked"] = np.array(17)
    return state


def assert_is(bn, arrays, names):
    for name, ours in zip(names, PYTORCH, strict=True):
        assert_same_bits(getattr(bn, ours), np.asarray(arrays[name]), name)


def assert_checkpoint(layers, state):
    assert list(layers) == ["bn1", "body.0.bn"]
    for name, bn in layers.items():
        assert_is(bn, state, [f"{name}.{ours}" for ours in PYTORCH])
        assert bn.num_batches_tracked == 17
        assert bn.estimator == bnext.Exponential(0.1)


# --- one layer of each convention -----------------------------------------------------------------

FEW = 3  # channels


def values(rng, names, shape=(FEW,)):
    """Arrays of a layer by these names: weight, bias, mean, variance."""
    low = (0.5, -1, -1, 0.5)
    return {name: rng.uniform(a, 2, shape) for name, a in zip(names, low, strict=True)}


def trained(rng, steps=5, size=4, **options):
    bn = bnext.BatchNorm1d(FEW, dtype=np.float64, **options)
    for _ in range(steps):
        bn(rng.normal(1, 2, (size, FEW)))
    return bn
