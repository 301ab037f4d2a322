"""Masks and weights without and with an activation and a residual, of which the definition is the
batch compressed."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations, reference
from .cases import Case
from .compare import assert_same_bits
from .epilogues import DTYPES, Expected, Results, computed, drawn
from .everywhere import assert_same_bits_everywhere
from .masks import (
    CASES,
    compressed,
    drawn_mask,
    drawn_weights,
    over_channels,
    positions_of,
    spoiled,
    weighted,
)
from .numerical import numerical_gradient
from .sixteen import name_of

# Each with a residual or without; flags of a bit where both are there and the derivative is a step.
COMBINATIONS = [
    ("relu", True), ("silu", True), (None, True), ("leaky_relu", False), ("gelu", False),
    ("leaky_relu", True), ("relu", False),
]  # fmt: skip
EACH = pytest.mark.parametrize(("name", "residual"), COMBINATIONS, ids=str)
ALL = pytest.mark.parametrize(("name", "residual"), [(None, False), *COMBINATIONS], ids=str)


def masked_inputs(rng, case, dtype, name, residual, kind="mask"):
    """Inputs, clean; weights of positions; the argument."""
    weights = drawn_weights(case, rng, computed(dtype)) if kind == "weights" else None
    mask = drawn_mask(case, rng) if weights is None else weights > 0
    x = case.x(rng, dtype)
    batch = reference.moments(compressed(case, x, mask if weights is None else weights), 0)
    inputs = drawn(
        rng, case, dtype, name, residual, (batch.mean, batch.var), data=(x, case.dy(rng, dtype))
    )
    given = {"mask": mask} if weights is None else {"sample_weight": weights}
    return inputs, mask.astype(int) if weights is None else weights, given


def dirty(inputs, weights, rng):
    """The same with NaN and infinities where nothing counts."""
    case, mask = inputs.case, weights > 0
    residual = inputs.residual
    return inputs._replace(
        x=spoiled(case, inputs.x, mask, rng), dy=spoiled(case, inputs.dy, mask, rng),
        residual=None if residual is None else spoiled(case, residual, mask, rng),
    )  # fmt: skip


def passes(inputs, given, **more):
    """Results of both passes."""
    y, saved = bnext.batch_norm_forward(
        inputs.x, inputs.weight, inputs.bias, **inputs.options, **given, **more
    )
    again = inputs.again(saved)
    gradients = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight, **again)
    return Results(y, *gradients)


def by_name(results):
    return {name: each for name, each in results._asdict().items() if each is not None}


def counted(case, results, mask):
    """Results at positions that count: rows of shape (C, n)."""
    return Results(*(
        each if each is None or np.ndim(each) == 1 else compressed(case, each, mask)
        for each in results
    ))  # fmt: skip


def rows_of(inputs, mask):
    """The same inputs without what does not count, as rows of channels."""
    case = inputs.case
    x, dy = compressed(case, inputs.x, mask), compressed(case, inputs.dy, mask)
    residual = inputs.residual
    return inputs._replace(
        case=Case("compressed", x.shape, 0), x=x, dy=dy,
        residual=None if residual is None else compressed(case, residual, mask),
    )  # fmt: skip


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_batch_compressed(rng, isa, case, dtype, name, residual):
    inputs, mask, given = masked_inputs(rng, case, dtype, name, residual)
    results = passes(dirty(inputs, mask, rng), given)
    over = over_channels(case, mask > 0) & np.ones(case.shape, bool)
    for what in ("y", "dx", "dresidual"):
        value = getattr(results, what)
        assert value is None or (value.dtype == dtype and not value[~over].any()), what
    Expected(rows_of(inputs, mask)).assert_are_results(counted(case, results, mask))


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_weights(rng, isa, case, dtype, name, residual):
    """Against the formulas in long double, of g in place of dy."""
    inputs, weights, given = masked_inputs(rng, case, dtype, name, residual, "weights")
    mask = (weights > 0).astype(int)
    results = counted(case, passes(dirty(inputs, weights, rng), given), mask)
    rows = rows_of(inputs, mask)
    w = weights.reshape(-1)[mask.reshape(-1) > 0]
    z, *_ = weighted(rows.x, w, rows.dy, rows.weight, rows.bias)
    z = z.astype(np.float64) + (0 if rows.residual is None else np.float64(rows.residual))
    act = activations.of(name)
    g = np.float64(rows.dy) * act.derivative(z)
    _, dx, dweight, dbias = weighted(rows.x, w, g, rows.weight, rows.bias)
    bound = 60 * float(ml_dtypes.finfo(dtype).eps)
    for actual, value in zip(results, (act.value(z), dx, dweight, dbias, g), strict=True):
        if actual is not None:
            value = np.float64(value)
            terms = w.size**0.5 if value.ndim == 1 else 1
            scale = np.maximum(np.abs(value).max(), np.abs(g).max()) * terms
            assert np.abs(np.float64(actual) - value).max() <= bound * max(scale, 1)


@ALL
def test_what_is_masked_changes_no_bit(rng, isa, name, residual):
    for case in CASES:
        for dtype in DTYPES:
            kind = ("mask", "weights")[case.channels % 2]
            inputs, weights, given = masked_inputs(rng, case, dtype, name, residual, kind)
            known = by_name(passes(inputs, given))
            for what, other in by_name(passes(dirty(inputs, weights, rng), given)).items():
                assert_same_bits(other, known[what], f"{what} of {case}")


@pytest.mark.usefixtures("restore_threads")
@ALL
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_same_bits_for_any_threads_schedule_and_set(rng, dtype, name, residual):
    for case in CASES[:4] + CASES[6:12]:
        both = "mask", "weights"
        for kind in both if (name, residual) == (None, False) else [both[case.channels % 2]]:
            inputs, _, given = masked_inputs(rng, case, dtype, name, residual, kind)
            assert_same_bits_everywhere(
                lambda inputs=inputs, given=given: by_name(passes(inputs, given)), what=case
            )


def test_streamed_rows_and_planes(rng, isa):
    """Larger than caches, with a residual's gradient, and rows whose lines begin anywhere."""
    for shape, axis in (((3, 24, 90_011), 1), ((9001, 300), 1), ((40, 24, 4100), 1)):
        x, residual, dy = rng.normal(size=(3, *shape)).astype(np.float32)
        positions = shape[:axis] + shape[axis + 1 :]
        mask = rng.random(positions) < 0.5
        mask[: shape[0] // 2] = False
        over = np.expand_dims(mask, axis) & np.ones(shape, bool)
        given = {"residual": residual, "activation": "silu", "channel_axis": axis}
        y, saved = bnext.batch_norm_forward(x, **given, mask=mask)
        dx, *_, dresidual = bnext.batch_norm_backward(dy, x, saved, residual=residual)
        plain = bnext.normalize(x, saved.mean.astype("f4"), saved.var.astype("f4"), **given)
        np.testing.assert_allclose(y, np.where(over, plain, 0), rtol=0, atol=1e-5)
        z = bnext.normalize(x, saved.mean.astype("f4"), saved.var.astype("f4"), channel_axis=axis)
        g = np.where(over, dy * activations.of("silu").derivative(np.float64(z + residual)), 0)
        np.testing.assert_allclose(dresidual, g, rtol=0, atol=2e-5)
        xhat = np.moveaxis(np.where(over, z, 0), axis, 0).reshape(shape[axis], -1)
        rows = np.moveaxis(g, axis, 0).reshape(shape[axis], -1)
        n = mask.sum()
        means = rows.sum(1) / n, (rows * xhat).sum(1) / n
        expected = rows - means[0][:, None] - xhat * means[1][:, None]
        expected *= saved.rstd[:, None]
        got = np.moveaxis(dx, axis, 0).reshape(shape[axis], -1)
        valid = np.broadcast_to(mask.reshape(-1), got.shape)
        assert not got[~valid].any()
        np.testing.assert_allclose(got[valid], expected[valid], rtol=0, atol=5e-5)


@ALL
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_y_has_elsewhere(rng, case, name, residual):
    """Zero, act(z), or x; the same bits where positions count, and made again."""
    inputs, mask, given = masked_inputs(rng, case, np.float32, name, residual)
    over = over_channels(case, mask > 0) & np.ones(case.shape, bool)
    results = {}
    for masked in ("zero", "normalized", "unchanged"):
        y, saved = bnext.batch_norm_forward(
            inputs.x, inputs.weight, inputs.bias, **inputs.options, **given, masked=masked
        )
        again = {} if not residual else {"residual": inputs.residual}
        assert_same_bits(bnext.recompute(inputs.x, saved, **again), y, "recomputed")
        results[masked] = y
        statistics = saved.mean, saved.var, inputs.weight, inputs.bias
        if masked != "normalized":
            by_given = bnext.normalize(
                inputs.x, *statistics, **inputs.options, **given, masked=masked
            )
            np.testing.assert_allclose(by_given, y, rtol=0, atol=2e-5)
    assert not results["zero"][~over].any()
    assert_same_bits(results["unchanged"][~over], inputs.x[~over])
    plain = bnext.normalize(inputs.x, *statistics, **inputs.options)
    np.testing.assert_allclose(results["normalized"], plain, rtol=0, atol=2e-5)
    for masked, y in results.items():
        assert_same_bits(y[over], results["zero"][over], masked)


@ALL
@pytest.mark.parametrize("axis", [1, -1])
def test_gradients_are_derivatives(rng, axis, name, residual):
    shape = (3, 2, 4) if axis == 1 else (3, 4, 2)
    x, target, added = rng.normal(size=(3, *shape))
    weight, bias = rng.normal(size=(2, 2))
    weights = rng.exponential(size=(3, 4)) * (rng.random((3, 4)) < 0.7)
    weights[0, 0] = 1.5
    options = {"channel_axis": axis, "sample_weight": weights, "activation": name}

    def forward(x=x, weight=weight, bias=bias, residual=added):
        return bnext.batch_norm_forward(
            x, weight, bias, residual=residual if has_residual else None, **options
        )

    has_residual = residual
    _, saved = forward()
    again = {"residual": added} if saved.reads_residual else {}
    gradients = bnext.batch_norm_backward(target, x, saved, weight, **again)
    arguments = {"x": x, "weight": weight, "bias": bias, "residual": added}
    for what, gradient in zip(arguments, gradients, strict=False):
        expected = numerical_gradient(
            lambda at, what=what: (forward(**{what: at})[0] * target).sum(), arguments[what]
        )
        near = (1e-6 if name is None else 2e-6) * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=near)


@ALL
def test_given_statistics(rng, name, residual):
    """Nothing goes through them; gradients of parameters are over what counts, and the residual's
    is 0 elsewhere."""
    case = CASES[3]
    inputs, mask, given = masked_inputs(rng, case, np.float32, name, residual)
    spoilt = dirty(inputs, mask, rng)
    over = over_channels(case, mask > 0) & np.ones(case.shape, bool)
    layer = bnext.BatchNorm1d(case.channels, activation=name, negative_slope=activations.SLOPE)
    layer.eval()
    layer.weight[...] = inputs.weight
    for frozen in (False, True):
        if frozen:
            layer.freeze()
        added = {"residual": spoilt.residual} if residual else {}
        y = layer(spoilt.x, **added, **given)
        got = layer.backward(spoilt.dy)
        sums = [] if frozen else [layer.weight_grad, layer.bias_grad]
        added = {"residual": inputs.residual} if residual else {}
        plain = layer(inputs.x, **added)
        expected = layer.backward(np.where(over, inputs.dy, np.float32(0)))
        assert_same_bits(y, np.where(over, plain, np.float32(0)))
        for one, two in zip(
            got if residual else [got], expected if residual else [expected], strict=True
        ):
            assert_same_bits(one + np.float32(0), two + np.float32(0))
        near = 1e-5 if name else 1e-6
        for one, two in zip(sums, (layer.weight_grad, layer.bias_grad), strict=False):
            np.testing.assert_allclose(one, two, rtol=near, atol=near)


@EACH
@pytest.mark.parametrize("masked", ["zero", "normalized", "unchanged"])
def test_nothing_counts(rng, name, residual, masked):
    x, added = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    given = {"residual": added} if residual else {}
    layer = bnext.BatchNorm1d(3, activation=name)
    y = layer(x, **given, mask=np.zeros((4, 5), bool), masked=masked)
    if masked != "normalized":
        assert_same_bits(y, x if masked == "unchanged" else np.zeros_like(x))
    assert np.isfinite(y).all()
    gradients = layer.backward(np.full_like(x, np.nan))
    for each in gradients if residual else [gradients]:
        assert not each.any()
    assert not layer.weight_grad.any()


def test_extreme_channels(rng, isa):
    """Values near the ends of float32's range, which are written in double."""
    shape = (7, 3, 11)
    x = rng.normal(size=shape)
    x[:, 1] *= 1e-38
    x[:, 2] *= 1e37
    x = x.astype(np.float32)
    dy, residual = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = drawn_mask(Case("extreme", shape), rng)
    over = np.broadcast_to(mask[:, None], shape)
    for name in ("relu", "silu"):
        given = {"residual": residual, "activation": name, "eps": 0.0}
        y, saved = bnext.batch_norm_forward(x, **given, mask=mask)
        again = {"residual": residual} if saved.reads_residual else {}
        got = bnext.batch_norm_backward(dy, x, saved, **again)
        wide = {**given, "residual": residual.astype(float)}
        expected_y, kept = bnext.batch_norm_forward(x.astype(float), **wide, mask=mask)
        again = {"residual": residual.astype(float)} if kept.reads_residual else {}
        expected = bnext.batch_norm_backward(dy.astype(float), x.astype(float), kept, **again)
        np.testing.assert_allclose(y, expected_y, rtol=0, atol=1e-5)
        for one, two in zip(got, expected, strict=True):
            scale = np.abs(two).max(axis=tuple(a for a in range(two.ndim) if a != two.ndim // 2))
            shaped = scale.reshape((1, 3, 1) if two.ndim == 3 else (3,))
            assert (np.abs(one - two) <= 2e-5 * shaped).all()
        assert not got[0][~over].any()


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}], ids=["plain", "activated"])
def test_pickled_between_the_passes(rng, options):
    x, dy, residual = rng.normal(size=(3, 5, 3, 4)).astype(np.float32)
    if options:
        options = {**options, "residual": residual}
    for given in ({"mask": x[:, 0] > 0}, {"sample_weight": abs(x[:, 0])}):
        _, saved = bnext.batch_norm_forward(x, **options, **given)
        copy = pickle.loads(pickle.dumps(saved))
        again = {"residual": residual} if saved.reads_residual else {}
        for one, two in zip(*(bnext.batch_norm_backward(dy, x, each, **again)
                              for each in (saved, copy)), strict=True):  # fmt: skip
            assert_same_bits(one, two)


def test_positions_are_those_of_x(rng):
    """Wrong shapes are refused as without an activation; x stays."""
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    assert positions_of(Case("x", x.shape)) == (4, 5)
    with pytest.raises(ValueError, match=r"^mask: expected shape \(4, 5\)"):
        bnext.batch_norm_forward(x, activation="relu", mask=np.ones((4, 3), bool))
    with pytest.raises(ValueError, match=r"^residual: "):
        bnext.batch_norm_forward(x, residual=x[:2], mask=x[:, 0] > 0)
