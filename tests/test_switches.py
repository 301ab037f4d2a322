"""Use running statistics, move them, train the parameters: each a switch of its own; freezing."""

import copy
import gc
import weakref

import numpy as np
import pytest

import bnext

from . import reference
from .compare import assert_same_bits
from .snapshots import layer_state, raises_exactly

SHAPE = (6, 5, 3, 3)


def layer_of(rng, dtype, **options):
    bn = bnext.BatchNorm2d(SHAPE[1], dtype=dtype, **options)
    for name in ("weight", "bias", "running_mean"):
        if getattr(bn, name) is not None:
            getattr(bn, name)[...] = rng.normal(size=SHAPE[1])
    if bn.running_var is not None:
        bn.running_var[...] = rng.uniform(0.5, 2, SHAPE[1])
    return bn


def data(rng, dtype):
    return [rng.normal(size=SHAPE).astype(dtype) * 2 + 1 for _ in range(2)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("uses", [True, False, None])
@pytest.mark.parametrize("moves", [True, False, None])
def test_each_switch_by_itself(rng, dtype, training, uses, moves):
    bn = layer_of(rng, dtype).train(training)
    bn.use_running_stats, bn.update_running_stats = uses, moves
    x, dy = data(rng, dtype)
    before = copy.deepcopy(bn)

    fixed = layer_of(rng, dtype).eval() if (not training if uses is None else uses) else None
    expected = fixed or layer_of(rng, dtype, track_running_stats=False)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(expected, name) is not None:
            getattr(expected, name)[...] = getattr(before, name)
    # By the statistics as they were before the call moved them.
    assert_same_bits(bn(x), expected(x))
    dx = bn.backward(dy)
    np.testing.assert_array_equal(dx, expected.backward(dy))
    np.testing.assert_array_equal(bn.weight_grad, expected.weight_grad)
    np.testing.assert_array_equal(bn.bias_grad, expected.bias_grad)

    if training if moves is None else moves:
        batch = reference.moments(x)
        mean, var = reference.update_running((before.running_mean, before.running_var), batch, 0.1)
        np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(bn.running_var, var, rtol=1e-5)
        assert bn.num_batches_tracked == 1
    else:
        assert_same_bits(bn.running_mean, before.running_mean)
        assert_same_bits(bn.running_var, before.running_var)
        assert bn.num_batches_tracked == 0


def test_moving_gives_the_same_bits_with_and_without_using(rng, dtype):
    x, _ = data(rng, dtype)
    plain = layer_of(rng, dtype)
    using = copy.deepcopy(plain)
    using.use_running_stats = True
    plain(x)
    using(x)
    assert_same_bits(using.running_mean, plain.running_mean)
    assert_same_bits(using.running_var, plain.running_var)


def test_parameters_that_do_not_train_have_no_gradients(rng, dtype):
    bn = layer_of(rng, dtype)
    trained = copy.deepcopy(bn)
    bn.train_affine = False
    x, dy = data(rng, dtype)
    for layer in (bn, trained):
        layer(x)
    assert_same_bits(bn.backward(dy), trained.backward(dy))
    assert bn.weight_grad is None
    assert bn.bias_grad is None


def test_frozen_outlives_train(rng, dtype):
    bn = layer_of(rng, dtype)
    x, dy = data(rng, dtype)
    bn(x)
    bn.backward(dy)
    assert bn.freeze() is bn
    assert bn.frozen
    assert bn.weight_grad is None
    evaluated = copy.deepcopy(bn).unfreeze().eval()
    before = bn.state_dict()
    y = bn.train()(x)
    assert bn.training
    assert_same_bits(y, evaluated(x))
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)
    assert_same_bits(bn.backward(dy), evaluated.backward(dy))
    assert bn.weight_grad is None
    assert evaluated.weight_grad is not None
    assert "frozen" in repr(bn)
    assert not bn.unfreeze().frozen
    bn(x)
    assert bn.num_batches_tracked == 2


def test_frozen_statistics_with_parameters_that_train(rng, dtype):
    bn = layer_of(rng, dtype).freeze(affine=False)
    evaluated = copy.deepcopy(bn).unfreeze().eval()
    x, dy = data(rng, dtype)
    assert_same_bits(bn(x), evaluated(x))
    assert_same_bits(bn.backward(dy), evaluated.backward(dy))
    assert_same_bits(bn.weight_grad, evaluated.weight_grad)
    assert_same_bits(bn.bias_grad, evaluated.bias_grad)


def keeps_no_input(bn, x):
    """Whether nothing but the caller holds what a layer has been called with."""
    x = x.copy()
    gone = weakref.ref(x)
    bn(x)
    del x
    gc.collect()
    return gone() is None


@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_a_constant_does_not_keep_its_input(rng, dtype, options):
    bn = layer_of(rng, dtype, **options).freeze()
    x, dy = data(rng, dtype)
    assert keeps_no_input(bn, x)
    scale = (1 if bn.weight is None else bn.weight.astype(np.float64)) / np.sqrt(
        bn.running_var.astype(np.float64) + bn.eps
    )
    expected = dy * np.reshape(scale, (-1, 1, 1))
    np.testing.assert_allclose(bn.backward(dy), expected, rtol=1e-6)


def test_without_parameters_evaluation_keeps_no_input_either(rng, dtype):
    bn = layer_of(rng, dtype, affine=False).eval()
    x, dy = data(rng, dtype)
    assert keeps_no_input(bn, x)
    assert bn.backward(dy).shape == SHAPE


def test_16_bit_data(rng):
    bn = layer_of(rng, np.float32).freeze()
    evaluated = copy.deepcopy(bn).unfreeze().eval()
    x, dy = data(rng, np.float16)
    assert_same_bits(bn(x), evaluated(x))
    assert_same_bits(bn.backward(dy), evaluated.backward(dy))


def test_backward_checks_the_gradient_without_the_input(rng):
    bn = layer_of(rng, np.float32).freeze()
    x, dy = data(rng, np.float32)
    bn(x)
    with raises_exactly(
        ValueError, "dy: expected shape (6, 5, 3, 3), got (5, 5, 3, 3)", lambda: layer_state(bn)
    ):
        bn.backward(dy[:5])
    with raises_exactly(
        TypeError, "dy: expected dtype float32, got float64", lambda: layer_state(bn)
    ):
        bn.backward(dy.astype(np.float64))
    out = np.empty_like(dy)
    assert bn.backward(dy, out=out) is out
    with pytest.raises(RuntimeError, match="consumed"):
        bn.backward(dy)


def test_empty_batch(rng):
    bn = layer_of(rng, np.float32).freeze()
    x = np.empty((0, *SHAPE[1:]), np.float32)
    assert bn(x).shape == x.shape
    assert bn.backward(x).shape == x.shape


def test_what_cannot_be_frozen():
    bn = bnext.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="freeze: expected a layer with running statistics"):
        bn.freeze()


def test_one_value_cannot_move_what_it_is_normalized_by(rng):
    bn = bnext.BatchNorm1d(4)
    bn.use_running_stats = True
    x = np.ones((1, 4), np.float32)
    text = "Expected more than 1 value per channel when training, got input size (1, 4)"
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn(x)
    assert bn.eval()(x).shape == (1, 4)


def test_a_layer_without_running_statistics_uses_the_batch_s(rng, dtype):
    x, _ = data(rng, dtype)
    bn = layer_of(rng, dtype, track_running_stats=False)
    plain = copy.deepcopy(bn)
    bn.use_running_stats = bn.update_running_stats = True
    assert_same_bits(bn(x), plain(x))
