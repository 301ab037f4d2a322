"""Layer, RMS, group and instance normalization of `bnext.jax`: NumPy's bits, and errors."""

import dataclasses
import re

import numpy as np
import pytest

import bnext

from .norms import ADDED, SUBJECTS, Inputs
from .support import DTYPES, assert_same_bits, jax, jnp


def assert_agrees(inputs, transform=jax.jit):
    expected = inputs.by_numpy()
    actual = transform(inputs.gradients)(inputs.dy, *inputs.arrays)
    assert len(actual) == len(expected) == len(inputs.arrays) + 1
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(one, other, f"result {number}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_norms_bits(rng, subject, dtype):
    assert_agrees(Inputs(rng, subject, dtype))


def test_norms_bits_without_jit(rng):
    for subject in SUBJECTS:
        assert_agrees(Inputs(rng, subject), lambda function: function)


@pytest.mark.parametrize("activation", ["silu", "leaky_relu", None])
@pytest.mark.parametrize("subject", ADDED)
def test_norms_bits_with_a_residual(rng, subject, activation):
    for dtype in DTYPES:
        inputs = Inputs(rng, subject, dtype, adds=True, activation=activation)
        for transform in (jax.jit, lambda function: function):
            assert_agrees(inputs, transform)


@pytest.mark.parametrize("subject", ["layer", "group, channels last"])
def test_norms_a_residual_alone_has_the_gradient_dy(rng, subject):
    """Nothing is kept of it, and nothing computed."""
    inputs = Inputs(rng, subject, adds=True)
    assert_same_bits(jax.jit(inputs.gradients)(inputs.dy, *inputs.arrays)[-1], inputs.dy)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("subject", ADDED)
def test_norms_bits_of_float64_with_a_residual(rng, subject):
    assert_agrees(Inputs(rng, subject, np.float64, adds=True, activation="tanh"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("subject", SUBJECTS)
def test_norms_bits_of_float64(rng, subject):
    inputs = Inputs(rng, subject, np.float64)
    inputs.x += 1e8  # where the mean has a low part
    assert_agrees(inputs)


def test_norms_bits_of_rows_that_threads_share(rng):
    """Few and long rows, and rows enough for a team."""
    for shape, length in (((3, 150_001), 150_001), ((3000, 130), 130)):
        x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
        weight = rng.uniform(0.5, 1.5, length).astype(np.float32)
        y, saved = bnext.rms_norm_forward(x, length, weight)
        actual, pull_back = jax.vjp(lambda x, w: bnext.jax.rms_norm(x, w.shape, w), x, weight)
        assert_same_bits(actual, y)
        for one, other in zip(
            pull_back(dy), bnext.rms_norm_backward(dy, x, saved, weight), strict=True
        ):
            assert_same_bits(one, other)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_norms_without_parameters(rng, subject):
    inputs = Inputs(rng, subject)
    y, saved = inputs.norm.by_numpy(inputs.x)
    dx = inputs.norm.gradients_by_numpy(inputs.dy, inputs.x, saved, None)[0]
    actual, pull_back = jax.vjp(inputs.norm.by_jax, inputs.x)
    assert_same_bits(actual, y)
    assert_same_bits(pull_back(inputs.dy)[0], dx)


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if "rms" not in name])
def test_norms_with_a_bias_alone(rng, subject):
    inputs = Inputs(rng, subject)
    bias = inputs.affine[1]
    y, saved = inputs.norm.by_numpy(inputs.x, None, bias)
    dx, _, dbias = inputs.norm.gradients_by_numpy(inputs.dy, inputs.x, saved, None)
    actual, pull_back = jax.vjp(lambda x, bias: inputs.norm.by_jax(x, None, bias), inputs.x, bias)
    for one, other in zip((actual, *pull_back(inputs.dy)), (y, dx, dbias), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x: bnext.jax.layer_norm(x, x.shape[-1], jnp.ones(x.shape[-1])), (0, 4)),
        (lambda x: bnext.jax.layer_norm(x, x.shape[-1], jnp.ones(x.shape[-1])), (3, 0)),
        (lambda x: bnext.jax.rms_norm(x, x.shape[-2:]), (2, 0, 4)),
        (lambda x: bnext.jax.group_norm(x, 2, jnp.ones(x.shape[-1])), (0, 5, 4)),
        (lambda x: bnext.jax.instance_norm(x, jnp.ones(x.shape[-1])), (0, 5, 4)),
    ],
)
def test_norms_of_nothing(call, shape):
    x = jnp.zeros(shape)
    assert jax.jit(call)(x).shape == shape
    assert jax.jit(jax.grad(lambda x: call(x).sum()))(x).shape == shape


def test_norms_epsilon_of_rms(rng):
    """PyTorch's, by the arithmetic, where none is given."""
    x = (rng.normal(size=(5, 9)) * 1e-4).astype(np.float32)
    assert_same_bits(bnext.jax.rms_norm(x, 9), bnext.rms_norm_forward(x, 9)[0])
    narrow = x.astype(jnp.bfloat16)
    assert_same_bits(bnext.jax.rms_norm(narrow, 9), bnext.rms_norm_forward(narrow, 9)[0])


# --- errors ---------------------------------------------------------------------------------------

X = np.ones((8, 6), np.float32)
FOUR = np.ones(4, np.float32)
WRONG = {
    "normalized_shape": (
        lambda j: j.layer_norm(X, 4), ValueError,
        "x: expected shape (*, 4), since normalized_shape is (4,), got (8, 6)",
    ),
    "no axes": (lambda j: j.layer_norm(X, ()), ValueError, "normalized_shape: expected at least 1"),
    "a float": (lambda j: j.rms_norm(X, 6.0), TypeError, "normalized_shape: expected an integer"),
    "weight": (lambda j: j.layer_norm(X, 6, FOUR), ValueError, "weight: expected shape (6,), got"),
    "bias": (
        lambda j: j.layer_norm(X, 6, None, X), ValueError, "bias: expected shape (6,), got (8, 6)"
    ),
    "dtype of the weight": (
        lambda j: j.rms_norm(X, 6, np.ones(6, np.float16)), TypeError,
        "weight: expected dtype float32, got float16",
    ),
    "eps": (lambda j: j.rms_norm(X, 6, eps=-1.0), ValueError, "eps: expected "),
    "integers": (lambda j: j.layer_norm(X.astype(int), 6), TypeError, "x: expected dtype float16"),
    "no x": (lambda j: j.layer_norm(None, 6), TypeError, "x: expected an array, got None"),
    "no x of groups": (lambda j: j.group_norm(None, 2), TypeError, "x: expected an array, got N"),
    "groups": (lambda j: j.group_norm(X, 4), ValueError, "num_groups: expected "),
    "no groups": (lambda j: j.group_norm(X, None), TypeError, "num_groups: expected an integer"),
    "zero groups": (lambda j: j.group_norm(X, 0), ValueError, "num_groups: expected "),
    "axis 0": (lambda j: j.group_norm(X, 2, channel_axis=0), ValueError, "channel_axis: expected "),
    "no such axis": (
        lambda j: j.instance_norm(X, channel_axis=2), ValueError, "channel_axis: expected "
    ),
    "weight of channels": (
        lambda j: j.group_norm(X, 2, FOUR), ValueError, "weight: expected shape (6,), got (4,)"
    ),
    "one value": (lambda j: j.instance_norm(X), ValueError, "Expected more than 1 "),
    "one dimension": (
        lambda j: j.group_norm(FOUR, 2, channel_axis=0), ValueError, "x: expected at least 2 dim"
    ),
}  # fmt: skip


WRONG |= {
    f"{name}, {number}": (
        lambda j, call=call, given=given: call(j, **given), kind, text
    )
    for name, call in (
        ("layer", lambda j, **given: j.layer_norm(X, 6, **given)),
        ("rms", lambda j, **given: j.rms_norm(X, 6, **given)),
        ("group", lambda j, **given: j.group_norm(X, 2, **given)),
    )
    for number, (given, kind, text) in enumerate((
        ({"residual": X[:2]}, ValueError, "residual: expected shape"),
        ({"residual": X.astype(jnp.bfloat16)}, TypeError, "residual: expected dtype"),
        ({"residual": "none"}, TypeError, "residual: expected an array"),
        ({"activation": "swish"}, ValueError, "activation: expected "),
        ({"activation": 3}, TypeError, "activation: "),
        ({"negative_slope": np.inf}, ValueError, "negative_slope: expected a finite"),
    ))
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_norms_errors(wrong):
    call, kind, text = wrong
    for transform in (lambda function: function, jax.jit):
        with pytest.raises(kind, match=r"^" + re.escape(text)):
            transform(lambda: call(bnext.jax))()


def test_norms_handlers_check_what_python_has_not(rng):
    from bnext.jax import examples, foreign

    x, y = jnp.ones((4, 6)), ((4, 6), jnp.float32)
    rows = examples.Rows(1e-5, 1, True, False, False)
    statistics = {name: foreign.words(4) for name in ("row_mean", "row_mean_low", "row_rstd")}
    cells = examples.Cells(1e-5, 1, 4, False, False, None, 0.01)
    for name, how, arguments, results, text in [
        ("rows_forward", rows, {"x": x, "weight": FOUR}, {"y": y, **statistics},
         "weight: expected shape"),
        ("rows_forward", rows, {"x": x}, {"y": y}, "row_mean: expected an array"),
        ("rows_forward", dataclasses.replace(rows, first=3), {"x": x}, {"y": y, **statistics},
         "first: expected an axis"),
        ("cells_forward", cells, {"x": x}, {"y": y, "statistics": foreign.words(5, 8)},
         "num_groups: expected"),
        ("cells_forward", dataclasses.replace(cells, num_groups=2), {"x": x},
         {"y": y, "statistics": foreign.words(5, 4)}, "statistics: expected"),
    ]:  # fmt: skip
        with pytest.raises(Exception, match=text) as caught:
            jax.block_until_ready(foreign.call(name, how, arguments, results))
        assert "INVALID_ARGUMENT" in str(caught.value)
