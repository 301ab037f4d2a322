"""What holds for every norm of examples: residuals, memory, what is saved."""

import functools
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations
from .activations import ACTIVATIONS
from .compare import assert_same_bits
from .norms import (
    EVERY_NORM,
    LAYOUTS,
    NORMS,
    RESIDUAL,
    Cells,
    Results,
    Rows,
    assert_all_same_bits,
    backward,
    both_passes,
    drawn,
    forward,
    laid_out,
)
from .numerical import numerical_gradient

DIFFERENCES = {
    "layer": (Rows(), (4, 7)), "rms": (Rows(1, False), (4, 9)), "one group": (Cells(1), (2, 6, 3)),
    "group": (Cells(2), (2, 4, 3)), "instance": (Cells(6), (2, 6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENCES)
@RESIDUAL
@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
def test_gradients_are_derivatives(rng, name, adds, kind):
    # Farther from kinks than the steps of a difference; one weight is 0.
    norm, shape = DIFFERENCES[kind]
    inputs = drawn(rng, norm, shape, np.float64, name=name, adds=adds)
    inputs.weight[1] = 0
    z = np.float64(norm.argument(inputs))
    inputs = inputs._replace(dy=activations.without_kinks(inputs.dy, z, name, margin=1e-2))
    gradients = both_passes(inputs).arrays
    del gradients["y"]

    def loss(what, at):
        return float((forward(inputs._replace(**{what: at}))[0] * inputs.dy).sum())

    for of, gradient in gradients.items():
        what = of.removeprefix("d")
        expected = numerical_gradient(functools.partial(loss, what), getattr(inputs, what))
        allowed = 1e-7 if name is None and not adds else 3e-6 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=allowed)


@EVERY_NORM
def test_a_residual_alone_is_added(rng, kind):
    """Its gradient is dy itself, and all others have the bits of a call without it."""
    norm, shape = NORMS[kind]
    inputs = drawn(rng, norm, shape, adds=True)
    plain = both_passes(inputs._replace(residual=None))
    results = both_passes(inputs)
    assert_same_bits(results.y, plain.y + inputs.residual)
    saved = results.saved
    assert (saved.residual, saved.reads_residual, saved.activation) == (True, False, None)
    _, run = norm.functions(shape)
    *_, dresidual = run(inputs.dy, inputs.x, saved, inputs.weight, residual=inputs.residual)
    assert results.dresidual is dresidual is inputs.dy
    assert_all_same_bits(results._replace(y=plain.y, dresidual=None), plain)


def test_a_relu_without_flags_has_the_bits_of_batch_normalizations(rng):
    """One example of cells is a batch of channels, whose ReLU goes by flags."""
    inputs = drawn(rng, Cells(6), (1, 6, 130, 130), name="relu", adds=True)
    results = both_passes(inputs)
    expected, saved = bnext.batch_norm_forward(
        inputs.x, inputs.weight, inputs.bias, residual=inputs.residual, activation="relu"
    )
    gradients = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight)
    assert_same_bits(results.y, expected)
    assert_same_bits(results.dresidual, gradients[3])
    assert_same_bits(results.dbias, gradients[2])
    np.testing.assert_allclose(results.dx, gradients[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(results.dweight, gradients[1], rtol=1e-6)


def padded(array):
    larger = np.zeros((*array.shape[:-1], array.shape[-1] + 4), array.dtype)
    larger[..., 4:] = array
    return larger[..., 4:]


PLACES = {
    "F": np.asfortranarray, "padded": padded,
    "every second": lambda a: np.repeat(a, 2, -1)[..., ::2],  # as no kernel writes
} | {layout: functools.partial(laid_out, layout=layout) for layout in LAYOUTS}  # fmt: skip


@pytest.mark.parametrize(("name", "adds"), [("silu", False), ("silu", True), (None, False)])
@EVERY_NORM
def test_any_strides_and_out(rng, kind, name, adds):
    """x, dy, a residual and `out` that lie in other orders; `out` may be dy."""
    norm, shape = NORMS[kind]
    inputs = drawn(rng, norm, shape, name=name, adds=adds)
    expected = both_passes(inputs)
    flipped = inputs.weight[::-1].copy()[::-1] if norm.has_bias else inputs.weight
    for where, put in PLACES.items():
        moved = inputs.mapped(lambda a, put=put: put(a.copy()) if a.ndim > 1 else a)
        moved = moved._replace(weight=flipped)
        # Cells are summed along the memory of x: the same bits where that is not asked for.
        for given in (moved, moved._replace(x=inputs.x)):
            out = put(np.zeros_like(inputs.x))
            y, saved = forward(given, out=out)
            assert y is out
            dy = put(inputs.dy.copy())
            found = Results(y, saved, *backward(given._replace(dy=dy), saved, out=dy))
            assert found.dx is dy
            if isinstance(norm, Rows) or given.x is inputs.x:
                assert_all_same_bits(found, expected, where)
            for name_of, value in expected.arrays.items():
                np.testing.assert_allclose(found.arrays[name_of], value, rtol=1e-4, atol=1e-4)


def test_channels_last_axis(rng):
    inputs = drawn(rng, Cells(3), (4, 6, 5, 3))
    results = both_passes(inputs)
    last, dy_last = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (inputs.x, inputs.dy))
    out = np.empty_like(last)
    again, saved = bnext.group_norm_forward(
        last, 3, inputs.weight, inputs.bias, channel_axis=-1, out=out
    )
    assert again is out
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), results.y, rtol=1e-5, atol=1e-6)
    dx, *parameters = bnext.group_norm_backward(dy_last, last, saved, inputs.weight, out=dy_last)
    assert dx is dy_last
    np.testing.assert_allclose(np.moveaxis(dx, -1, 1), results.dx, rtol=1e-5, atol=1e-5)
    expected = results.dweight, results.dbias
    np.testing.assert_allclose(parameters, expected, rtol=1e-5, atol=1e-4)


def test_out_over_dy_of_long_rows(rng, restore_threads):
    """Rows of several pieces read dy twice, each piece before dx is written there."""
    inputs = drawn(rng, Rows(), (5, 150_001), name="gelu", adds=True)
    expected = both_passes(inputs)
    for threads in (1, 2):
        bnext.set_num_threads(threads)
        own = inputs.dy.copy()
        found = backward(inputs._replace(dy=own), expected.saved, out=own)
        assert found[0] is own
        assert_all_same_bits(Results(expected.y, expected.saved, *found), expected)


@pytest.mark.parametrize("name", ["relu", "silu", None])
@EVERY_NORM
def test_z_is_of_the_forward_calls_parameters(rng, kind, name):
    """An optimizer may change them between the passes; what is saved goes through pickles."""
    norm, shape = NORMS[kind]
    inputs = drawn(rng, norm, shape, name=name, adds=name == "relu")
    expected = both_passes(inputs)
    saved, kept = expected.saved, inputs._replace(weight=inputs.weight.copy())
    inputs.weight[...] *= -1
    inputs.bias[...] += 7
    copied = pickle.loads(pickle.dumps(saved))
    assert repr(copied) == repr(saved)
    for attribute in ("activation", "residual", "reads_residual", "shape", "eps"):
        assert getattr(copied, attribute) == getattr(saved, attribute)
    assert_same_bits(copied.rows, saved.rows)
    if isinstance(norm, Rows):
        assert copied.normalized_shape == shape[-1:]
    for other in (saved, copied):
        found = backward(kept, other)
        assert_all_same_bits(Results(expected.y, saved, *found), expected)


def test_a_saved_of_before_there_were_activations_loads():
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    _, saved = bnext.layer_norm_forward(x, 4)
    again = bnext.RowSaved.__new__(bnext.RowSaved)
    again.__setstate__(saved.__getstate__()[:7])
    assert again.activation is None
    assert np.array_equal(again.rows, saved.rows)


def test_saved_of_norms(rng):
    inputs = drawn(rng, Cells(3), (2, 6, 5))
    x, dy = inputs.x, inputs.dy
    _, saved = forward(inputs)
    _, of_batch = bnext.batch_norm_forward(x)
    assert (saved.num_groups, of_batch.num_groups) == (3, None)
    assert saved.rows.shape == (5, 2, 3)
    with pytest.raises(ValueError, match="expected what batch_norm_forward returned, got what gr"):
        bnext.batch_norm_backward(dy, x, saved)
    with pytest.raises(ValueError, match="expected what group_norm_forward or instance_no"):
        bnext.group_norm_backward(dy, x, of_batch)
    with pytest.raises(ValueError, match="expected what batch_norm_forward returned"):
        bnext.recompute(x, saved)
    with pytest.raises(ValueError, match="x was changed"):
        bnext.group_norm_backward(dy, x + 1, saved)


# A norm, a shape with nothing in it, and of its statistics.
NOTHING = [
    *((Rows(1, centered), (n, k), (n,)) for centered in (True, False)
      for n, k in ((0, 5), (4, 0), (0, 0))),
    (Cells(3), (0, 6, 3), (0, 3)), (Cells(3), (2, 6, 0), (2, 3)), (Cells(2), (0, 4, 5), (0, 2)),
    (Cells(3), (0, 6), (0, 3)), (Cells(3), (4, 0, 8), (4, 3)), (Cells(1), (4, 0, 8), (4, 1)),
    (Cells(0), (4, 0, 8), (4, 1)),
]  # fmt: skip


@RESIDUAL
@pytest.mark.parametrize(("norm", "shape", "of_slabs"), NOTHING, ids=str)
def test_nothing_gives_nothing(place, norm, shape, of_slabs, adds):
    x = np.empty(shape, np.float32)
    inputs = drawn(np.random.default_rng(0), norm, shape, adds=adds)
    inputs = inputs._replace(x=x, dy=x, weight=None, bias=None, name="gelu" if adds else None)
    results = place.both(inputs)
    assert results.y.shape == results.dx.shape == shape
    for each in (results.dweight, results.dbias)[: 1 + norm.has_bias]:
        assert each.shape == norm.parameter_shape(shape)
        assert not each.any()
    if adds:
        assert results.dresidual.shape == shape
    mean = place.get(results.saved.mean)
    assert mean.shape == of_slabs
    assert not mean.any()


def test_bfloat16_with_a_residual(rng):
    results = both_passes(
        drawn(rng, Cells(2), (2, 4, 6), ml_dtypes.bfloat16, name="tanh", adds=True)
    )
    assert results.y.dtype == results.dresidual.dtype == ml_dtypes.bfloat16
