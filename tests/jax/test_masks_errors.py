"""What masks, lengths and weights of `bnext.jax` may not be, while a program is traced."""

import functools
import re

import numpy as np
import pytest

import bnext

from . import support  # noqa: F401 - where JAX is missing, the test is not run

X = np.ones((8, 3, 4), np.float32)
MASK = np.ones((8, 3), bool)
WRONG = {
    "shape": (
        {"mask": MASK[:4]}, ValueError,
        "mask: expected shape (8, 3) or (8, 3, 1) (an axis may be 1), got (4, 3)",
    ),
    "dtype": ({"mask": MASK.astype(int)}, TypeError, "mask: expected dtype bool, got int"),
    "both": (
        {"mask": MASK, "lengths": np.ones(8, int)}, ValueError,
        "lengths: expected None beside a mask, got both",
    ),
    "lengths": ({"lengths": np.ones(7, int)}, ValueError, "lengths: expected shape (8,), got (7,)"),
    "lengths' dtype": ({"lengths": np.ones(8)}, TypeError, "lengths: expected dtype int64 or an"),
    "weights": (
        {"sample_weight": np.ones(3)}, ValueError, "sample_weight: expected shape (8, 3) or (8, 3,"
    ),
    "weights' dtype": (
        {"sample_weight": MASK}, TypeError, "sample_weight: expected an array of real numbers, got"
    ),
    "masked": ({"masked": "nothing"}, ValueError, "masked: expected 'zero', 'normalized' or 'unc"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_masks_errors(wrong):
    options, kind, text = wrong
    for call in (
        functools.partial(bnext.jax.batch_norm, X),
        functools.partial(bnext.jax.normalize, X, np.ones(4, np.float32), np.ones(4, np.float32)),
    ):
        with pytest.raises(kind, match=r"^" + re.escape(text)):
            call(**options)
    with pytest.raises(ValueError, match=r"^lengths: expected x of 3 dimensions"):
        bnext.jax.batch_norm(X[0], lengths=np.ones(3, int))
