"""Errors of members whose shards are on a GPU: by their text, announced, nothing launched.

Over the stand-in's kernels.
"""

import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from ..compare import assert_same_bits
from ..groups.support import members, new_group
from .stand_in import StandIn

X, VECTOR = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(3, np.float32)
HERE = "expected an array on cuda:0, like x, got one on the CPU"


def told(kernels, call, kind, text):
    """The first member's call raises that, has launched nothing, and the other one is told."""
    group = new_group(2, 60.0)
    good = bnext.BatchNorm1d(3, group=group)
    results = members(group, lambda rank: good(X) if rank else call(group), patience=10.0)
    assert type(results[0]) is kind, results
    assert str(results[0]) == text
    assert isinstance(results[1], GroupError)
    assert results[1].reason == f"rank 0 raised {kind.__name__}: {text}"
    assert kernels.launches == []
    assert good.num_batches_tracked == 0


@pytest.fixture
def there(monkeypatch):
    module = StandIn(devices=2)
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)
    return module


def test_parameters_elsewhere(there, make):
    def call(group):
        bnext.batch_norm_forward(make(X), make(VECTOR), VECTOR, group=group)

    told(there, call, TypeError, f"bias: {HERE}")


def test_out_that_overlaps(there, make):
    x = make(X.copy())

    def call(group):
        bnext.batch_norm_forward(x, group=group, out=x)

    text = "out: expected memory of its own, got an array that overlaps x"
    told(there, call, ValueError, text)
    assert_same_bits(x.values, X)


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_that_was_not_moved(there, make, affine):
    def call(group):
        bnext.BatchNorm1d(3, affine=affine, group=group)(make(X))

    name = "weight" if affine else "running_mean"
    told(there, call, TypeError, f"{name}: {HERE}; the layer's to(x) moves it")


def test_a_layer_s_counter_and_momentum(there, make):
    def counted(group):
        layer = bnext.BatchNorm1d(3, group=group).to(make(X))
        layer.num_batches_tracked = 3
        layer(make(X))

    text = "num_batches_tracked: expected a writeable int64 array of shape (), got 3"
    told(there, counted, TypeError, text)

    def moved(group):
        layer = bnext.BatchNorm1d(3, group=group).to(make(X))
        layer.momentum = np.inf
        layer(make(X))

    text = "momentum: expected a finite number or None, got inf"
    told(there, moved, ValueError, text)


def test_a_device_without_kernels(monkeypatch, make):
    kernels = StandIn(problems={0: "it is too old"})
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)

    def call(group):
        bnext.batch_norm_forward(make(X), group=group)

    text = "x: got an array on cuda:0, and bnext cannot compute there: it is too old"
    told(kernels, call, RuntimeError, text)


def test_backward_of_another_place(there, make):
    """Where x and what was saved do not fit, and where dy or out are elsewhere."""
    group = new_group(1)
    x = make(X)
    with group.member(0):
        _, saved = bnext.batch_norm_forward(x, group=group)
        _, saved_here = bnext.batch_norm_forward(X, group=group)
    there.launches.clear()
    for call, kind, text in (
        (lambda: bnext.batch_norm_backward(X, x, saved), TypeError, f"dy: {HERE}"),
        (lambda: bnext.batch_norm_backward(x, x, saved, VECTOR), TypeError, f"weight: {HERE}"),
        (lambda: bnext.batch_norm_backward(x, x, saved, out=X), TypeError, f"out: {HERE}"),
        (lambda: bnext.batch_norm_backward(x, x, saved_here), TypeError,
         "saved: made from an input on the CPU, got x on cuda:0"),
        (lambda: bnext.batch_norm_backward(X, X, saved), TypeError,
         "saved: made from an input on cuda:0, got x on the CPU"),
        (lambda: bnext.batch_norm_backward(x, make(X[:3]), saved), ValueError,
         "saved: made from an input of shape (4, 3), got x of shape (3, 3)"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught, group.member(0):
            call()
        assert str(caught.value) == text
        group.reset()
    assert there.launches == []


def test_one_value_per_channel(there, make):
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group).to(make(X))
    results = members(group, lambda rank: layer(make(X[rank:1])))
    for rank, error in enumerate(results):
        assert type(error) is ValueError
        assert str(error) == (
            "Expected more than 1 value per channel when training, got 1 in the whole batch of 2 "
            f"shards (input size ({1 - rank}, 3) here)"
        )
    assert layer.num_batches_tracked == 0
