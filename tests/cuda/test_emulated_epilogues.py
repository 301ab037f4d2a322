"""An activation and a residual on a GPU, without one: the stand-in, and emulated kernels.

Against their definition, in every dtype and layout, on every path.
"""

import copy
import pickle

import numpy as np
import pytest

import bnext

from .. import activations, reference
from ..activations import ACTIVATIONS, SLOPE
from ..cases import Case, Memory
from ..compare import assert_same_bits, assert_same_memory_order
from ..epilogues import CASES, DTYPES, Expected, Results, computed, drawn
from ..fake_cuda import Array
from ..groups.support import new_group, shards_of, whole
from ..optional import import_emulated
from ..sixteen import name_of
from . import gpu

import_emulated()  # of thousands of tests nearly all need it
ALL = [*ACTIVATIONS, None]
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
# What takes units of four values, beside CASES, most of which take single ones.
FOURS = [
    Case("planes-of-four", (3, 5, 4, 10)),
    Case("channels-of-four", (2, 3, 5, 36), channel_axis=-1),
    Case("rows-of-four", (37, 20)),
    Case("stored-NHWC-of-four", (2, 24, 3, 5), memory=Memory(order=(0, 2, 3, 1))),
]
# Slabs that a small device does not keep whole, and that have several batches everywhere.
LONG = [Case("long-planes", (9, 2, 40, 20)), Case("long-rows", (1300, 8))]


def there(values, device=0):
    return None if values is None else Array(values, device)


def here(results):
    return Results(*(each.values for each in results))


def both_passes_there(inputs, device=0, out=False):
    """Results of a forward and a backward call, in NumPy arrays."""
    x, dy, residual, weight, bias = (there(each, device) for each in inputs[2:])
    options = inputs.options | {"residual": residual}
    outs = [there(np.full_like(inputs.x, 7), device) if out else None for _ in range(2)]
    y, saved = bnext.batch_norm_forward(x, weight, bias, **options, out=outs[0])
    assert saved.reads_residual == (residual is not None and inputs.name is not None)
    again = {"residual": residual} if saved.reads_residual else {}
    gradients = bnext.batch_norm_backward(dy, x, saved, weight, **again, out=outs[1])
    assert len(gradients) == (3 if residual is None else 4)
    if out:
        assert y is outs[0]
        assert gradients[0] is outs[1]
    return here((y, *gradients))


@RESIDUAL
@DATA
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES + FOURS, ids=str)
def test_agrees_with_the_definition(kernels, rng, case, name, dtype, residual):
    inputs = drawn(rng, case, dtype, name, residual)
    results = both_passes_there(inputs)
    Expected(inputs).assert_are_results(results)
    assert_same_memory_order(results.y, inputs.x)
    assert_same_memory_order(results.dx, inputs.x)


@RESIDUAL
@DATA
@pytest.mark.parametrize("path", [*gpu.PATHS, None], ids=str)
@pytest.mark.parametrize("device", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("case", [*LONG, CASES[1], CASES[5], FOURS[0], FOURS[1]], ids=str)
def test_every_path(emulated, rng, case, device, path, dtype, residual):
    """By two activations, pieces of lines and a smooth one, and for each the same bits again."""
    for name in ("relu6", "silu"):
        inputs = drawn(rng, case, dtype, name, residual)

        def call(inputs=inputs):
            return both_passes_there(inputs, device)

        results, refusal = gpu.results_or_refusal(path, lambda call=call: (call(), call()))
        if refusal is not None:  # the small device does not hold a slab of the long ones
            assert refusal.startswith(f"path: {path} cannot do this: a slab exceeds")
            assert path in ("block", "cooperative")
            assert case in LONG
            assert device == 0
            return
        first, second = results
        Expected(inputs).assert_are_results(first)
        for one, other in zip(first, second, strict=True):
            if one is not None:
                assert_same_bits(one, other)


@RESIDUAL
@DATA
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", [CASES[0], CASES[3], FOURS[0], FOURS[1]], ids=str)
def test_given_statistics(kernels, rng, case, name, dtype, residual):
    """Inference, by `normalize` and by a layer in evaluation; and the layer's backward pass."""
    parameters = computed(dtype)
    mean = rng.uniform(-2, 2, case.channels).astype(parameters)
    var = rng.uniform(0.25, 4, case.channels).astype(parameters)
    inputs = drawn(rng, case, dtype, name, residual, (mean, var))
    expected = Expected(inputs, (mean, var))
    x, dy, added, weight, bias = (there(each) for each in inputs[2:])
    y = bnext.normalize(
        x, there(mean), there(var), weight, bias, **inputs.options | {"residual": added}
    )
    expected.assert_is_y(y.values)
    bn = bnext.BatchNorm(
        case.channels, channel_axis=case.channel_axis, dtype=parameters, activation=name,
        negative_slope=SLOPE,
    )  # fmt: skip
    bn.running_mean[...], bn.running_var[...] = mean, var
    bn.weight[...] = 1 if inputs.weight is None else inputs.weight
    bn.bias[...] = 0 if inputs.bias is None else inputs.bias
    bn.to(x).eval()
    assert_same_bits(bn(x, residual=added).values, y.values)
    gradients = bn.backward(dy)
    dx, *dresidual = gradients if residual else (gradients,)
    every = (dx, bn.weight_grad, bn.bias_grad, *dresidual)
    expected.assert_are_gradients(*(each.values for each in every))


@pytest.mark.parametrize("name", ACTIVATIONS)
@DATA
def test_forward_and_backward_agree_to_the_bit(emulated, rng, name, dtype):
    """Also where z is a kink, or one unit beside it: y tells on which side it was."""
    x = rng.normal(size=(64, 8, 4)).astype(dtype)
    residual = -x  # z is near 0 in many places
    weight, bias = (np.full(8, v, computed(dtype)) for v in (1.0, 0.0))
    options = {"activation": name, "negative_slope": SLOPE, "residual": Array(residual)}
    y, saved = bnext.batch_norm_forward(Array(x), Array(weight), Array(bias), **options)
    z, _ = bnext.batch_norm_forward(Array(x), Array(weight), Array(bias), residual=Array(residual))
    ones = np.ones_like(x)
    *_, g = bnext.batch_norm_backward(
        Array(ones), Array(x), saved, Array(weight), residual=Array(residual)
    )
    if name not in activations.KEEP_FLAGS:
        assert np.isfinite(g.values.astype(np.float64)).all()
        return
    inside = y.values.astype(np.float64) > 0
    if name == "relu6":
        inside &= y.values.astype(np.float64) < 6
    other = SLOPE if name == "leaky_relu" else 0.0
    expected = np.where(inside, 1.0, other)
    if dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(g.values, expected)
    else:  # z is rounded once more for y
        wrong = g.values.astype(np.float64) != expected
        assert (np.abs(z.values.astype(np.float64)[wrong]) < 1e-6).all()


@RESIDUAL
@pytest.mark.parametrize("name", ["leaky_relu", "gelu", None])
def test_out(kernels, rng, dtype, name, residual):
    inputs = drawn(rng, FOURS[0], dtype, name, residual)
    Expected(inputs).assert_are_results(both_passes_there(inputs, out=True))


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("of_residual", [(0, 2, 3, 1), (0, 1, 2, 3), (2, 0, 1, 3)], ids=str)
def test_arrays_in_different_orders(kernels, rng, dtype, name, of_residual):
    inputs = drawn(rng, CASES[0], dtype, name, True)
    inputs = inputs._replace(residual=Memory(order=of_residual).place(inputs.residual))
    Expected(inputs).assert_are_results(both_passes_there(inputs))


@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "tanh", None])
def test_empty(kernels, name, residual):
    x = np.empty((0, 5, 3), np.float32)
    options = {"activation": name, "residual": Array(x) if residual else None}
    y, saved = bnext.batch_norm_forward(Array(x), **options)
    again = {"residual": Array(x)} if saved.reads_residual else {}
    gradients = bnext.batch_norm_backward(Array(x), Array(x), saved, **again)
    assert y.shape == gradients[0].shape == x.shape
    assert len(gradients) == (4 if residual else 3)
    assert all(each.shape == x.shape for each in gradients[3:])


@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "silu", None])
def test_layer(kernels, rng, name, residual):
    """Beside a layer on the CPU: training, then evaluation."""
    x, dy, added = rng.normal(size=(3, 4, 5, 3, 4)).astype(np.float32)
    bn = bnext.BatchNorm2d(5, activation=name)
    bn.weight[...], bn.bias[...] = rng.normal(size=(2, 5))
    beside = copy.deepcopy(bn)
    bn.to(Array(x))
    given, given_there = ({"residual": r} if residual else {} for r in (added, Array(added)))
    for _ in range(2):
        np.testing.assert_allclose(bn(Array(x), **given_there).values, beside(x, **given),
                                   atol=1e-5)  # fmt: skip
        actual, expected = bn.backward(Array(dy)), beside.backward(dy)
        if not residual:
            actual, expected = (actual,), (expected,)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one.values, other, atol=1e-5)
        np.testing.assert_allclose(bn.weight_grad.values, beside.weight_grad, atol=1e-4)
        np.testing.assert_allclose(bn.bias_grad.values, beside.bias_grad, atol=1e-4)
        bn.eval(), beside.eval()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_what_is_saved_can_be_copied(kernels, rng, again):
    inputs = drawn(rng, CASES[2], np.float32, "leaky_relu", True)
    x, dy, residual, weight, bias = (there(each) for each in inputs[2:])
    _, saved = bnext.batch_norm_forward(x, weight, bias, **inputs.options | {"residual": residual})
    first, second = (
        bnext.batch_norm_backward(dy, x, each, weight, residual=residual)
        for each in (saved, again(saved))
    )
    for one, other in zip(first, second, strict=True):
        assert_same_bits(one.values, other.values)


def test_values_that_are_not_finite_stay_in_their_channel(emulated, rng):
    x, dy = rng.normal(size=(2, 9, 3, 4)).astype(np.float32)
    x[2, 1, 1] = np.inf
    for name in ACTIVATIONS:
        y, saved = bnext.batch_norm_forward(Array(x), activation=name)
        dx, dweight, _ = bnext.batch_norm_backward(Array(dy), Array(x), saved)
        for values in (y.values, dx.values):
            assert np.isfinite(values[:, [0, 2]]).all()
        assert np.isfinite(dweight.values[[0, 2]]).all()


@pytest.mark.parametrize("scale", [1e30, 1e-25])
def test_the_ends_of_the_range(emulated, rng, scale):
    """Sums in float32 that overflow, or vanish, are made again of scaled values."""
    inputs = drawn(rng, FOURS[0], np.float64, "relu", False)
    x = (inputs.x * scale).astype(np.float32)
    y, _ = bnext.batch_norm_forward(Array(x), eps=0.0, activation="relu")
    expected = np.maximum(reference.forward(x, eps=0.0), 0)
    np.testing.assert_allclose(y.values, expected, rtol=1e-5, atol=1e-5)


@RESIDUAL
@DATA
@pytest.mark.parametrize("cut", ["equal", "empty-first", "unequal"])
@pytest.mark.parametrize("name", ["relu", "silu", None])
def test_groups(kernels, rng, name, cut, dtype, residual):
    """Results of the whole batch; one member of three is on the CPU."""
    case = Case("rows", (12, 8, 3))
    inputs = drawn(rng, case, dtype, name, residual)
    x, dy, weight, bias = (
        inputs.x,
        inputs.dy,
        *(
            np.ones(8, computed(dtype)) * start if v is None else v
            for start, v in ((1, inputs.weight), (0, inputs.bias))
        ),
    )
    inputs = inputs._replace(weight=weight, bias=bias)
    group = new_group(3)
    added = inputs.residual if residual else x
    shards = [shards_of(each, cut) for each in (x, dy, added)]

    def member(rank, _):
        put = Array if rank != 1 else np.array
        mine, dy_, r, weight_, bias_ = map(put, (*(each[rank] for each in shards), weight, bias))
        options = inputs.options | {"residual": r if residual else None}
        y, saved = bnext.batch_norm_forward(mine, weight_, bias_, **options, group=group)
        again = {"residual": r} if saved.reads_residual else {}
        gradients = bnext.batch_norm_backward(
            dy_, mine, saved, weight_, parameter_gradients="total", **again
        )
        return [getattr(each, "values", each) for each in (y, *gradients)]

    results = group.run(member, shards[0])
    y, dx, *dresidual = (whole(r[k] for r in results) for k in (0, 1, *((4,) if residual else ())))
    Expected(inputs).assert_are_results((y, dx, *results[0][2:4], *dresidual))


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_micro_batches(kernels, rng, name):
    """Of a layer whose input is there: as the whole batch."""
    x, dy, residual = rng.normal(size=(3, 12, 5, 4)).astype(np.float32)
    bn = bnext.BatchNorm1d(5, activation=name).to(Array(x))
    y = bn(Array(x), residual=Array(residual))
    expected = [each.values for each in (y, *bn.backward(Array(dy)), bn.weight_grad)]
    beside = bnext.BatchNorm1d(5, activation=name).to(Array(x))
    parts = [slice(0, 5), slice(5, 12)]

    with bnext.micro_batches([beside]) as union:

        def step(part):
            mine = [Array(values[part]) for values in (x, residual, dy)]
            y = beside(mine[0], residual=mine[1])
            found = y, *beside.backward(mine[2]), beside.weight_grad
            return [each.values for each in found]

        results = list(union.run(step, parts))
    for k, value in enumerate(expected[:3]):
        np.testing.assert_allclose(whole(r[k] for r in results), value, atol=1e-5)
    np.testing.assert_allclose(sum(r[3] for r in results), expected[3], atol=1e-4)
