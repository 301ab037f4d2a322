"""Layers beside torch.nn's: every combination of options, dtypes, shapes and memory formats."""

import itertools

import pytest

import bnext

from .support import (
    DTYPES,
    MEMORIES,
    Failure,
    assert_close,
    assert_same_steps,
    buffers_of,
    layers,
    name_of,
    name_of_dtype,
    outcome_of,
    step,
    torch,
)

SHAPES = [
    (6, 5), (4, 5, 7), (4, 5, 1), (3, 5, 4, 2), (1, 5, 3, 2), (2, 5, 1, 1), (3, 5, 2, 3, 2),
]  # fmt: skip
ONE_CHANNEL = [(7, 1), (3, 1, 4), (1, 1, 3, 3), (2, 1, 3, 2, 2)]
EMPTY = [(0, 5), (0, 5, 3), (4, 5, 0), (0, 5, 2, 2), (3, 5, 0, 2), (0, 5, 1, 1, 1)]
NO_CHANNELS = [(2, 0), (2, 0, 3), (2, 0, 3, 3)]
SINGLE = [(1, 5), (1, 5, 1), (1, 5, 1, 1), (1, 5, 1, 1, 1)]

PARAMETERS = {"affine": (), "no-bias": ("bias",), "no-weight": ("weight",), "plain": None}
MOMENTA = (0.1, None, 0, 1)


def pair(shape, dtype, parameters, training, **options):
    without = PARAMETERS[parameters]
    options["affine"] = without is not None
    ours_and_theirs = layers(
        name_of(shape), shape[1], without=without or (), dtype=dtype, **options
    )
    return [layer.train(training) for layer in ours_and_theirs]


def scale_of(layer, x, dy):
    """What y and dx are sums of, at most: |x| or |dy|, times |weight| * rstd."""
    by_batch = layer.training or layer.running_var is None
    dims = [axis for axis in range(x.dim()) if axis != 1]
    var = x.double().var(dims, correction=0) if by_batch else layer.running_var.double()
    weight = 1.0 if layer.weight is None else layer.weight.detach().abs().max().double()
    largest = max(x.double().abs().max(), dy.double().abs().max())
    return float((var + layer.eps).rsqrt().max() * weight * largest)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
@pytest.mark.parametrize("shape", SHAPES + ONE_CHANNEL, ids=str)
def test_layers_in_every_combination(shape, dtype, tracked, training, kernel_calls):
    """Values, gradients, statistics, the counter, dtypes and formats; and the kernels ran."""
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(dtype)
    dy = torch.randn(shape).to(dtype)
    laid = {memory: put(x) for memory, put in MEMORIES.items()}
    inputs = {memory: x for memory, x in laid.items() if x is not None}
    # Where no statistics move, two kinds of momentum are enough.
    options = itertools.product(PARAMETERS, MOMENTA if training and tracked else MOMENTA[:2])
    steps = 0
    for parameters, momentum in options:
        theirs, ours = pair(
            shape, dtype, parameters, training, momentum=momentum, track_running_stats=tracked
        )
        scale = scale_of(theirs, x, dy)
        for memory, laid_x in inputs.items():
            theirs.zero_grad()
            ours.zero_grad()
            try:
                assert_same_steps(step(ours, laid_x, dy), step(theirs, laid_x, dy), scale)
            except AssertionError as error:
                what = f"{memory}, {parameters}, momentum {momentum}"
                raise AssertionError(f"{what}: {error}") from error
            steps += 1
    by_batch = training or not tracked
    assert kernel_calls["forward" if by_batch else "inference"] == steps
    constant = 0 if by_batch else steps // len(PARAMETERS)
    assert kernel_calls["backward_constant"] == constant
    assert kernel_calls["backward"] == steps - constant


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
@pytest.mark.parametrize("shape", EMPTY + NO_CHANNELS + SINGLE, ids=str)
def test_layers_of_nothing_or_single_values(shape, dtype, training):
    """PyTorch takes some and refuses others: with the same words."""
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    for (memory, put), parameters, tracked in itertools.product(
        MEMORIES.items(), PARAMETERS, (True, False)
    ):
        laid = put(x)
        if laid is None:
            continue
        theirs, ours = pair(shape, dtype, parameters, training, track_running_stats=tracked)
        before = buffers_of(ours)
        expected = outcome_of(step, theirs, laid, dy)
        actual = outcome_of(step, ours, laid, dy)
        what = f"{memory}, {parameters}, tracked {tracked}"
        if isinstance(expected, Failure):
            assert actual == expected, what
            for name, value in buffers_of(ours).items():  # a call that raises has not been counted
                assert value is None or torch.equal(value, before[name]), what
        else:
            assert_same_steps(actual, expected, 10.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_layers_over_many_steps(dtype, kernel_calls):
    """Training and evaluation in turn, statistics moving, momentum a number or none."""
    for momentum, tracked in itertools.product((0.1, None), (True, False)):
        theirs, ours = pair(
            (4, 5, 3, 3), dtype, "affine", True, momentum=momentum, track_running_stats=tracked
        )
        for layer in (theirs, ours):
            layer.reset_running_stats()
        for number in range(6):
            training = number not in (2, 5)
            x, dy = (torch.randn(2, 4, 5, 3, 3) * 2 + 1).to(dtype)
            for layer in (theirs, ours):
                layer.train(training)
                layer.zero_grad()
            scale = scale_of(theirs, x, dy)
            # Statistics of 16 bits differ by a unit after a step; y follows.
            several = (number + 1) * scale
            assert_same_steps(step(ours, x, dy), step(theirs, x, dy), several)
    assert kernel_calls["forward"] == 2 * (4 + 6)
    assert kernel_calls["inference"] == 2 * 2


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=name_of_dtype)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_16_bit_data_under_float32_layers(kind, training, kernel_calls):
    for tracked, parameters in itertools.product((True, False), PARAMETERS):
        shape = (6, 5, 4, 4)
        theirs, ours = pair(shape, torch.float32, parameters, training, track_running_stats=tracked)
        x, dy = (torch.randn(2, *shape) * 2 + 1).to(kind)
        expected, actual = step(theirs, x, dy), step(ours, x, dy)
        scale = scale_of(theirs, x, dy)
        assert actual.y.dtype == kind
        assert_close(actual.y, expected.y, "y", scale)
        assert_close(actual.dx, expected.dx, "dx", scale)
        for name, gradient in expected.gradients.items():
            assert_close(actual.gradients[name], gradient, name, scale * x.numel() ** 0.5)
        for name, value in expected.buffers.items():
            assert_close(actual.buffers[name], value, name)
    assert sum(kernel_calls.values()) == 16


@pytest.mark.parametrize("method", ["half", "bfloat16", "double", "float"])
def test_layers_cast_to_another_dtype(method, kernel_calls):
    theirs, ours = (getattr(layer, method)() for layer in layers("BatchNorm2d"))
    x, dy = (getattr(values, method)() for values in torch.randn(2, 4, 5, 3, 3))
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        assert ours.running_mean.dtype == x.dtype
        assert_same_steps(step(ours, x, dy), step(theirs, x, dy), 10.0)
    assert kernel_calls == {"forward": 1, "inference": 1, "backward": 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_not_a_number_reaches_the_same_places(value, training):
    theirs, ours = (layer.train(training) for layer in layers("BatchNorm2d"))
    x, dy = torch.randn(2, 4, 5, 3, 3)
    x[1, 2, 0, 1] = value
    expected, actual = step(theirs, x, dy), step(ours, x, dy)
    assert torch.equal(actual.y.isnan(), expected.y.isnan())
    assert torch.equal(actual.dx.isnan(), expected.dx.isnan())
    for name in ("running_mean", "running_var"):
        assert torch.equal(actual.buffers[name].isfinite(), expected.buffers[name].isfinite())


def test_running_statistics_that_are_no_statistics(kernel_calls):
    """Negative variances, infinite ones and NaN, where PyTorch has NaN or 0."""
    x = torch.randn(4, 3)
    for value in (-1.0, float("nan"), float("inf")):
        mean, var = torch.zeros(3), torch.full((3,), value)
        expected = torch.nn.functional.batch_norm(x, mean, var)
        actual = bnext.torch.functional.batch_norm(x, mean, var)
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.nan_to_num(), expected.nan_to_num())
    assert kernel_calls == {"inference": 3}
