"""Errors name the argument, what was expected and what came, while a program is traced."""

import re

import numpy as np
import pytest

import bnext

from ..subprocesses import output_of
from .support import jax, jnp

X = np.ones((8, 4), np.float32)
FOUR, FIVE = np.ones(4, np.float32), np.ones(5, np.float32)

WRONG = {
    "weight's shape": (lambda f: f(X, FIVE), ValueError, "weight: expected shape (4,), got (5,)"),
    "bias' shape": (lambda f: f(X, FOUR, FIVE), ValueError, "bias: expected shape (4,), got (5,)"),
    "x of integers": (
        lambda f: f(X.astype(np.int32)), TypeError,
        "x: expected dtype float16, bfloat16, float32 or float64, got int32",
    ),
    "x without axes": (lambda f: f(np.float32(1)), ValueError, "channel_axis: "),
    "x that is no array": (lambda f: f("text"), TypeError, "x: expected an array, got str"),
    "no x": (lambda f: f(None), TypeError, "x: expected an array, got None"),
    "one value": (lambda f: f(X[:1]), ValueError, "Expected more than 1 value per channel"),
    "axis": (lambda f: f(X, channel_axis=2), ValueError, "channel_axis: expected "),
    "eps": (lambda f: f(X, eps=-1.0), ValueError, "eps: expected "),
    "activation": (lambda f: f(X, activation="swish"), ValueError, "activation: expected "),
    "slope": (lambda f: f(X, negative_slope=np.inf), ValueError, "negative_slope: expected "),
    "residual's shape": (
        lambda f: f(X, residual=X[:4]), ValueError, "residual: expected shape (8, 4), got (4, 4)"
    ),
    "residual's dtype": (
        lambda f: f(X, residual=X.astype(jnp.bfloat16)), TypeError,
        "residual: expected dtype float32, got bfloat16",
    ),
    "weight's dtype": (
        lambda f: f(X, FOUR.astype(np.float16)), TypeError,
        "weight: expected dtype float32, got float16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_errors(wrong, traced):
    call, kind, text = wrong

    def run():
        return call(bnext.jax.batch_norm)

    with pytest.raises(kind, match=r"^" + re.escape(text)):
        (jax.jit(run) if traced else run)()


@pytest.mark.parametrize(
    ("mean", "var", "name"), [(FIVE, FOUR, "mean"), (FOUR, FIVE, "var"), (FOUR, None, "var")]
)
def test_errors_of_given_statistics(mean, var, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected "):
        bnext.jax.normalize(X, mean, var)


def test_a_whole_batch_of_one_value():
    def one(x):
        return bnext.jax.batch_norm(x, channel_axis=0, axis_name="batch")[0]

    with pytest.raises(ValueError, match=r"^Expected more than 1 value per channel"):
        jax.vmap(one, axis_name="batch")(X[:1])


def test_handlers_end_with_errors_and_not_with_the_process():
    """What Python has not checked, the handlers check: arrays of wrong shapes, types and number."""
    from bnext.jax import foreign

    how = foreign.How(1e-5, 1, (), None, 0.01, False)
    y, rows, values = (X.shape, X.dtype), foreign.words(5, 4), ((3, 4), X.dtype)
    for arguments, results, text in [
        (
            {"x": X, "weight": FIVE},
            {"y": y, "statistics": rows, "values": values},
            "weight: expected",
        ),
        (
            {"x": X},
            {"y": y, "statistics": foreign.words(4, 4), "values": values},
            "statistics: exp",
        ),
        ({"x": X}, {"y": y, "statistics": rows, "values": ((2, 4), X.dtype)}, "values: expected"),
        ({"x": X}, {"y": ((8, 5), X.dtype), "statistics": rows, "values": values}, "y: expected"),
        ({"x": X}, {"y": y, "values": values}, "statistics: expected an array, got none"),
        ({"dy": X}, {"y": y, "statistics": rows, "values": values}, "x: expected an array"),
    ]:
        with pytest.raises(Exception, match=text) as caught:
            jax.block_until_ready(foreign.call("forward", how, arguments, results))
        assert "INVALID_ARGUMENT" in str(caught.value)


def test_jax_is_named_where_handlers_are_missing():
    program = """
        from bnext import _core
        _core.foreign_targets = lambda: None
        try:
            import bnext.jax
        except ImportError as error:
            print(error)
    """
    text = output_of(program)
    assert text.startswith("bnext.jax: expected a build with foreign functions for JAX")
    assert "pip install" in text
    assert "BNEXT_XLA=ON" in text


def test_jax_is_named_where_it_is_missing():
    program = """
        import sys
        sys.modules["jax"] = None
        try:
            import bnext.jax
        except ModuleNotFoundError as error:
            print(error, error.name)
    """
    assert output_of(program).startswith(
        "bnext.jax: expected JAX to be installed (pip install jax)"
    )
