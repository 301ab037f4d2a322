"""Activations and residuals of arrays larger than the caches, which are written around them.

As in test_streaming.py: the reference is the same call on slices along the batch.
"""

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext import _core

from .compare import assert_same_bits
from .conftest import AVAILABLE_ISAS
from .limits import SOAK
from .sixteen import name_of
from .test_streaming import GUARD, LAYOUTS, PIECES, TOTAL, data, guarded

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
FEW = ("NCHW-13x13", "NCHW-2x2-of-more", "NC-257", "stored-NHWC-50")


NAMES = ("relu", "leaky_relu", "gelu")


def combinations():
    """Each of a few layouts with the best instruction set.

    With BNEXT_SOAK every layout with each dtype, on instruction sets and with activations in turn,
    so that each two of the four meet.
    """
    if SOAK == 1:
        chosen = [
            (AVAILABLE_ISAS[0], DTYPES[k % 3], FEW[k], ("relu", "gelu")[k % 2]) for k in range(4)
        ]
    else:
        sets = len(AVAILABLE_ISAS)
        chosen = [
            (AVAILABLE_ISAS[(j + k) % sets], dtype, layout, NAMES[(j + k // 3) % 3])
            for j, dtype in enumerate(DTYPES)
            for k, layout in enumerate(LAYOUTS)
        ]
    return [
        pytest.param(*each, id="-".join((each[0], name_of(each[1]), *each[2:]))) for each in chosen
    ]


@pytest.mark.parametrize(("isa", "dtype", "layout", "name"), combinations(), indirect=["isa"])
def test_large_outputs(isa, dtype, layout, name):
    case = LAYOUTS[layout]
    examples = TOTAL // 2 // np.dtype(dtype).itemsize // int(np.prod(case.shape)) + 1
    shape = (examples, *case.shape[1:])
    axis = case.channel_axis
    weight, bias = np.random.default_rng(4).normal(size=(2, case.channels)).astype(np.float32)
    size = int(np.prod(shape))
    x, dy = (case.memory.place(values[:size].reshape(shape)) for values in data(dtype))
    residual = case.memory.place(data(dtype)[0][-size:].reshape(shape))
    epilogue = (residual, name, 0.25)
    options = {"residual": residual, "activation": name, "negative_slope": 0.25}

    whole, out = guarded(case, shape, dtype, 0)
    _, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, out=out, **options)
    y = out.copy()
    again = residual if saved.reads_residual else None
    sums = _core.backward_reduce(dy, x, saved, residual=again)
    dx, _, dbias, dresidual = bnext.batch_norm_backward(
        dy, x, saved, weight, out=out, residual=again
    )
    assert dx is out
    np.testing.assert_allclose(dbias, sums[0], rtol=1e-6)

    step = -(-examples // PIECES)
    for first in range(0, examples, step):
        part = slice(first, first + step)
        given = x[part], saved.mean, saved.var, weight, bias, saved.eps, axis, None
        of_part, part_saved = _core.normalize(*given, epilogue=(residual[part], *epilogue[1:]))
        assert_same_bits(y[part], of_part, "y")
        expected, of_residual = _core.backward_apply(
            dy[part], x[part], part_saved, weight, *sums, saved.count, None,
            residual=None if again is None else again[part],
        )  # fmt: skip
        assert_same_bits(dx[part], expected, "dx")
        assert_same_bits(dresidual[part], of_residual, "dresidual")
    out[...] = GUARD
    assert (whole == np.asarray(GUARD, dtype)).all(), "written beyond the output"


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@pytest.mark.parametrize("layout", ["NCHW-56x56", "NC-64", "NC-128-of-more", "stored-NHWC-50"])
def test_lines_of_dx_begin_at_other_places_than_those_of_dresidual(isa, layout, name):
    case = LAYOUTS[layout]
    examples = TOTAL // 16 // int(np.prod(case.shape)) + 1
    shape = (examples, *case.shape[1:])
    size = int(np.prod(shape))
    x, dy = (values[:size].reshape(shape) for values in data(np.float32))
    residual = data(np.float32)[1][-size:].reshape(shape)
    weight = np.linspace(0.5, 2, case.channels).astype(np.float32)
    axis = case.channel_axis
    _, saved = bnext.batch_norm_forward(
        case.memory.place(x), weight, channel_axis=axis, activation=name,
        residual=case.memory.place(residual),
    )  # fmt: skip
    assert not saved.reads_residual
    arrays = case.memory.place(x), saved, weight
    dx, *_, dresidual = bnext.batch_norm_backward(case.memory.place(dy), *arrays)
    # Where z is below 0, nothing or a share of dy goes on; with leaky_relu all values are compared.
    assert 0.3 < (dresidual == dy).mean() < 0.7
    for offset in (0, 4, 5):
        for over_dy in (False, True):
            whole, out = guarded(case, shape, np.float32, offset)
            out[...] = dy
            given = out if over_dy else case.memory.place(dy)
            found, *_, of_residual = bnext.batch_norm_backward(given, *arrays, out=out)
            assert found is out
            assert_same_bits(out, dx, f"dx, {offset}, {over_dy}")
            assert_same_bits(of_residual, dresidual, f"dresidual, {offset}, {over_dy}")
            out[...] = GUARD
            assert (whole == np.float32(GUARD)).all(), "written beyond the output"
