"""Batch renormalization against its definition (Ioffe 2017), written here in float64."""

import copy
import pickle

import numpy as np
import pytest

import bnext

from .groups.support import new_group

EPS = 1e-5
LAYERS = {(6, 3): bnext.BatchRenorm1d, (4, 3, 5): bnext.BatchRenorm1d,
          (3, 3, 2, 4): bnext.BatchRenorm2d, (2, 3, 2, 3, 2): bnext.BatchRenorm3d}  # fmt: skip


class Definition:
    """Algorithm 1, and its gradients with r and d held."""

    def __init__(self, weight, bias, momentum, r_max, d_max):
        self.weight, self.bias, self.momentum = weight, bias, momentum
        self.r_max, self.d_max = r_max, d_max
        self.mean, self.sigma = np.zeros(3), np.sqrt(1 + EPS)

    def __call__(self, x, dy):
        rows, of_y = (np.moveaxis(a, 1, -1).reshape(-1, 3).astype(float) for a in (x, dy))
        mean, sigma = rows.mean(0), np.sqrt(rows.var(0) + EPS)
        r = np.clip(sigma / self.sigma, 1 / self.r_max, self.r_max)
        d = np.clip((mean - self.mean) / self.sigma, -self.d_max, self.d_max)
        xhat = (rows - mean) / sigma
        y = (xhat * r + d) * self.weight + self.bias
        g = of_y * self.weight * r
        dx = (g - g.mean(0) - xhat * (g * xhat).mean(0)) / sigma
        self.mean = self.mean + self.momentum * (mean - self.mean)
        self.sigma = self.sigma + self.momentum * (sigma - self.sigma)
        shape = (*np.moveaxis(x, 1, -1).shape[:-1], 3)
        y, dx = (np.moveaxis(a.reshape(shape), -1, 1) for a in (y, dx))
        return y, dx, (of_y * (xhat * r + d)).sum(0), of_y.sum(0)


def pair(kind, rng, dtype=np.float64, momentum=0.1, r_max=1.5, d_max=0.7, **options):
    layer = kind(3, momentum=momentum, r_max=r_max, d_max=d_max, dtype=dtype, **options)
    layer.weight[:], layer.bias[:] = rng.normal(size=3), rng.normal(size=3)
    weight, bias = layer.weight.astype(float), layer.bias.astype(float)
    return layer, Definition(weight, bias, momentum, r_max, d_max)


def batch_of(rng, shape, dtype=np.float64):
    scale = np.array([0.3, 1, 4]).reshape(-1, *[1] * (len(shape) - 2))
    return (rng.normal(size=shape) * scale + scale - 1).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", LAYERS)
def test_is_the_definition(shape, dtype):
    rng = np.random.default_rng(0)
    layer, definition = pair(LAYERS[shape], rng, dtype)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype is np.float64 else {"rtol": 2e-4, "atol": 2e-5}
    for step in range(5):
        x, dy = batch_of(rng, shape, dtype), rng.normal(size=shape).astype(dtype)
        y, dx, dweight, dbias = definition(x, dy)
        np.testing.assert_allclose(layer(x), y, **close)
        np.testing.assert_allclose(layer.backward(dy), dx, **close)
        np.testing.assert_allclose(layer.weight_grad, dweight, **close)
        np.testing.assert_allclose(layer.bias_grad, dbias, **close)
        np.testing.assert_allclose(layer.running_mean, definition.mean, **close)
        sigma = np.sqrt(layer.running_var.astype(float) + EPS)
        np.testing.assert_allclose(sigma, definition.sigma, **close)
        assert layer.num_batches_tracked == step + 1
    x = batch_of(rng, shape, dtype)
    y = np.moveaxis((np.moveaxis(x, 1, -1) - definition.mean) / definition.sigma
                    * definition.weight + definition.bias, -1, 1)  # fmt: skip
    np.testing.assert_allclose(layer.eval()(x), y, **close)


def test_gradients_are_finite_differences_with_r_and_d_held():
    rng = np.random.default_rng(1)
    layer, definition = pair(bnext.BatchRenorm1d, rng)
    x, dy, direction = (batch_of(rng, (5, 3)) for _ in range(3))
    mean, sigma = x.mean(0), np.sqrt(x.var(0) + EPS)
    r = np.clip(sigma / definition.sigma, 1 / 1.5, 1.5)
    d = np.clip((mean - definition.mean) / definition.sigma, -0.7, 0.7)
    layer(x)
    dx = layer.backward(dy)

    def loss(at):
        xhat = (at - at.mean(0)) / np.sqrt(at.var(0) + EPS)
        return (((xhat * r + d) * layer.weight + layer.bias) * dy).sum()

    h = 1e-6
    slope = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    np.testing.assert_allclose((dx * direction).sum(), slope, rtol=1e-7)


def test_limits_of_1_and_0_are_batch_normalization():
    rng = np.random.default_rng(2)
    x, dy = batch_of(rng, (7, 3, 4)), batch_of(rng, (7, 3, 4))
    layer, plain = (
        bnext.BatchRenorm1d(3, r_max=1, d_max=0, dtype=float),
        bnext.BatchNorm1d(3, dtype=float),
    )
    np.testing.assert_array_equal(layer(x), plain(x))
    np.testing.assert_array_equal(layer.backward(dy), plain.backward(dy))
    np.testing.assert_array_equal(layer.weight_grad, plain.weight_grad)


def test_without_limits_it_normalizes_by_running_statistics():
    rng = np.random.default_rng(3)
    layer = bnext.BatchRenorm1d(3, r_max=np.inf, d_max=np.inf, dtype=float)
    for _ in range(3):
        x = batch_of(rng, (5, 3))
        expected = layer.eval()(x)
        np.testing.assert_allclose(layer.train()(x), expected, rtol=1e-12, atol=1e-12)


def test_schedules_are_functions_of_the_step():
    steps = []
    layer = bnext.BatchRenorm1d(
        3, r_max=bnext.Ramp(1, 3, 1, 3), d_max=lambda step: steps.append(step) or 0
    )
    for _ in range(3):
        layer(batch_of(np.random.default_rng(0), (5, 3), np.float32))
    assert steps == [0, 1, 2]
    assert [layer.r_max(step) for step in range(5)] == [1, 1, 2, 3, 3]


def test_activation_residual_and_outputs_made_again():
    rng = np.random.default_rng(4)
    layer, definition = pair(bnext.BatchRenorm1d, rng, activation="relu")
    x, residual, dy = (batch_of(rng, (6, 3)) for _ in range(3))
    y, _, _, _ = definition(x, dy)
    z = y + residual
    found = layer(x, residual=residual)
    np.testing.assert_allclose(found, np.maximum(z, 0), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(layer.recomputed(residual=residual).value(), found)
    _, dresidual = layer.backward(dy)
    np.testing.assert_array_equal(dresidual, dy * (z > 0))
    np.testing.assert_allclose(layer.bias_grad, (dy * (z > 0)).sum(0), rtol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_members_of_a_group_renormalize_one_batch(shared):
    rng = np.random.default_rng(5)
    group = new_group(3)
    one, definition = pair(bnext.BatchRenorm1d, rng, group=group, parameter_gradients="total")
    layers = [one] * 3 if shared else [copy.deepcopy(one) for _ in range(3)]
    for _ in range(3):
        x, dy = batch_of(rng, (7, 3)), rng.normal(size=(7, 3))
        cut = [1, 4]

        def step(rank, shards):
            return layers[rank](shards[0]), layers[rank].backward(shards[1])

        shards = list(zip(np.split(x, cut), np.split(dy, cut), strict=True))
        parts = group.run(step, shards)
        y, dx, dweight, _ = definition(x, dy)
        np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), y, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(
            np.concatenate([p[1] for p in parts]), dx, rtol=1e-11, atol=1e-11
        )
        for layer in layers:
            np.testing.assert_allclose(layer.weight_grad, dweight, rtol=1e-11)
            sigma = np.sqrt(layer.running_var + EPS)
            np.testing.assert_allclose(sigma, definition.sigma, rtol=1e-12)


def test_copies_state_and_eps():
    layer = bnext.BatchRenorm2d(3, eps=0.5, skip_nonfinite=True)
    assert list(layer.state_dict()) == list(bnext.BatchNorm2d(3).state_dict())
    assert "r_max=3.0, d_max=5.0)" in repr(layer)
    x = batch_of(np.random.default_rng(6), (4, 3, 2, 2), np.float32)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).to(x)]
    layer(x)
    for other in copies:
        other(x)
        np.testing.assert_array_equal(other.running_var, layer.running_var)
    x[0, 0] = np.nan
    layer(x)
    np.testing.assert_array_equal(copies[0].running_var, layer.running_var)
    assert layer.num_batches_skipped == 1


def test_tensors_and_empty_batches(torch):
    x = batch_of(np.random.default_rng(7), (4, 3), np.float32)
    layer, same = bnext.BatchRenorm1d(3), bnext.BatchRenorm1d(3)
    y = layer(torch.from_numpy(x))
    np.testing.assert_array_equal(y.numpy(), same(x))
    np.testing.assert_array_equal(layer.backward(y).numpy(), same.backward(y.numpy()))
    np.testing.assert_array_equal(np.asarray(layer.weight_grad), same.weight_grad)
    same(x[:0])
    np.testing.assert_array_equal(layer.running_var, same.running_var)


BAD = [
    ({"r_max": 0.5}, ValueError, "r_max: expected a number >= 1, got 0.5"),
    ({"d_max": -1}, ValueError, "d_max: expected a number >= 0, got -1"),
    ({"d_max": float("nan")}, ValueError, "d_max: expected a number >= 0, got nan"),
    ({"r_max": "3"}, TypeError, "r_max: expected a number, got str"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD, ids=[text for *_, text in BAD])
def test_wrong_limits(options, kind, text):
    with pytest.raises(kind, match=f"^{text}$"):
        bnext.BatchRenorm1d(3, **options)


def test_errors_come_before_anything_is_touched():
    layer = bnext.BatchRenorm1d(3, r_max=lambda step: 0)
    x = batch_of(np.random.default_rng(8), (4, 3), np.float32)
    with pytest.raises(ValueError, match=r"^r_max: expected a number >= 1, got 0 at step 0$"):
        layer(x)
    layer.r_max, layer.ghost_batch_size = 3, 2
    with pytest.raises(ValueError, match=r"^ghost_batch_size: expected None for BatchRenorm1d"):
        layer(x)
    layer.ghost_batch_size = None
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        layer(x[:1])
    with pytest.raises(ValueError, match=r"^layers\[0\]: expected a layer that normalizes by the"):
        bnext.micro_batches([layer])
    assert layer.num_batches_tracked == 0
    assert (layer.running_var == 1).all()
    with pytest.raises(ValueError, match=r"^last: expected a step after first=3, got 3"):
        bnext.Ramp(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"^stop: expected a finite number"):
        bnext.Ramp(1, np.inf, 3, 4)
