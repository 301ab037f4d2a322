"""Counts, counters and masks: any integer, no other number, and no mask that is dropped."""

import math
import sys

import numpy as np
import pytest

import bnext
from bnext import arguments

from .optional import import_extra
from .snapshots import layer_state, raises_exactly

INTEGERS = "bBhHiIlLqQ"
LARGEST = np.iinfo(np.int64).max
COUNTER = f"num_batches_tracked: expected a count of batches, an integer from 0 to {LARGEST}, got "

NOT_COUNTS = {
    "2.5": 2.5, "2.0": 2.0, "nan": float("nan"), "numpy's 2.5": np.float64(2.5), "complex": 1j,
    "True": True, "numpy's True": np.True_, "None": None, "text": "5", "a vector": np.array([5]),
    "a 0-d float": np.array(2.5), "masked": np.ma.masked, "under a mask": np.ma.array(5, mask=True),
}  # fmt: skip


def masked(values):
    return np.ma.array(values, mask=[True] + [False] * (len(values) - 1))


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", INTEGERS)
def test_counts_of_any_integer_type_do_not_overflow(code):
    count = np.iinfo(code).max
    one = bnext.Moments(np.array(count, code)[()], np.zeros(2), np.ones(2))
    assert type(one.count) is int
    both = one + one
    assert both.count == 2 * int(count)
    assert both.m2.tolist() == [2.0, 2.0]
    assert bnext.Moments(np.array(count, code), np.zeros(2), np.ones(2)) == one
    assert one.unbiased_var[0] == 1 / (int(count) - 1)


COUNTS = {
    "Moments": (lambda n: bnext.Moments(n, np.zeros(2), np.ones(2)), "count"),
    "Moments.empty": (bnext.Moments.empty, "channels"),
    "Cumulative": (bnext.Cumulative().weight, "batch"),
    "DebiasedExponential": (bnext.DebiasedExponential(0.1).weight, "batch"),
    "to_convention": (
        lambda n: bnext.to_convention(bnext.BatchNorm1d(2), "keras", count=n), "count"
    ),
    "from_convention": (
        lambda n: bnext.from_convention("flax", {"mean": [0, 0], "var": [1, 1]}, count=n), "count"
    ),
    "num_features": (bnext.BatchNorm1d, "num_features"),
    "channel_axis": (lambda n: bnext.BatchNorm(2, channel_axis=n), "channel_axis"),
    "groups": (
        lambda n: bnext.fold(np.ones((2, 2)), None, bnext.BatchNorm1d(2), axis=1, groups=n),
        "groups",
    ),
    "keep": (
        lambda n: bnext.update_statistics(
            lambda x: x, [], [bnext.BatchNorm1d(2)], keep=object() if n is None else n
        ),
        "keep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", NOT_COUNTS.values(), ids=NOT_COUNTS)
def test_what_is_no_integer_is_refused(name, value):
    call, argument = COUNTS[name]
    if value is None and "convention" in name:
        call(None)  # which is their default
        return
    if name == "Moments" and isinstance(value, float) and value > 0:  # a sum of weights
        assert call(value).count == value
        return
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected (a|one integer)"):
        call(value)


@pytest.mark.parametrize("number", [0, -1])
def test_batches_are_numbered_from_1(number):
    for estimator in (bnext.Cumulative(), bnext.DebiasedExponential(0.1)):
        text = f"batch: expected an integer >= 1, got {number}"
        with raises_exactly(ValueError, text, {}):
            estimator.weight(number)
        assert estimator.weight(np.int8(1)) == 1.0


def test_counts_of_torch(torch):
    assert bnext.Moments(torch.tensor(5), np.zeros(2), np.ones(2)).count == 5
    with pytest.raises(TypeError, match=r"^count: expected an integer"):
        bnext.Moments(torch.tensor(5.0), np.zeros(2), np.ones(2))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.ones(2, complex), "expected an array of real numbers, got complex128"),
        (["1", "2"], "expected an array of real numbers, got <U1"),
        (masked([1.0, 2.0]), "expected an array without a mask, got a MaskedArray"),
        ([masked([1.0])[0], 1.0], "expected an array without a mask, got a MaskedArray"),
    ],
)
@pytest.mark.parametrize("name", ["mean", "m2"])
def test_moments_are_of_real_numbers(name, values, text):
    arguments = {"count": 3, "mean": np.zeros(2), "m2": np.ones(2)} | {name: values}
    with pytest.raises(TypeError, match=f"^{name}: {text}"):
        bnext.Moments(**arguments)


def test_moments_of_nan_and_infinity_under_any_error_state():
    one = bnext.Moments(3, [np.nan, np.inf, 1e-200], [1.0, 1.0, 1e-300])
    other = bnext.Moments(5, [1.0, np.inf, -1e-200], [1.0, 1e308, 1e-300])
    with np.errstate(all="raise"):
        both = one + other
        assert np.isnan(both.mean[:2]).all()
        assert np.isfinite(both.unbiased_var[2])
        assert np.isnan(bnext.Moments.empty(2).var).all()


# --- the counter of batches -----------------------------------------------------------------------


def loaded(value, momentum=None):
    bn = bnext.BatchNorm1d(3, momentum=momentum)
    bn.load_state_dict(bn.state_dict() | {"num_batches_tracked": value})
    return bn


def converted(value):
    layer = {"running_mean": np.zeros(3), "running_var": np.ones(3), "momentum": None}
    return bnext.from_convention("pytorch", layer | {"num_batches_tracked": value})


@pytest.mark.parametrize("take", [loaded, converted])
@pytest.mark.parametrize("code", [*INTEGERS, "e", "f", "d"])
def test_counters_of_any_dtype_load(rng, take, code):
    largest = int(np.iinfo(code).max) if code in INTEGERS else 2048
    for number in (0, 7, min(largest, LARGEST - 1)):
        bn = take(np.array(number, code))
        assert bn.num_batches_tracked.dtype == np.int64
        assert bn.num_batches_tracked == number
        bn(rng.normal(size=(4, 3)).astype(bn.dtype))
        assert int(bn.num_batches_tracked) == number + 1


@pytest.mark.parametrize("take", [loaded, converted])
def test_counters_of_other_libraries_load(take):
    values = [7, 7.0, np.int8(7)]
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        values += [torch.tensor(7), torch.tensor(7, dtype=torch.uint8), torch.tensor(7.0)]
    if "jax" in sys.modules:
        values.append(sys.modules["jax"].numpy.asarray(7))
    for value in values:
        assert take(value).num_batches_tracked == 7


REFUSED = {
    "negative": (-1, "-1"), "of int8": (np.int8(-1), "-1"),
    "beyond": (np.uint64(2**63), str(2**63)),
    "far beyond": (2**70, str(2**70)), "fractional": (2.5, "2.5"), "nan": (np.nan, "nan"),
    "infinite": (np.float32(np.inf), "inf"), "complex": (1j, "1j"), "a switch": (True, "True"),
    "text": ("7", "'7'"), "large": (1e300, "1e+300"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "got"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_counter_is_refused(value, got):
    bn = bnext.BatchNorm1d(3)
    bn.num_batches_tracked[...] = 4
    state = {k: v + 1 for k, v in bn.state_dict().items()} | {"num_batches_tracked": value}
    text = (
        "Error(s) in loading state_dict for BatchNorm1d:\n\tWhile copying the parameter named "
        f'"num_batches_tracked", got: {COUNTER}{got}'
    )
    with raises_exactly(RuntimeError, text, lambda: layer_state(bn)):
        bn.load_state_dict(state)
    with pytest.raises((TypeError, ValueError)) as caught:
        converted(value)
    assert str(caught.value) == COUNTER + got


def test_a_layer_s_own_counter_of_another_type_does_not_wrap():
    bn = bnext.BatchNorm1d(3)
    bn.num_batches_tracked = np.array(0, np.int8)
    state = bnext.BatchNorm1d(3).state_dict()
    state["num_batches_tracked"][...] = 300
    with pytest.raises(RuntimeError, match="expected a number that int8 holds, got 300"):
        bn.load_state_dict(state)
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize("number", [-1, LARGEST])
@pytest.mark.parametrize("uses", [False, True])
@pytest.mark.parametrize(
    "estimator", [bnext.Exponential(), bnext.Cumulative(), bnext.DebiasedExponential()]
)
def test_counters_that_cannot_count_on(rng, number, uses, estimator):
    """Cumulative averages would divide by zero, and the largest number would become negative."""
    bn = bnext.BatchNorm1d(3, estimator=estimator)
    bn.num_batches_tracked[...] = number
    if uses:
        bn.use_running_stats = bn.update_running_stats = True
    x = rng.normal(size=(4, 3)).astype(np.float32)
    text = f"num_batches_tracked: expected a count of batches from 0 to {LARGEST - 1}, got {number}"
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn(x)
    bn.reset_running_stats()
    bn(x)
    assert bn.num_batches_tracked == 1


# --- values of 16 bits ----------------------------------------------------------------------------


def test_bfloat16_arrays_load_and_convert(rng):
    bfloat16 = import_extra("ml_dtypes").bfloat16
    values = rng.normal(1, 0.3, (4, 3)).astype(bfloat16)
    values[3] = np.abs(values[3].astype(np.float32))
    names = ("weight", "bias", "running_mean", "running_var")
    state = dict(zip(names, values, strict=True))
    bn = bnext.BatchNorm1d(3)
    bn.load_state_dict(state | {"num_batches_tracked": np.array(3, bfloat16)})
    made = bnext.from_convention("pytorch", state)
    for name, value in state.items():
        assert getattr(bn, name).tolist() == value.astype(np.float32).tolist()
        assert getattr(made, name).tolist() == value.astype(np.float32).tolist()
    assert made.dtype == np.float32
    assert bn.num_batches_tracked == 3
    folded, _ = bnext.fold(values[:3].T, None, made)
    assert folded.dtype == bfloat16


def test_a_variance_of_integers_is_corrected_as_a_real_one():
    arrays = {"moving_mean": [0, 0], "moving_variance": [1, 3]}
    bn = bnext.from_convention("keras", arrays, count=3, steps=math.inf)
    assert bn.running_var.tolist() == [1.5, 4.5]
    assert bn.dtype == np.float32


# --- masks ----------------------------------------------------------------------------------------

MASKS = {
    "load_state_dict": lambda m: bnext.BatchNorm1d(3).load_state_dict(
        bnext.BatchNorm1d(3).state_dict() | {"weight": m}
    ),
    "from_convention": lambda m: bnext.from_convention("flax", {"mean": np.ones(3), "var": m}),
    "fold, weight": lambda m: bnext.fold(np.ma.diag(m), None, bnext.BatchNorm1d(3)),
    "fold, bias": lambda m: bnext.fold(np.ones((3, 2)), m, bnext.BatchNorm1d(3)),
    "fold_into_next, bias": lambda m: bnext.fold_into_next(
        bnext.BatchNorm1d(3), np.ones((3, 3)), m
    ),
    "forward, x": lambda m: bnext.batch_norm_forward(m),
    "forward, weight": lambda m: bnext.batch_norm_forward(np.ones((4, 3)), m),
    "forward, bias": lambda m: bnext.batch_norm_forward(np.ones((4, 3)), None, m),
    "normalize, mean": lambda m: bnext.normalize(np.ones((4, 3)), m, np.ones(3)),
    "moments": lambda m: bnext.moments(m),
    "Moments": lambda m: bnext.Moments(3, m, np.ones(3)),
    "layer": lambda m: bnext.BatchNorm1d(3, dtype=np.float64)(np.ma.array([m, m])),
}


@pytest.mark.parametrize("in_a_list", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_no_mask_is_dropped(name, in_a_list):
    values = masked([1.0, 2.0, 3.0])
    if in_a_list and name in ("layer", "fold, weight"):
        return
    with pytest.raises((TypeError, RuntimeError), match=r"without a mask, got a MaskedArray") as e:
        MASKS[name]([*values] if in_a_list else values)
    assert ".filled(value)" in str(e.value)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_no_mask_of_a_layer_s_own_array_is_dropped(name):
    bn = bnext.BatchNorm1d(3)
    setattr(bn, name, masked(getattr(bn, name)))
    text = f"^{name}: expected an array without a mask"
    x = np.ones((4, 3), np.float32)
    calls = [lambda: bn(x), bn.as_affine, lambda: bn.to(x), bn.reset_parameters]
    for call in (*calls, lambda: bn.eval()(x)):
        with pytest.raises(TypeError, match=text):
            call()
    with pytest.raises(TypeError, match="expected an array without a mask"):
        bnext.to_convention(bn, "keras")


def test_masks_are_found_anywhere_in_lists():
    assert arguments.has_mask([[1.0], [masked([1.0, 2.0])]])
    assert not arguments.has_mask([[1.0], (np.ones(2), "text")])
    endless = []
    endless.append(endless)
    with pytest.raises((TypeError, ValueError)):
        bnext.moments(endless)
