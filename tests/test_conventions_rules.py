"""Every library's update rule, written out here, beside what the conventions make of it.

Each simulation is the rule of one library in float64, from what its release was measured to do; it
shares no code with the records and the arithmetic under test.
"""

import math

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits

CHANNELS = 3
STEPS = (1, 5, 300)


class Blended:
    """Begins at 0 and 1, which lose weight from step to step."""

    def __init__(self, decay, bessel):
        self.decay, self.bessel = decay, bessel
        self.k, self.mean, self.var = 0, np.zeros(CHANNELS), np.ones(CHANNELS)

    def __call__(self, x):
        self.k += 1
        axes = tuple(range(x.ndim - 1))
        self.mean = self.decay * self.mean + (1 - self.decay) * x.mean(axes)
        var = x.var(axes, ddof=1 if self.bessel else 0)
        self.var = self.decay * self.var + (1 - self.decay) * var

    used = property(lambda self: (self.mean, self.var))  # in inference

    def arrays(self, mean, var):
        return {mean: self.mean, var: self.var}


class Counted(Blended):
    """Blended, with PyTorch's counter."""

    def arrays(self, mean, var):
        return super().arrays(mean, var) | {"num_batches_tracked": np.array(self.k)}


class Debiased(Blended):
    """Haiku's and Sonnet's moving averages: from 0, divided by 1 - d^k."""

    def __init__(self, decay, bessel):
        super().__init__(decay, bessel)
        self.var = np.zeros(CHANNELS)

    used = property(lambda self: tuple(a / (1 - self.decay**self.k) for a in (self.mean, self.var)))

    def arrays(self, mean, var):
        found = {}
        for name, hidden, average in zip(
            (mean, var), (self.mean, self.var), self.used, strict=True
        ):
            name = name.removesuffix("/average")
            found |= {f"{name}/average": average, f"{name}/hidden": hidden}
            found[f"{name}/counter"] = np.array(self.k)
        return found


class EquinoxBatch(Blended):
    """Blended from 0 and 1, but divided by 1 - d^k in inference."""

    used = property(lambda self: tuple(a / (1 - self.decay**self.k) for a in (self.mean, self.var)))

    def arrays(self, mean, var):
        return super().arrays(mean, var) | {"counter": np.array(self.k)}


class Caffe(Blended):
    """Sums of batches, and the sum of their weights."""

    def __init__(self, decay, bessel):
        super().__init__(decay, bessel)
        self.var, self.factor = np.zeros(CHANNELS), 0.0

    def __call__(self, x):
        self.k += 1
        axes = tuple(range(x.ndim - 1))
        self.mean = self.decay * self.mean + x.mean(axes)
        self.var = self.decay * self.var + x.var(axes, ddof=1)
        self.factor = self.decay * self.factor + 1

    used = property(lambda self: (self.mean / self.factor, self.var / self.factor))

    def arrays(self, mean, var):
        return super().arrays(mean, var) | {"scale_factor": np.array([self.factor])}


class EquinoxEma(Blended):
    """The first batch whole."""

    def __call__(self, x):
        decay, self.decay = self.decay, 0.0 if self.k == 0 else self.decay
        super().__call__(x)
        self.decay = decay

    def arrays(self, mean, var):
        return super().arrays(mean, var) | {"first_time": np.array(self.k == 0)}


# The rule, its names of mean and variance, Bessel, the default decay, and how a momentum is given;
# where Bessel's correction depends on something, it is asked for.
PYTORCH = ("running_mean", "running_var")
KERAS = ("moving_mean", "moving_variance")
SONNET = ("moving_mean/average", "moving_variance/average")
LIBRARIES = {
    "pytorch": (Counted, PYTORCH, True, 0.9, ("momentum", 1), {}),
    "torch-geometric": (Counted, PYTORCH, True, 0.9, ("momentum", 1), {}),
    "thunder": (Counted, PYTORCH, True, 0.9, ("momentum", 1), {}),
    "tinygrad": (Counted, PYTORCH, True, 0.9, ("momentum", 1), {}),
    "e3nn": (Blended, PYTORCH, False, 0.9, ("momentum", 1), {}),
    "jittor": (Blended, PYTORCH, False, 0.9, ("momentum", 1), {}),
    "mlx": (Blended, PYTORCH, True, 0.9, ("momentum", 1), {"bessel": True}),
    "mlx 0.32.0": (Blended, PYTORCH, False, 0.9, ("momentum", 1), {"bessel": False}),
    "keras": (Blended, KERAS, False, 0.99, ("momentum", 0), {}),
    "tf-keras 4-D": (Blended, KERAS, True, 0.99, ("momentum", 0), {"bessel": True}),
    "tf-keras 2-D": (Blended, KERAS, False, 0.99, ("momentum", 0), {"bessel": False}),
    "flax": (Blended, ("mean", "var"), False, 0.99, ("momentum", 0), {}),
    "haiku": (
        Debiased,
        ("mean_ema/average", "var_ema/average"),
        False,
        0.95,
        ("decay_rate", 0),
        {},
    ),
    "sonnet 4-D": (Debiased, SONNET, True, 0.999, ("decay_rate", 0), {"bessel": True}),
    "sonnet 2-D": (Debiased, SONNET, False, 0.999, ("decay_rate", 0), {"bessel": False}),
    "equinox-batch": (EquinoxBatch, ("mean", "var"), False, 0.99, ("momentum", 0), {}),
    "objax": (Blended, PYTORCH, False, 0.999, ("momentum", 0), {}),
    "chainer": (Blended, ("avg_mean", "avg_var"), True, 0.9, ("decay", 0), {}),
    "mxnet": (Blended, PYTORCH, False, 0.9, ("momentum", 0), {}),
    "mxnet-symbol": (Blended, ("moving_mean", "moving_var"), False, 0.9, ("momentum", 0), {}),
    "paddle": (Blended, ("_mean", "_variance"), False, 0.9, ("momentum", 0), {}),
    "mindspore": (Blended, KERAS, True, 0.9, ("momentum", 0), {}),
    "onnx": (Blended, ("input_mean", "input_var"), False, 0.9, ("momentum", 0), {"bessel": False}),
    "caffe": (Caffe, ("mean", "variance"), True, 0.999, ("moving_average_fraction", 0), {}),
}
EMA = ("mean", "var")


@pytest.fixture(params=LIBRARIES)
def library(request):
    return request.param


def batches(rng, steps, size, scale=1.0):
    mean, std = rng.normal(0, 2, CHANNELS), rng.uniform(0.3, 3, CHANNELS)
    return [rng.normal(mean, std * scale, (size, CHANNELS)) for _ in range(steps)]


def trained(data, decay, **options):
    bn = bnext.BatchNorm1d(CHANNELS, dtype=np.float64, decay=decay, **options)
    for x in data:
        bn(x)
    return bn


def simulated(library, data, decay=None):
    kind, names, bessel, default, _, ask = LIBRARIES[library]
    theirs = kind(default if decay is None else decay, bessel)
    for x in data:
        theirs(x)
    return theirs, theirs.arrays(*names), ask


def assert_holds(given, expected, rtol=1e-11):
    for name, array in expected.items():
        got = given[name]
        np.testing.assert_allclose(np.squeeze(got), np.squeeze(array), rtol=rtol, err_msg=name)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("size", [2, 4, 32])
def test_what_the_library_stores_after_the_same_batches(rng, library, steps, size):
    decay = LIBRARIES[library][3]
    data = batches(rng, steps, size)
    bn = trained(data, decay)
    theirs, expected, ask = simulated(library, data)
    name = library.partition(" ")[0]
    given = bnext.to_convention(bn, name, count=size, steps=steps, **ask)
    assert_holds(given, expected)
    if "num_batches_tracked" not in expected:  # the layer counts
        assert_holds(bnext.to_convention(bn, name, count=size, **ask), expected)

    momentum, weighs_new = LIBRARIES[library][4]
    assert given[momentum] == pytest.approx(1 - decay if weighs_new else decay, rel=1e-12)
    hyper = {momentum: given[momentum]}
    back = bnext.from_convention(name, {**expected, **hyper}, count=size, steps=steps, **ask)
    np.testing.assert_allclose(back.running_mean, bn.running_mean, rtol=1e-11)
    np.testing.assert_allclose(back.running_var, bn.running_var, rtol=1e-11)
    assert back.num_batches_tracked == steps
    assert back.estimator == bnext.Exponential(decay=bn.decay)
    assert theirs.k == steps


@pytest.mark.parametrize("steps", STEPS)
def test_equal_corrections_take_batches_of_unequal_sizes(rng, library, steps):
    _, _, bessel, decay, _, ask = LIBRARIES[library]
    data = [batches(rng, 1, int(size))[0] for size in rng.integers(2, 40, steps)]
    bn = trained(data, None, estimator=bnext.Exponential(decay=decay, bessel=bessel))
    _, expected, _ = simulated(library, data)
    given = bnext.to_convention(bn, library.partition(" ")[0], steps=steps, **ask)
    assert_holds(given, expected)


@pytest.mark.parametrize("steps", STEPS)
def test_layers_infer_and_go_on_as_the_library_does(rng, library, steps):
    decay, (momentum, _) = LIBRARIES[library][3:5]
    data = [batches(rng, 1, int(size))[0] for size in rng.integers(2, 40, steps)]
    theirs, stored, ask = simulated(library, data)
    name = library.partition(" ")[0]
    values = stored if momentum != "decay_rate" else stored | {"decay_rate": decay}
    bn = bnext.from_convention(name, values, channel_axis=-1, eps=1e-3, **ask)
    x = rng.normal(size=(6, CHANNELS))
    for _ in range(8):
        mean, var = theirs.used
        np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-11)
        np.testing.assert_allclose(bn.running_var, var, rtol=1e-11)
        np.testing.assert_allclose(bn.eval()(x), (x - mean) / np.sqrt(var + 1e-3), rtol=1e-9)
        more = batches(rng, 1, int(rng.integers(2, 40)), scale=3)[0]
        bn.train()(more)
        theirs(more)
    # And so back: by now it stores what the library does. (Equinox' start is in the average.)
    if name != "equinox-batch":
        given = bnext.to_convention(bn, name, steps=theirs.k, **ask)
        assert_holds(given, theirs.arrays(*LIBRARIES[library][1]))


@pytest.mark.parametrize("steps", STEPS)
def test_the_first_batch_whole(rng, steps):
    """Equinox with mode="ema": no other average has its weights, and it has no other's."""
    data = [batches(rng, 1, int(size))[0] for size in rng.integers(2, 40, steps)]
    theirs = EquinoxEma(0.99, False)
    bn = bnext.from_convention(
        "equinox-ema", theirs.arrays(*EMA) | {"weight": rng.normal(size=CHANNELS)}, channel_axis=-1
    )
    assert bn.estimator == bnext.FirstBatchExponential(decay=0.99, bessel=False)
    for n, x in enumerate(data, 1):
        bn(x)
        theirs(x)
        if n in (1, 2, steps):
            np.testing.assert_allclose(bn.running_var, theirs.var, rtol=1e-12)
            loaded = bnext.from_convention("equinox-ema", theirs.arrays(*EMA), channel_axis=-1)
            more = batches(rng, 1, 8)[0]
            other = EquinoxEma(0.99, False)
            other.k, other.mean, other.var = theirs.k, theirs.mean, theirs.var
            loaded(more)
            other(more)
            np.testing.assert_allclose(loaded.running_var, other.var, rtol=1e-12)
    assert_holds(bnext.to_convention(bn, "equinox-ema", count=9), theirs.arrays(*EMA))
    with pytest.raises(ValueError, match="expected an average of another kind"):
        bnext.to_convention(bn, "keras", steps=steps)
    with pytest.raises(ValueError, match="expected an average whose first batch was taken whole"):
        bnext.to_convention(bnext.BatchNorm1d(CHANNELS), "equinox-ema", count=5)
    given = bnext.to_convention(bn, "keras")  # for inference
    np.testing.assert_allclose(given["moving_variance"], theirs.var, rtol=1e-12)


def test_cumulative_averages_of_chainer(rng):
    """With finetune=True every batch has the same weight, and N counts them."""
    data = [batches(rng, 1, int(size))[0] for size in rng.integers(2, 40, 7)]
    bn = bnext.BatchNorm1d(CHANNELS, dtype=np.float64, momentum=None)
    for x in data:
        bn(x)
    given = bnext.to_convention(bn, "chainer", count=5)
    assert (given["N"], given["decay"]) == (7, None)
    np.testing.assert_allclose(given["avg_var"], np.mean([x.var(0, ddof=1) for x in data], 0))
    back = bnext.from_convention("chainer", given)
    assert (back.estimator, back.num_batches_tracked) == (bnext.Cumulative(), 7)
    assert_same_bits(back.running_var, bn.running_var)
    assert bnext.to_convention(trained(data, 0.9), "chainer")["N"] == 0


# --- without count --------------------------------------------------------------------------------

EVERY = [*dict.fromkeys(name.partition(" ")[0] for name in LIBRARIES), "equinox-ema", "ncnn",
         "coreml", "openvino"]  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_inference_stays_there_and_back(rng, dtype, name):
    bn = bnext.BatchNorm1d(CHANNELS, dtype=dtype, momentum=0.05, eps=3e-4)
    for x in batches(rng, 4, 20):
        bn(x.astype(dtype))
    bn.weight[...], bn.bias[...] = rng.normal(size=(2, CHANNELS))
    given = bnext.to_convention(bn, name, prefix="body.bn1.", ndim=4)
    ask = {"bessel": True} if name in ("mlx", "tf-keras", "sonnet") else {}
    back = bnext.from_convention(name, given, channel_axis=1, prefix="body.bn1.", **ask)
    x = rng.normal(size=(9, CHANNELS)).astype(dtype)
    assert back.dtype == dtype
    assert back.eps == bn.eps
    expected = bn.eval()(x)
    if name in ("equinox-batch", "caffe"):  # which divide before they use it: one more rounding
        np.testing.assert_allclose(back.eval()(x), expected, rtol=20 * np.finfo(dtype).eps)
    else:
        assert_same_bits(back.eval()(x), expected)
        again = bnext.to_convention(back, name, prefix="body.bn1.", ndim=4)
        assert given.keys() == again.keys()
        for key, array in given.items():
            if isinstance(array, np.ndarray) and "hidden" not in key:
                assert_same_bits(again[key], array, key)


@pytest.mark.parametrize(
    ("channel_axis", "ndim", "parameter", "statistic"),
    [
        (1, 4, (CHANNELS, 1, 1), (1, CHANNELS, 1, 1)),
        (1, 3, (CHANNELS, 1), (1, CHANNELS, 1)),
        (-1, 4, (CHANNELS,), (1, 1, 1, CHANNELS)),
        (1, 2, (CHANNELS,), (1, CHANNELS)),
    ],
)
def test_sonnet_shapes(rng, channel_axis, ndim, parameter, statistic):
    """Its parameters have 1 at the axes after the channels', its statistics at all others."""
    bn = bnext.BatchNorm(CHANNELS, channel_axis=channel_axis)
    bn.weight[...], bn.bias[...] = rng.normal(size=(2, CHANNELS))
    given = bnext.to_convention(bn, "sonnet", ndim=ndim, bessel=True, steps=math.inf)
    assert given["scale"].shape == given["offset"].shape == parameter
    assert given["moving_mean/average"].shape == given["moving_variance/hidden"].shape == statistic
    back = bnext.from_convention("sonnet", given, channel_axis=channel_axis, bessel=True)
    assert_same_bits(back.weight, bn.weight)
    assert_same_bits(back.bias, bn.bias)


def test_a_layer_that_saw_nothing(rng, library):
    """Everything begins where the library's begins; nothing is divided by 0."""
    name = library.partition(" ")[0]
    _, names, bessel, decay, _, ask = LIBRARIES[library]
    bn = bnext.BatchNorm1d(CHANNELS, decay=decay)
    given = bnext.to_convention(bn, name, count=4, **ask)
    theirs = LIBRARIES[library][0](decay, bessel)
    debiased = isinstance(theirs, Debiased | Caffe)
    np.testing.assert_array_equal(np.squeeze(given[names[0]]), 0)
    np.testing.assert_array_equal(np.squeeze(given[names[1]]), 0 if debiased else 1)
    back = bnext.from_convention(name, given, count=4, steps=0, **ask)
    np.testing.assert_array_equal(back.running_var, 1)
    for key, array in given.items():
        if isinstance(array, np.ndarray):
            assert np.isfinite(array).all(), key


def test_infinitely_many_steps(rng):
    values = {"moving_mean": rng.normal(size=3), "moving_variance": rng.uniform(1, 2, 3)}
    bn = bnext.from_convention("keras", values, count=8, steps=math.inf)
    np.testing.assert_allclose(bn.running_var, values["moving_variance"] * 8 / 7, rtol=1e-15)
    given = bnext.to_convention(bn, "haiku", count=8, steps=math.inf)
    var = values["moving_variance"]
    np.testing.assert_allclose(given["var_ema/average"].reshape(-1), var, rtol=1e-14)
    np.testing.assert_allclose(given["var_ema/hidden"].reshape(-1), var, rtol=1e-14)
    back = bnext.from_convention("haiku", given, channel_axis=1)
    np.testing.assert_allclose(back.running_var, var, rtol=1e-14)
    assert back.num_batches_tracked > 1000
