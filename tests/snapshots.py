"""Proof that a failed call changed nothing."""

import contextlib

import numpy as np
import pytest

from .compare import assert_same_bits


def snapshot(things):
    """The values of the arrays and numbers in the mapping `things`, copied."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in things.items()
    }


def assert_unchanged(things, before):
    for name, expected in before.items():
        if isinstance(expected, np.ndarray):
            assert_same_bits(things[name], expected, name)
        else:
            assert things[name] == expected, name


def layer_state(bn):
    """All that a layer holds now: parameters, gradients, running statistics, modes."""
    names = (
        "weight", "bias", "weight_grad", "bias_grad", "running_mean", "running_var",
        "num_batches_tracked", "training", "eps", "momentum", "num_features",
    )  # fmt: skip
    return {name: getattr(bn, name) for name in names}


@contextlib.contextmanager
def raises_exactly(kind, text, things):
    """The block raises `kind` with exactly `text`, and leaves every array in `things` as it was.

    `things` is a mapping, or a function that returns one: what it names then is looked up again.
    """
    look = things if callable(things) else lambda: things
    before = snapshot(look())
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert str(caught.value) == text
    assert_unchanged(look(), before)
