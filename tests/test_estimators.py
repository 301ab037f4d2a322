"""What layers make of the statistics of many batches, against NumPy written from the formulas."""

import copy
import pickle

import numpy as np
import pytest

import bnext

from .snapshots import layer_state, raises_exactly

CHANNELS = 5
BATCHES = (3, 7, 2, 11, 5, 64)


def batches_of(rng, dtype, counts=BATCHES):
    return [
        (rng.normal(size=(n, CHANNELS)) * rng.uniform(0.5, 2) + rng.uniform(-2, 2)).astype(dtype)
        for n in counts
    ]


def statistics_of(batches, bessel):
    """Mean and variance of each batch in float64, shapes (batches, C)."""
    wide = [batch.astype(np.float64) for batch in batches]
    means = np.array([x.mean(axis=0) for x in wide])
    return means, np.array([x.var(axis=0, ddof=int(bessel)) for x in wide])


def exponential(values, decay, initial):
    """decay**t * initial + (1 - decay) * sum of decay**(t - i) * value_i."""
    t = len(values)
    powers = decay ** np.arange(t - 1, -1, -1.0)
    return decay**t * initial + (1 - decay) * powers @ values


def debiased(values, decay):
    t = len(values)
    return exponential(values, decay, 0.0) / (1 - decay**t)


def expected_of(estimator, means, variances):
    if type(estimator) is bnext.Cumulative:
        return means.mean(axis=0), variances.mean(axis=0)
    if type(estimator) is bnext.DebiasedExponential:
        return debiased(means, estimator.decay), debiased(variances, estimator.decay)
    if type(estimator) is bnext.FirstBatchExponential:
        (mean, *means), (var, *variances) = means, variances
        rest = np.reshape(means, (-1, *mean.shape)), np.reshape(variances, (-1, *var.shape))
        return tuple(
            exponential(values, estimator.decay, first)
            for values, first in zip(rest, (mean, var), strict=True)
        )
    return (
        exponential(means, estimator.decay, 0.0),
        exponential(variances, estimator.decay, 1.0),
    )


ESTIMATORS = {
    "exponential": lambda bessel: bnext.Exponential(bessel=bessel),
    "momentum-0.3": lambda bessel: bnext.Exponential(0.3, bessel=bessel),
    "decay-0.99": lambda bessel: bnext.Exponential(decay=0.99, bessel=bessel),
    "cumulative": lambda bessel: bnext.Cumulative(bessel=bessel),
    "debiased": lambda bessel: bnext.DebiasedExponential(bessel=bessel),
    "debiased-0.999": lambda bessel: bnext.DebiasedExponential(decay=0.999, bessel=bessel),
    "first-batch": lambda bessel: bnext.FirstBatchExponential(decay=0.7, bessel=bessel),
    "debiased-0": lambda bessel: bnext.DebiasedExponential(decay=0.0, bessel=bessel),
}


@pytest.fixture(params=ESTIMATORS)
def make(request):
    return ESTIMATORS[request.param]


@pytest.mark.parametrize("bessel", [True, False])
def test_running_statistics_are_what_the_formula_says(rng, dtype, make, bessel):
    estimator = make(bessel)
    bn = bnext.BatchNorm1d(CHANNELS, dtype=dtype, estimator=estimator)
    batches = batches_of(rng, dtype)
    means, variances = statistics_of(batches, bessel)
    # float32 statistics round once a batch.
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    for t, x in enumerate(batches, 1):
        bn(x)
        mean, var = expected_of(estimator, means[:t], variances[:t])
        np.testing.assert_allclose(bn.running_mean, mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(bn.running_var, var, rtol=tolerance)
    assert bn.num_batches_tracked == len(batches)


def test_bessel_changes_nothing_but_what_is_kept(rng, dtype):
    x, dy = batches_of(rng, dtype, (9, 9))
    layers = [
        bnext.BatchNorm1d(CHANNELS, dtype=dtype, estimator=bnext.Exponential(bessel=bessel))
        for bessel in (True, False)
    ]
    (y, dx), (y_biased, dx_biased) = [(bn(x), bn.backward(dy)) for bn in layers]
    np.testing.assert_array_equal(y, y_biased)
    np.testing.assert_array_equal(dx, dx_biased)
    unbiased, biased = ((bn.running_var - 0.9) / 0.1 for bn in layers)
    np.testing.assert_allclose(biased / unbiased, 8 / 9, rtol=1e-5)


def test_the_first_batch_is_all_that_a_debiased_average_knows(rng, dtype):
    (x,) = batches_of(rng, dtype, (6,))
    debiased, plain = (
        bnext.BatchNorm1d(CHANNELS, dtype=dtype, estimator=estimator)
        for estimator in (bnext.DebiasedExponential(0.01), bnext.Exponential(0.01))
    )
    debiased(x)
    plain(x)
    m = bnext.moments(x)
    np.testing.assert_allclose(debiased.running_mean, m.mean, rtol=1e-6)
    np.testing.assert_allclose(debiased.running_var, m.unbiased_var, rtol=1e-6)
    assert np.all(np.abs(plain.running_var - 1) < 0.01 * np.abs(m.unbiased_var - 1) + 1e-6)


def test_weights_of_batches():
    assert [bnext.Exponential(0.25).weight(t) for t in (1, 2, 100)] == [0.25] * 3
    assert [bnext.Cumulative().weight(t) for t in (1, 2, 4)] == [1.0, 0.5, 0.25]
    weights = [bnext.DebiasedExponential(0.25).weight(t) for t in (1, 2, 3)]
    np.testing.assert_allclose(weights, [1, 0.25 / (1 - 0.75**2), 0.25 / (1 - 0.75**3)], rtol=1e-15)
    tiny = bnext.DebiasedExponential(1e-18).weight(3)  # where 1 - decay**t cancels
    assert tiny == pytest.approx(1 / 3, rel=1e-12)


def test_a_layer_takes_momentum_decay_or_an_estimator():
    default = bnext.BatchNorm1d(2)
    assert default.estimator == bnext.Exponential(0.1)
    assert (default.momentum, default.decay) == (0.1, 0.9)
    assert bnext.BatchNorm1d(2, momentum=0.1).estimator == default.estimator
    assert bnext.BatchNorm1d(2, momentum=None).estimator == bnext.Cumulative()
    assert bnext.BatchNorm1d(2, decay=0.75).estimator == bnext.Exponential(0.25)
    given = bnext.DebiasedExponential(decay=0.5, bessel=False)
    assert bnext.BatchNorm1d(2, estimator=given).estimator is given
    assert bnext.Exponential(0.5) != bnext.DebiasedExponential(0.5)


def test_momentum_and_decay_can_be_set():
    bn = bnext.BatchNorm1d(2, estimator=bnext.DebiasedExponential(0.5, bessel=False))
    bn.momentum = 0.25
    assert bn.estimator == bnext.DebiasedExponential(0.25, bessel=False)
    bn.decay = 0.5
    assert bn.estimator == bnext.DebiasedExponential(0.5, bessel=False)
    bn.momentum = None
    assert bn.estimator == bnext.Cumulative(bessel=False)
    assert bn.decay is None
    bn.momentum = 0.2
    assert bn.estimator == bnext.Exponential(0.2, bessel=False)


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (
            lambda: bnext.BatchNorm1d(2, momentum=0.1 + 0, decay=0.9), ValueError,
            "decay: expected one of momentum, decay and estimator, got momentum=0.1 and decay=0.9",
        ),
        (
            lambda: bnext.BatchNorm1d(2, momentum=None, estimator=bnext.Cumulative()), ValueError,
            "estimator: expected one of momentum, decay and estimator, got momentum=None and "
            "estimator=Cumulative()",
        ),
        (
            lambda: bnext.BatchNorm1d(2, decay=0.9, estimator=bnext.Exponential(0.5)), ValueError,
            "estimator: expected one of momentum, decay and estimator, got decay=0.9 and "
            "estimator=Exponential(momentum=0.5)",
        ),
        (
            lambda: bnext.Exponential(0.1, decay=0.9), ValueError,
            "decay: expected it or momentum, which is 1 - decay, got decay=0.9 and momentum=0.1",
        ),
        (
            lambda: bnext.Exponential(decay=float("nan")), ValueError,
            "decay: expected a finite number, got nan",
        ),
        (
            lambda: bnext.Exponential(decay="0.9"), TypeError,
            "decay: expected a number, got str",
        ),
        (
            lambda: bnext.DebiasedExponential(0.0), ValueError,
            "momentum: expected a number above 0 and at most 1, got 0.0",
        ),
        (
            lambda: bnext.DebiasedExponential(1.5), ValueError,
            "momentum: expected a number above 0 and at most 1, got 1.5",
        ),
        (
            lambda: bnext.BatchNorm1d(2, estimator=0.1), TypeError,
            "estimator: expected one such as bnext.Exponential(), got float",
        ),
    ],
)  # fmt: skip
def test_what_is_no_estimator(make, kind, text):
    with raises_exactly(kind, text, {}):
        make()


def test_a_wrong_momentum_changes_nothing():
    bn = bnext.BatchNorm1d(2)
    text = "momentum: expected a finite number or None, got nan"
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn.momentum = float("nan")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "momentum=0.1,"),
        ({"decay": 0.5}, "momentum=0.5,"),
        ({"momentum": None}, "momentum=None,"),
        (
            {"estimator": bnext.DebiasedExponential(0.5)},
            "estimator=DebiasedExponential(momentum=0.5),",
        ),
        ({"estimator": bnext.Cumulative(bessel=False)}, "estimator=Cumulative(bessel=False),"),
        (
            {"estimator": bnext.Exponential(0.5, bessel=False)},
            "estimator=Exponential(momentum=0.5, bessel=False),",
        ),
    ],
)
def test_repr(options, text):
    assert text in repr(bnext.BatchNorm1d(2, **options))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies(make, copied):
    estimator = make(False)
    assert copied(estimator) == estimator
    bn = copied(bnext.BatchNorm1d(2, estimator=estimator))
    assert bn.estimator == estimator


def test_state_dicts_are_the_same_whatever_the_estimator(rng, dtype):
    batches = batches_of(rng, dtype)
    bn = bnext.BatchNorm1d(CHANNELS, dtype=dtype, estimator=bnext.DebiasedExponential(0.05))
    for x in batches[:3]:
        bn(x)
    resumed = bnext.BatchNorm1d(CHANNELS, dtype=dtype, estimator=bnext.DebiasedExponential(0.05))
    resumed.load_state_dict(bn.state_dict())
    assert resumed.num_batches_tracked.dtype == np.int64
    for x in batches[3:]:
        np.testing.assert_array_equal(bn(x), resumed(x))
    np.testing.assert_array_equal(bn.running_var, resumed.running_var)


def test_the_counter_is_an_int64_beyond_32_bits(rng):
    bn = bnext.BatchNorm1d(CHANNELS, momentum=None, dtype=np.float64)
    bn.num_batches_tracked[...] = 2**40
    (x,) = batches_of(rng, np.float64, (4,))
    bn(x)
    assert int(bn.num_batches_tracked) == 2**40 + 1
    np.testing.assert_allclose(bn.running_mean, x.mean(axis=0) / (2**40 + 1), rtol=1e-9)
