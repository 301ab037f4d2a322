"""Norms of examples by the emulated kernels: what is saved, and what is refused."""

import copy
import pickle

import numpy as np
import pytest

import bnext
from bnext.arrays import DeviceSaved

from ..compare import assert_same_bits
from ..fake_cuda import Array
from ..norms import (
    EVERY_NORM,
    NORMS,
    Results,
    Rows,
    assert_all_same_bits,
    backward,
    drawn,
    forward,
)
from ..test_norms_errors import (
    FUNCTIONS,
    TAKES,
    X,
    assert_refused,
    assert_wrong_saved_is_told,
    saved_for,
)
from .norms import HERE
from .there import LARGE, There

pytestmark = pytest.mark.usefixtures("emulated")
F4 = np.float32


@pytest.mark.parametrize("name", [None, "silu"])
@EVERY_NORM
def test_saved_is_copied_and_pickled(rng, kind, name):
    """With copies of the parameters: an optimizer may have changed them since."""
    inputs = drawn(rng, *NORMS[kind], name=name).mapped(lambda a: HERE.put(a.copy()))
    norm, x = inputs.norm, inputs.x
    y, saved = forward(inputs)
    expected = Results(y, saved, *backward(inputs, saved)).mapped(HERE.get)
    if isinstance(norm, Rows):
        assert repr(saved) == (
            "<bnext.DeviceRowSaved of a float32 input of shape (6, 5, 40), normalized_shape (40,), "
            "on cuda:0>"
        )
        names = "shape", "normalized_shape", "eps", "centered", "activation", "residual"
    else:
        assert isinstance(saved, DeviceSaved)
        assert (saved.num_groups, saved.rows.shape) == (norm.groups, (5, 3, norm.groups))
        assert (saved.count, saved.channel_axis, saved.shape) == (280 // norm.groups, 1, x.shape)
        assert saved.batch_statistics
        names = "shape", "num_groups", "eps", "count", "activation", "residual"
        assert bnext.batch_norm_forward(x)[1].num_groups is None
    kept = inputs._replace(weight=HERE.put(inputs.weight.values.copy()))
    inputs.weight.values[...], inputs.bias.values[...] = 100, -100
    for again in (saved, copy.copy(saved), copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert repr(again) == repr(saved)
        for attribute in names:
            assert getattr(again, attribute) == getattr(saved, attribute)
        assert_same_bits(again.rows.values, saved.rows.values)
        assert_same_bits(again.mean_low.values, saved.mean_low.values)
        found = Results(y, again, *backward(kept, again)).mapped(HERE.get)
        assert_all_same_bits(found, expected)


# Errors of the CPU that name no place, and what only a GPU refuses.
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_errors_are_the_errors_of_the_cpu(kind):
    run, given, wrong = FUNCTIONS[kind]

    def put(value):
        return HERE.put(value) if isinstance(value, np.ndarray) else value

    for changed, error, text in wrong:
        there = {key: put(value) for key, value in {**given, **changed}.items()}
        if there.get("out") is not None and changed["out"] is given["x"]:
            there["out"] = there["x"]
        assert_refused(lambda there=there: run(**there), error, text)
        if kind == "group":  # to the letter
            with pytest.raises(error) as here:
                run(**{**given, **changed})
            assert_refused(lambda there=there: run(**there), error, str(here.value))
    more = ({"residual": HERE.put(given["x"][:1])}, ValueError, "residual: expected shape"), (
        {"activation": "x"}, ValueError, "activation: expected"
    )  # fmt: skip
    there = {key: put(value) for key, value in given.items()}
    for changed, error, text in more:
        assert_refused(lambda changed=changed: run(**there, **changed), error, text)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_errors_of_what_is_elsewhere(kind):
    run, given, _ = FUNCTIONS[kind]
    back = getattr(bnext, f"{kind}_norm_backward")
    on_cpu, rest = given["x"], {k: v for k, v in given.items() if k != "x"}
    x, dy, elsewhere = HERE.put(on_cpu), HERE.put(on_cpu * 2), There(Array, LARGE).put(on_cpu)
    weight = np.ones(9 if rest.get("normalized_shape") else 6, F4)
    _, of_cpu = run(on_cpu, **rest)
    _, saved = run(x, **rest)
    _, activated = run(x, **rest, activation="relu", residual=dy)
    other = {"layer": "rms", "rms": "layer", "group": "batch", "instance": "batch"}[kind]
    more = {} if other == "batch" else rest
    _, of_other = getattr(bnext, f"{other}_norm_forward")(x, **more)
    back_of_other = getattr(bnext, f"{other}_norm_backward")
    saver = "group" if other == "batch" else kind  # one error for both norms of cells
    for call, error, text in (
        (lambda: run(x, **rest, weight=weight), TypeError, "weight: expected an array on cuda:0"),
        (lambda: run(x, **rest, residual=on_cpu), TypeError, "residual: expected an array on cuda"),
        (lambda: back(dy, x[:1], saved), ValueError, "saved: made from an input of shape"),
        (lambda: back(dy[:1], x, saved), ValueError, "dy: expected shape"),
        (lambda: back(dy, x, None), TypeError, f"saved: expected what {TAKES[kind]}"),
        (lambda: back(dy, x, of_other), ValueError, f".*got what {other}_norm_forward did"),
        (lambda: back_of_other(dy, x, saved), ValueError, f".*got what {saver}_norm_forward"),
        (lambda: back(dy, x, of_cpu), TypeError, "saved: made from an input on the CPU, got x"),
        (lambda: back(elsewhere, elsewhere, saved), TypeError, "saved: expected an array on cuda:"),
        (lambda: back(dy, x, activated), ValueError, "residual: expected the forward call's"),
        (lambda: back(dy, x, saved, out=dy), ValueError, "out: expected memory of its own"),
        (lambda: back(on_cpu, on_cpu, saved), TypeError,
         "saved: made from an input on cuda:0, got x on the CPU"),
    ):  # fmt: skip
        assert_refused(call, error, text)


@pytest.mark.parametrize("kind", TAKES)
@pytest.mark.parametrize("other", [None, (), *TAKES], ids=str)
def test_another_saved_is_told(kind, other):
    x = HERE.put(X)
    saved = saved_for(other, x) if other in TAKES else other
    if TAKES.get(other) != TAKES[kind]:
        assert_wrong_saved_is_told(kind, x, saved)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_group_is_refused(kind):
    run, given, _ = FUNCTIONS[kind]
    group = bnext.sync.ThreadGroup(1)
    refused = pytest.raises(
        ValueError, match=r"^x: expected an array on the CPU, got one on cuda:0"
    )
    with group.member(0), refused:
        run(**{**given, "x": HERE.put(given["x"])}, group=group)
