"""Layer and RMS normalization of examples whose normalized axis three threads hold together."""

import numpy as np
import pytest

import bnext

from .. import activations
from .. import row_reference as reference
from ..activations import SLOPE
from ..compare import assert_same_bits
from ..norms import CENTERED, DATA, RESIDUAL, UNIT, Rows, drawn, param
from ..numerical import numerical_gradient
from .support import CUTS, new_group, shards_of

SHAPES = [(5, 64), (2, 3, 33), (70, 300), (2, 140_003)]


def call(x, weight, bias, centered, group=None, eps=1e-5, **more):
    shape = x.shape[-1:]
    if centered:
        return bnext.layer_norm_forward(x, shape, weight, bias, eps, group=group, **more)
    return bnext.rms_norm_forward(x, shape, weight, eps, group=group, **more)


def back(dy, x, saved, weight, residual=None, **more):
    function = bnext.layer_norm_backward if saved.centered else bnext.rms_norm_backward
    return function(dy, x, saved, weight, residual=residual, **more)


def in_group(x, dy, weight, bias, cut, centered, residual=None, **more):
    """y and all gradients, put together of the members' parts; and what each has saved."""
    group = new_group(3)
    given = [None if each is None else shards_of(each, cut, -1) for each in
             (x, dy, weight, bias, residual)]  # fmt: skip

    def member(rank, _):
        x, dy, weight, bias, residual = (None if each is None else each[rank] for each in given)
        y, saved = call(x, weight, bias, centered, group, residual=residual, **more)
        again = residual if saved.reads_residual else None
        return saved, y, *back(dy, x, saved, weight, again)

    saved, *results = zip(*group.run(member, range(3)), strict=True)
    return [np.concatenate(each, -1) for each in results], saved


@CENTERED
@DATA
@pytest.mark.parametrize("cut", CUTS)
def test_agrees_with_the_definition_of_whole_examples(rng, dtype, cut, centered):
    for shape in SHAPES if cut == "unequal" else SHAPES[:3]:
        _, x, dy, weight, bias, *_ = drawn(rng, Rows(), shape, dtype)
        (y, dx, dweight, *dbias), saved = in_group(x, dy, weight, bias, cut, centered)
        of = reference.forward(x, 1, weight, bias if centered else None, eps=1e-5,
                               centered=centered)  # fmt: skip
        exact = reference.backward(dy, x, 1, weight, eps=1e-5, centered=centered)
        assert y.dtype == dx.dtype == dtype
        assert dweight.dtype == param(dtype)
        unit, scale = UNIT[dtype], float(np.abs(of.y).max())
        assert np.abs(y.reshape(of.y.shape) - of.y).max() <= 4 * unit * scale
        assert np.abs(dx.reshape(of.y.shape) - exact[0]).max() <= 8 * unit * np.abs(exact[0]).max()
        size = 8 * UNIT[param(dtype)] * np.abs(dy.astype(float)).max() * np.sqrt(len(of.y)) * 8
        assert np.abs(dweight - exact[1]).max() <= size
        if centered:
            assert np.abs(dbias[0] - exact[2]).max() <= size
        for each in saved:
            assert each.count == shape[-1]
            np.testing.assert_allclose(each.rstd.ravel(), of.rstd[:, 0].astype(float), rtol=1e-11)
            assert_same_bits(each.mean, saved[0].mean)
            assert_same_bits(each.rstd, saved[0].rstd)


@CENTERED
@RESIDUAL
@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_activations_and_residuals(rng, name, adds, centered):
    _, x, dy, weight, bias, *_ = drawn(rng, Rows(), (6, 90), np.float64)
    residual = rng.standard_normal(x.shape) if adds else None
    of = reference.forward(x, 1, weight, bias if centered else None, eps=1e-5, centered=centered)
    z = of.y.astype(float) + (residual if adds else 0)
    act = activations.of(name)
    dy = activations.without_kinks(dy, z, name)
    found, _ = in_group(x, dy, weight, bias, "unequal", centered, residual, activation=name,
                        negative_slope=SLOPE)  # fmt: skip
    g = dy * act.derivative(z)
    expected = reference.backward(g, x, 1, weight, eps=1e-5, centered=centered)
    expected = [act.value(z), *expected[: 2 + centered], *([g] if adds else [])]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two.astype(float), rtol=0, atol=1e-11)


@CENTERED
def test_gradients_are_derivatives(rng, centered):
    x, target = rng.normal(size=(2, 3, 8))
    weight, bias = rng.normal(size=(2, 8))
    given = {"x": x, "weight": weight} | ({"bias": bias} if centered else {})

    def loss(**moved):
        at = {"bias": bias, **given, **moved}
        found, _ = in_group(at["x"], target, at["weight"], at["bias"], "unequal", centered)
        return (found[0] * target).sum()

    (_, *gradients), _ = in_group(x, target, weight, bias, "unequal", centered)
    for what, gradient in zip(given, gradients, strict=True):
        expected = numerical_gradient(lambda at, what=what: loss(**{what: at}), given[what])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@CENTERED
@pytest.mark.parametrize("shape", [(300, 257), (3, 400_003)])
def test_bits_do_not_depend_on_threads(rng, centered, shape, restore_threads):
    _, x, dy, weight, bias, *_ = drawn(rng, Rows(), shape, np.float32)
    known = None
    for threads in (1, 2, 4):
        bnext.set_num_threads(threads)
        found, _ = in_group(x, dy, weight, bias, "equal", centered, activation="gelu")
        known = known or found
        for one, two in zip(found, known, strict=True):
            assert_same_bits(one, two)


@CENTERED
def test_a_group_of_one_is_a_call_without(rng, centered):
    for shape in ((40, 300), (2, 140_003)):
        _, x, dy, weight, bias, *_ = drawn(rng, Rows(), shape, np.float32)
        y, saved = call(x, weight, bias, centered, activation="silu")
        expected = [y, *back(dy, x, saved, weight)]
        group = new_group(1)

        def member(rank, x, group=group, dy=dy, weight=weight, bias=bias):
            y, saved = call(x, weight, bias, centered, group, activation="silu")
            return [y, *back(dy, x, saved, weight)]

        for one, two in zip(group.run(member, [x])[0], expected, strict=True):
            assert_same_bits(one, two)


def test_large_means(rng):
    x = rng.normal(size=(4, 90)) + 1e8
    (y, dx, *_), _ = in_group(x, x - 1e8, None, None, "unequal", True)
    of = reference.forward(x, 1, eps=1e-5)
    exact = reference.backward(x - 1e8, x, 1, eps=1e-5)
    np.testing.assert_allclose(y, of.y.astype(float), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, exact[0].astype(float), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [bnext.LayerNorm, bnext.RMSNorm])
def test_layers(rng, kind):
    group = new_group(3)
    _, x, dy, weight, _, *_ = drawn(rng, Rows(), (6, 90), np.float32)
    xs, dys, weights = (shards_of(each, "unequal", -1) for each in (x, dy, weight))
    alone = kind(90, activation="silu")
    alone.weight[...] = weight
    layers = [kind(part.shape[-1], activation="silu", group=group) for part in xs]
    assert "group=" in repr(layers[0])

    def member(rank, shard):
        layers[rank].weight[...] = weights[rank]
        y = layers[rank](shard, residual=shard)
        return y, *layers[rank].backward(dys[rank])

    y, dx, dresidual = (np.concatenate(each, -1) for each in
                        zip(*group.run(member, xs), strict=True))  # fmt: skip
    np.testing.assert_allclose(y, alone(x, residual=x), rtol=0, atol=1e-5)
    expected = alone.backward(dy)
    np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(dresidual, expected[1], rtol=0, atol=1e-5)
    found = np.concatenate([each.weight_grad for each in layers])
    np.testing.assert_allclose(found, alone.weight_grad, rtol=0, atol=1e-4)


def test_errors_reach_every_member(rng):
    _, x, dy, weight, bias, *_ = drawn(rng, Rows(), (6, 40), np.float32)

    def run(change):
        group = new_group(2)

        def member(rank, shard):
            given = {"x": shard, "weight": weight[:20]} | (change if rank else {})
            return call(given["x"], given["weight"], bias[:20], True, group)

        return group.run(member, np.split(x, 2, axis=1))

    for change, kind, text in (
        ({"weight": weight[:5]}, ValueError, r"weight: expected shape \(20,\), got \(5,\)"),
        ({"x": x[:3, :20]}, bnext.sync.GroupError, "channels"),
        (
            {"x": x[:, :20].astype(float), "weight": None},
            (TypeError, bnext.sync.GroupError),
            "float",
        ),
    ):
        with pytest.raises(kind, match=text):
            run(change)
    with pytest.raises(TypeError, match=r"group: expected a bnext\.sync group, got int"):
        bnext.layer_norm_forward(x, 40, group=3)
    with pytest.raises(TypeError, match=r"group: expected a bnext\.sync group, got str"):
        bnext.LayerNorm(40, group="all")
    group = new_group(1)
    ((_, saved),) = group.run(lambda rank, x: call(x, weight, bias, True, group), [x])
    assert repr(saved).startswith("<bnext.sync.SplitRowSaved of a float32 part of shape (6, 40)")
    for given, kind, text in (
        ((dy, x + 1, saved, weight), ValueError, "another x, or x was changed since"),
        ((dy[:2], x, saved, weight), ValueError, "dy: expected shape"),
    ):
        with pytest.raises(kind, match=text):
            group.run(lambda rank, _, given=given: back(*given), [x])
        group.reset()
