"""What an activation and a residual may not be: exact texts, and nothing is changed."""

import numpy as np
import pytest

import bnext

from .activations import SMOOTH
from .snapshots import layer_state, raises_exactly

NAMES = (
    "'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', 'gelu_tanh', 'sigmoid', 'tanh', "
)
SHAPE = (4, 3, 5, 2)

WRONG = {
    "another-name": (
        {"activation": "ReLU"}, ValueError, f"activation: expected {NAMES}or None, got 'ReLU'",
    ),
    "none-as-a-name": (
        {"activation": "none"}, ValueError, f"activation: expected {NAMES}or None, got 'none'",
    ),
    "no-name": ({"activation": 1}, TypeError, f"activation: expected {NAMES}or None, got int"),
    "function": (
        {"activation": np.tanh}, TypeError, f"activation: expected {NAMES}or None, got numpy.ufunc",
    ),
    "slope-of-text": (
        {"activation": "leaky_relu", "negative_slope": "steep"}, TypeError,
        "negative_slope: expected a real number, got str",
    ),
    "no-slope": (
        {"activation": "leaky_relu", "negative_slope": None}, TypeError,
        "negative_slope: expected a real number, got NoneType",
    ),
    "infinite-slope": (
        {"activation": "leaky_relu", "negative_slope": np.inf}, ValueError,
        "negative_slope: expected a finite number, got inf",
    ),
    "slope-that-is-no-number": (
        {"activation": "relu", "negative_slope": np.nan}, ValueError,
        "negative_slope: expected a finite number, got nan",
    ),
}  # fmt: skip
WRONG_RESIDUALS = {
    "shape": (
        np.ones((1, *SHAPE[1:]), np.float32), ValueError,
        "residual: expected shape (4, 3, 5, 2), got (1, 3, 5, 2)",
    ),
    "dtype": (np.ones(SHAPE), TypeError, "residual: expected dtype float32, got float64"),
    "number": (np.float32(2), ValueError, "residual: expected shape (4, 3, 5, 2), got ()"),
}  # fmt: skip


@pytest.fixture
def arrays(rng):
    """x, dy, residual and out, by name."""
    names = ("x", "dy", "residual", "out")
    return {name: rng.normal(size=SHAPE).astype(np.float32) for name in names}


def calls_of(x, **options):
    """Every call of a forward pass."""
    one = np.ones(3, np.float32)
    return [
        lambda: bnext.batch_norm_forward(x, **options),
        lambda: bnext.normalize(x, one, one, **options),
    ]


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("options", "kind", "text"), WRONG.values(), ids=WRONG)
def test_activations(arrays, options, kind, text, with_residual):
    if with_residual:
        options = options | {"residual": arrays["residual"]}
    for call in calls_of(arrays["x"], out=arrays["out"], **options):
        with raises_exactly(kind, text, arrays):
            call()


@pytest.mark.parametrize(("options", "kind", "text"), WRONG.values(), ids=WRONG)
def test_activations_of_layers(arrays, options, kind, text):
    with raises_exactly(kind, text, {}):
        bnext.BatchNorm2d(3, **options)
    bn = bnext.BatchNorm2d(3)
    vars(bn).update(options)
    with raises_exactly(kind, text, lambda: arrays | layer_state(bn)):
        bn(arrays["x"], out=arrays["out"])


@pytest.mark.parametrize("name", [None, "relu", "silu"])
@pytest.mark.parametrize(
    ("residual", "kind", "text"), WRONG_RESIDUALS.values(), ids=WRONG_RESIDUALS
)
def test_residuals(arrays, name, residual, kind, text):
    options = {"activation": name, "residual": residual}
    for call in calls_of(arrays["x"], out=arrays["out"], **options):
        with raises_exactly(kind, text, arrays):
            call()
    bn = bnext.BatchNorm2d(3, activation=name)
    with raises_exactly(kind, text, lambda: arrays | layer_state(bn)):
        bn(arrays["x"], out=arrays["out"], residual=residual)


def test_out_has_memory_of_its_own(arrays):
    text = "out: expected memory of its own, got an array that overlaps residual"
    options = {"activation": "silu", "residual": arrays["residual"]}
    for call in calls_of(arrays["x"], out=arrays["residual"], **options):
        with raises_exactly(ValueError, text, arrays):
            call()
    _, saved = bnext.batch_norm_forward(arrays["x"], **options)
    with raises_exactly(ValueError, text, arrays):
        bnext.batch_norm_backward(
            arrays["dy"], arrays["x"], saved, residual=arrays["residual"],
            out=arrays["residual"],
        )  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_the_residual_is_needed_again(arrays, name):
    x, dy, residual = arrays["x"], arrays["dy"], arrays["residual"]
    _, saved = bnext.batch_norm_forward(x, activation=name, residual=residual)
    text = (
        f"residual: expected the forward call's, since the derivative of {name} follows "
        "from it, got None"
    )
    with raises_exactly(ValueError, text, arrays):
        bnext.batch_norm_backward(dy, x, saved, out=arrays["out"])
    changed = residual + 1
    text = "saved: made from another residual, or it was changed since (its elements differ)"
    with raises_exactly(ValueError, text, arrays):
        bnext.batch_norm_backward(dy, x, saved, residual=changed, out=arrays["out"])


@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_a_backward_pass_takes_no_other_residual(arrays, name):
    x, dy, residual = arrays["x"], arrays["dy"], arrays["residual"]
    _, saved = bnext.batch_norm_forward(x, activation=name)
    text = "residual: expected None, since the forward call had none"
    with raises_exactly(ValueError, text, arrays):
        bnext.batch_norm_backward(dy, x, saved, residual=residual, out=arrays["out"])
    _, saved = bnext.batch_norm_forward(x, activation=name, residual=residual)
    for wrong, kind, expected in list(WRONG_RESIDUALS.values())[:2]:
        with raises_exactly(kind, expected, arrays):
            bnext.batch_norm_backward(dy, x, saved, residual=wrong, out=arrays["out"])


def test_the_derivative_needs_x(arrays):
    """Of given statistics too, which otherwise are a multiplication."""
    _, saved = bnext._core.normalize(
        arrays["x"], np.zeros(3), np.ones(3), None, None, 1e-5, 1, None,
        epilogue=(None, "relu", 0.01),
    )  # fmt: skip
    text = (
        "x: expected the input of the forward call, since the derivative of relu follows from it, "
        "got None"
    )
    with raises_exactly(ValueError, text, arrays):
        bnext._core.backward_constant(arrays["dy"], saved, None, None)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_one_value_per_channel(name):
    """Is refused before a residual is looked at closer, as without."""
    x = np.ones((1, 3), np.float32)
    text = "Expected more than 1 value per channel when training, got input size (1, 3)"
    with raises_exactly(ValueError, text, {}):
        bnext.batch_norm_forward(x, activation=name, residual=x)
    one = np.ones(3, np.float32)
    assert bnext.normalize(x, one, one, activation=name, residual=x).shape == (1, 3)


@pytest.mark.parametrize("name", [None, "relu"])
def test_a_tensor_that_requires_a_gradient(torch, arrays, name):
    """bnext's functions record nothing for autograd, and NumPy cannot read such a tensor."""
    residual = torch.from_numpy(arrays["residual"].copy()).requires_grad_()
    text = (
        "residual: expected a tensor that requires no gradient, got one that does; bnext's "
        "functions record nothing for autograd (pass residual.detach(), or call them under "
        "torch.no_grad())"
    )
    options = {"activation": name, "residual": residual}
    with raises_exactly(TypeError, text, arrays):
        bnext.batch_norm_forward(torch.from_numpy(arrays["x"]), **options)
    with pytest.raises(TypeError, match=r"^residual: expected an array that NumPy can read, got T"):
        bnext.batch_norm_forward(arrays["x"], **options)
    options["residual"] = residual.detach()
    assert bnext.batch_norm_forward(arrays["x"], **options)[0].shape == SHAPE
