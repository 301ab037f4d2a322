"""Arguments that are given by name only: what `inspect` and the interpreter say of them."""

import inspect

import numpy as np
import pytest

import bnext

FUNCTIONS = (bnext.batch_norm_forward, bnext.BatchNorm1d.forward)
BY_NAME_ONLY = {
    "batch_norm_forward": (
        "eps", "channel_axis", "group", "out", "residual", "activation", "negative_slope", "mask",
        "sample_weight", "lengths", "offsets", "masked",
    ),
    "forward": ("out", "residual", "mask", "sample_weight", "lengths", "offsets", "masked"),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_signatures_have_names_that_must_be_given(function):
    parameters = inspect.signature(function).parameters.values()
    by_name = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert by_name == list(BY_NAME_ONLY[function.__name__])
    assert all(each.kind is not each.VAR_KEYWORD for each in parameters)
    assert not any(each.name.startswith("_") for each in parameters)


def test_a_positional_argument_too_many_is_refused(rng):
    x = rng.standard_normal((9, 4)).astype(np.float32)
    with pytest.raises(TypeError, match="takes from 1 to 3 positional arguments; eps and what"):
        bnext.batch_norm_forward(x, None, None, 1e-5)
    layer = bnext.BatchNorm1d(4)
    with pytest.raises(TypeError, match=r"forward\(\) takes 2 positional arguments; out and what"):
        layer(x, np.empty_like(x))
    assert layer.num_batches_tracked == 0


def test_a_name_that_is_none_is_refused(rng):
    x = rng.standard_normal((9, 4)).astype(np.float32)
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentum'"):
        bnext.batch_norm_forward(x, momentum=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'masks'"):
        bnext.BatchNorm1d(4)(x, masks=None)


def test_a_default_that_was_made_is_the_default(rng):
    x = rng.standard_normal((9, 4)).astype(np.float32)
    zero = "".join(["ze", "ro"])  # another object
    np.testing.assert_array_equal(
        bnext.batch_norm_forward(x, masked=zero)[0], bnext.batch_norm_forward(x)[0]
    )
