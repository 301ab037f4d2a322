"""Group and instance normalization of examples whose positions three threads hold together."""

import ml_dtypes
import numpy as np
import pytest

import bnext

from .. import activations
from .. import cell_reference as reference
from ..activations import SLOPE
from ..compare import assert_same_bits
from ..numerical import numerical_gradient
from .support import CUTS, new_group, shards_of, whole

# Shape with channels at axis 1, groups (None: instances), whether channels are last.
CASES = [
    ((2, 6, 12, 5), 3, False), ((2, 6, 12, 5), 3, True), ((3, 8, 40), 1, False),
    ((2, 8, 21), 8, True), ((4, 6, 9, 7), None, False), ((4, 6, 9, 7), None, True),
    ((1, 4, 11, 3, 2), 2, False), ((5, 64, 8, 3), 4, True),
]  # fmt: skip
EVERY = pytest.mark.parametrize(("shape", "groups", "last"), CASES, ids=str)
UNIT = {np.float32: 2**-23, np.float64: 2**-52, np.float16: 2**-10, ml_dtypes.bfloat16: 2**-7}


def drawn(rng, shape, dtype):
    x, dy = (rng.normal(size=(2, *shape)) * 2 + 1).astype(dtype)
    parameters = np.float64 if dtype is np.float64 else np.float32
    weight, bias = rng.normal(size=(2, shape[1])).astype(parameters)
    weight[0] = 0
    return x, dy, weight, bias


def moved(array, last):
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last else array


def back(array, last):
    return np.moveaxis(array, -1, 1) if last else array


def call(x, groups, weight, bias, group, last, **more):
    more |= {"group": group, "channel_axis": -1 if last else 1}
    if groups is None:
        return bnext.instance_norm_forward(x, weight, bias, **more)
    return bnext.group_norm_forward(x, groups, weight, bias, **more)


def in_group(x, dy, groups, weight, bias, cut, last, sums="total", **more):
    """y, saved and gradients of each member; positions are cut along the first spatial axis."""
    group, axis = new_group(3), 1 if last else 2
    xs, dys = (shards_of(moved(each, last), cut, axis) for each in (x, dy))

    def member(rank, shard):
        y, saved = call(shard, groups, weight, bias, group, last, **more)
        found = bnext.group_norm_backward(dys[rank], shard, saved, weight, parameter_gradients=sums)
        return y, saved, *found

    results = group.run(member, xs)
    y, dx = (back(whole((each[k] for each in results), axis), last) for k in (0, 2))
    return y, dx, results


@EVERY
@pytest.mark.parametrize("dtype", UNIT, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("cut", CUTS)
def test_agrees_with_the_definition_of_whole_examples(rng, shape, groups, last, cut, dtype):
    x, dy, weight, bias = drawn(rng, shape, dtype)
    y, dx, results = in_group(x, dy, groups, weight, bias, cut, last)
    count = groups or shape[1]
    exact = reference.group_norm(x, count, weight, bias)[0]
    expected = reference.group_norm_backward(dy, x, count, weight)
    unit = UNIT[dtype]
    assert y.dtype == dx.dtype == dtype
    assert np.abs(y - exact).max() <= 8 * unit * np.abs(exact).max()
    assert np.abs(dx - expected[0]).max() <= 16 * unit * np.abs(expected[0]).max()
    of_sums = UNIT[weight.dtype.type] * 8 * np.sqrt(x.size / shape[1])
    if np.dtype(dtype).itemsize == 2:
        of_sums += 1e-5 * np.sqrt(x.size / shape[1])
    for _, saved, _, dweight, dbias in results:
        assert np.abs(dweight - expected[1]).max() <= of_sums * 8
        assert np.abs(dbias - expected[2]).max() <= of_sums * 8
        assert_same_bits(dweight, results[0][3])
        assert saved.count == x.size // (shape[0] * count)
        assert saved.num_groups == count
        slabs = np.asarray(x, np.float64).reshape(shape[0], count, -1)
        np.testing.assert_allclose(saved.mean, slabs.mean(2), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(saved.var, slabs.var(2), rtol=1e-5)
        for name in ("mean", "m2", "rstd"):
            assert_same_bits(getattr(saved, name), getattr(results[0][1], name))


@EVERY
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_activations(rng, shape, groups, last, name):
    x, dy, weight, bias = drawn(rng, shape, np.float64)
    count = groups or shape[1]
    z = reference.group_norm(x, count, weight, bias)[0].astype(float)
    act = activations.of(name)
    dy = activations.without_kinks(dy, z, name)
    more = {"activation": name, "negative_slope": SLOPE}
    y, dx, results = in_group(x, dy, groups, weight, bias, "unequal", last, **more)
    expected = reference.group_norm_backward(dy * act.derivative(z), x, count, weight)
    np.testing.assert_allclose(y, act.value(z), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(results[1][3], expected[1], rtol=0, atol=1e-10)
    assert results[0][1].activation == name


@EVERY
@pytest.mark.parametrize("name", ["relu", "silu", None])
def test_residuals(rng, shape, groups, last, name):
    x, dy, weight, bias = drawn(rng, shape, np.float64)
    residual, count = rng.normal(size=shape), groups or shape[1]
    z = reference.group_norm(x, count, weight, bias)[0].astype(float) + residual
    act = activations.of(name)
    dy = activations.without_kinks(dy, z, name)
    group, axis = new_group(3), 1 if last else 2
    xs, dys, rs = (shards_of(moved(each, last), "unequal", axis) for each in (x, dy, residual))
    more = {"activation": name, "negative_slope": SLOPE}

    def member(rank, shard):
        y, saved = call(shard, groups, weight, bias, group, last, residual=rs[rank], **more)
        assert saved.residual
        again = rs[rank] if saved.reads_residual else None
        found = bnext.group_norm_backward(
            dys[rank], shard, saved, weight, parameter_gradients="total", residual=again
        )
        assert (found[3] is dys[rank]) == (name is None)
        return y, *found

    results = group.run(member, xs)
    y, dx, dresidual = (back(whole((r[k] for r in results), axis), last) for k in (0, 1, 4))
    g = dy * act.derivative(z)
    expected = reference.group_norm_backward(g, x, count, weight)
    np.testing.assert_allclose(y, act.value(z), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dresidual, g, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(results[1][2], expected[1], rtol=0, atol=1e-10)


def test_errors_about_a_residual(rng):
    x, dy, weight, bias = drawn(rng, (2, 4, 6), np.float64)
    r = rng.normal(size=x.shape)
    added, both = {"residual": r}, {"residual": r, "activation": "silu"}
    for of_forward, of_backward, text in (
        (both, {}, "residual: expected the forward call's"),
        ({}, {"residual": r}, "residual: expected None"),
        (both, {"residual": r[:1]}, "residual: expected shape"),
        ({"residual": r[:1]}, {}, "residual: expected shape"),
        (added, {"out": dy}, "got dy, which is dresidual"),
    ):
        group = new_group(1)

        def member(rank, shard, group=group, of_forward=of_forward, of_backward=of_backward):
            del rank
            _, saved = bnext.group_norm_forward(shard, 2, weight, bias, group=group, **of_forward)
            bnext.group_norm_backward(dy, shard, saved, weight, **of_backward)

        with pytest.raises(ValueError, match=text):
            group.run(member, [x])


@pytest.mark.parametrize("last", [False, True])
def test_gradients_are_derivatives(rng, last):
    x, target = rng.normal(size=(2, 2, 4, 6))
    weight, bias = rng.normal(size=(2, 4))

    def loss(x=x, weight=weight, bias=bias):
        return (in_group(x, target, 2, weight, bias, "unequal", last)[0] * target).sum()

    _, dx, results = in_group(x, target, 2, weight, bias, "unequal", last)
    found = {"x": dx, "weight": results[0][3], "bias": results[0][4]}
    given = {"x": x, "weight": weight, "bias": bias}
    for what, gradient in found.items():
        expected = numerical_gradient(lambda at, what=what: loss(**{what: at}), given[what])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_local_gradients_add_up_to_the_total(rng):
    x, dy, weight, bias = drawn(rng, (2, 6, 12, 5), np.float64)
    local = in_group(x, dy, 3, weight, bias, "unequal", False, "local")[2]
    total = in_group(x, dy, 3, weight, bias, "unequal", False)[2]
    for which in (3, 4):
        np.testing.assert_allclose(sum(each[which] for each in local), total[0][which], rtol=1e-12)
        assert not np.array_equal(local[1][which], total[0][which])


def test_bits_do_not_depend_on_threads(rng, restore_threads):
    x, dy, weight, bias = drawn(rng, (2, 16, 96, 40), np.float32)
    known = None
    for threads in (1, 2, 4):
        bnext.set_num_threads(threads)
        y, dx, results = in_group(x, dy, 4, weight, bias, "unequal", False)
        found = [y, dx, results[0][3], results[0][4]]
        known = known or found
        for one, two in zip(found, known, strict=True):
            assert_same_bits(one, two)


def test_large_means(rng):
    """A mean of 1e8, of which float64 has 8 digits behind the point."""
    x = rng.normal(size=(2, 4, 30)) + 1e8
    y, dx, _ = in_group(x, x - 1e8, 2, None, None, "unequal", False)
    exact = reference.group_norm(x, 2, None, None)[0]
    expected = reference.group_norm_backward(x - 1e8, x, 2, None)[0]
    np.testing.assert_allclose(y, exact.astype(float), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, expected.astype(float), rtol=0, atol=1e-10)


@pytest.mark.parametrize("last", [False, True])
def test_out(rng, last):
    x, dy, weight, bias = drawn(rng, (2, 6, 12, 5), np.float32)
    y, dx, _ = in_group(x, dy, 3, weight, bias, "equal", last)
    group, axis = new_group(3), 1 if last else 2
    outs = [np.zeros_like(moved(x, last)) for _ in range(2)]
    xs, dys, *into = (shards_of(each, "equal", axis) for each in
                      (moved(x, last), moved(dy, last), *outs))  # fmt: skip

    def member(rank, shard):
        result, saved = call(shard, 3, weight, bias, group, last, out=into[0][rank])
        assert result is into[0][rank]
        gradient, *_ = bnext.group_norm_backward(dys[rank], shard, saved, weight, out=into[1][rank])
        assert gradient is into[1][rank]

    group.run(member, xs)
    assert_same_bits(back(outs[0], last), y)
    assert_same_bits(back(outs[1], last), dx)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("make", [
    lambda **given: bnext.GroupNorm(2, 6, activation="silu", **given),
    lambda **given: bnext.InstanceNorm2d(6, affine=True, track_running_stats=True, **given),
], ids=["group", "instance"])  # fmt: skip
def test_layers(rng, make, shared):
    group, alone = new_group(3), make()
    layers = [make(group=group, parameter_gradients="total") for _ in range(1 if shared else 3)]
    assert "group=" in repr(layers[0])
    for _ in range(2):
        x, dy, weight, bias = drawn(rng, (3, 6, 11, 5), np.float32)
        for each in (alone, *layers):
            each.weight[...], each.bias[...] = weight, bias
        dys = shards_of(dy, "unequal", 2)

        def member(rank, shard, dys=dys):
            layer = layers[rank % len(layers)]
            return layer(shard), layer.backward(dys[rank])

        results = group.run(member, shards_of(x, "unequal", 2))
        y, dx = (whole((each[k] for each in results), 2) for k in (0, 1))
        np.testing.assert_allclose(y, alone(x), rtol=0, atol=1e-5)
        np.testing.assert_allclose(dx, alone.backward(dy), rtol=0, atol=1e-5)
        for layer in layers:
            for name in ("weight_grad", "bias_grad"):
                expected = getattr(alone, name)
                np.testing.assert_allclose(getattr(layer, name), expected, rtol=0, atol=2e-4)
            if layer.track_running_stats:
                np.testing.assert_allclose(layer.running_var, alone.running_var, rtol=1e-6)
                np.testing.assert_allclose(layer.running_mean, alone.running_mean, atol=1e-6)
    layers[0].eval(), alone.eval()
    if alone.track_running_stats:  # which need no member
        np.testing.assert_allclose(layers[0](x), alone(x), atol=1e-5)


def test_arrays_of_torch(torch, rng):
    x, dy, weight, bias = drawn(rng, (2, 6, 12, 5), np.float32)
    y, dx, results = in_group(x, dy, 3, weight, bias, "unequal", False)
    group = new_group(3)
    xs, dys = (shards_of(each, "unequal", 2) for each in (x, dy))
    given = torch.from_numpy(weight), torch.from_numpy(bias)

    def member(rank, shard):
        tensor = torch.from_numpy(np.ascontiguousarray(shard))
        out, saved = call(tensor, 3, *given, group, False)
        gradient = torch.from_numpy(np.ascontiguousarray(dys[rank]))
        return out, *bnext.group_norm_backward(
            gradient, tensor, saved, given[0], parameter_gradients="total"
        )

    found = group.run(member, xs)
    assert all(isinstance(each, torch.Tensor) for each in found[0])
    assert_same_bits(np.concatenate([np.asarray(each[0]) for each in found], 2), y)
    assert_same_bits(np.concatenate([np.asarray(each[1]) for each in found], 2), dx)
    assert_same_bits(np.asarray(found[0][2]), results[0][3])


def test_errors_reach_every_member(rng):
    x, _, weight, bias = drawn(rng, (2, 6, 12, 5), np.float32)

    def run(change):
        group = new_group(2)

        def member(rank, shard):
            given = {"x": shard, "weight": weight, "groups": 3} | (change if rank else {})
            return call(given["x"], given["groups"], given["weight"], bias, group, False)

        return group.run(member, np.split(x, 2, axis=2))

    for change, kind, text in (
        ({"weight": weight[:5]}, ValueError, r"weight: expected shape \(6,\), got \(5,\)"),
        ({"weight": weight.astype(float)}, TypeError, "weight: expected dtype float32"),
        ({"groups": 4}, ValueError, "num_groups: expected a divisor of the number of channels, 6"),
        ({"x": x[0, 0, 0]}, ValueError, "expected"),
        ({"x": x[:1]}, bnext.sync.GroupError, "channels"),
        ({"x": x.astype(float), "weight": None}, (bnext.sync.GroupError, TypeError), "float"),
    ):
        with pytest.raises(kind, match=text):
            run(change)
    one = np.ones((1, 2, 1), np.float32)
    group = new_group(2)
    with pytest.raises(ValueError, match="Expected more than 1 value per slab, got 1 in the parts"):
        group.run(lambda rank, shard: call(shard, None, None, None, group, False),
                  [one, one[:, :, :0]])  # fmt: skip
    with pytest.raises(TypeError, match=r"group: expected a bnext\.sync group, got int"):
        bnext.group_norm_forward(x, 3, group=3)
    with pytest.raises(TypeError, match=r"group: expected a bnext\.sync group, got str"):
        bnext.GroupNorm(2, 6, group="all")
    with pytest.raises(ValueError, match="parameter_gradients: expected 'local' or 'total'"):
        bnext.GroupNorm(2, 6, parameter_gradients="sum")


def test_backward_errors(rng):
    x, dy, weight, bias = drawn(rng, (2, 6, 12, 5), np.float32)
    group = new_group(1)

    def member(rank, shard):
        _, saved = call(shard, 3, weight, bias, group, False)
        assert repr(saved).startswith("<bnext.sync.SplitSaved of a float32 part of shape (2, 6, 12")
        return saved

    (saved,) = group.run(member, [x])
    changed = x + 1
    for given, kind, text in (
        ((dy, x[:1], saved, weight), ValueError, "saved: made from an input of shape"),
        ((dy, changed, saved, weight), ValueError, "another x, or x was changed since"),
        ((dy[:1], x, saved, weight), ValueError, "dy: expected shape"),
        ((dy.astype(float), x, saved, weight), TypeError, "dy: expected dtype float32"),
        ((dy, x, saved, weight[:2]), ValueError, "weight: expected shape"),
    ):
        with pytest.raises(kind, match=text):
            group.run(lambda rank, _, given=given: bnext.group_norm_backward(*given), [x])
        group.reset()
