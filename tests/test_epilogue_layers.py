"""Layers with an activation, and residuals of their calls."""

import copy
import pickle

import numpy as np
import pytest

import bnext

from .activations import ACTIVATIONS, KEEP_FLAGS, SLOPE, SMOOTH
from .cases import Case
from .compare import assert_same_bits
from .epilogues import DTYPES, Expected, Results, both_passes, computed, drawn
from .sixteen import name_of
from .snapshots import layer_state, raises_exactly
from .statistics_networks import conv, dense, in_batches
from .test_layers import randomize

ALL = [*ACTIVATIONS, None]
CASE = Case("planes", (3, 5, 7, 9))
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda bn: pickle.loads(pickle.dumps(bn)),
}


def layer_of(inputs, **options):
    """A layer with the parameters of `inputs`."""
    bn = bnext.BatchNorm2d(
        inputs.case.channels, dtype=computed(inputs.x.dtype), activation=inputs.name,
        negative_slope=SLOPE, **options,
    )  # fmt: skip
    bn.weight[...], bn.bias[...] = inputs.weight, inputs.bias
    return bn


def step(bn, inputs):
    """Results of one call of each pass."""
    if inputs.residual is None:
        y = bn(inputs.x)
        dx, dresidual = bn.backward(inputs.dy), None
    else:
        y = bn(inputs.x, residual=inputs.residual)
        dx, dresidual = bn.backward(inputs.dy)
    return Results(y, dx, bn.weight_grad, bn.bias_grad, dresidual)


def assert_same(results, expected):
    for what, actual, other in zip(Results._fields, results, expected, strict=True):
        assert (actual is None) == (other is None), what
        if other is not None:
            assert_same_bits(actual, other, what)


@pytest.mark.usefixtures("runtime")
@RESIDUAL
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=name_of)
@pytest.mark.parametrize("name", ALL)
def test_a_step_is_the_functions(rng, name, dtype, residual):
    inputs = drawn(rng, CASE, dtype, name, residual)
    bn = layer_of(inputs)
    assert_same(step(bn, inputs), both_passes(inputs))
    assert bn.num_batches_tracked == 1
    plain = bnext.BatchNorm2d(5, dtype=bn.dtype)
    plain(inputs.x)
    assert_same_bits(bn.running_var, plain.running_var)


@pytest.mark.usefixtures("isa")
@RESIDUAL
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ALL)
def test_given_statistics_are_constants(rng, name, dtype, residual):
    """In evaluation, and frozen; then without gradients of parameters."""
    parameters = computed(dtype)
    mean = rng.uniform(-1, 1, 5).astype(parameters)
    var = rng.uniform(0.5, 2, 5).astype(parameters)
    inputs = drawn(rng, CASE, dtype, name, residual, (mean, var))
    bn = layer_of(inputs).eval()
    bn.running_mean[...], bn.running_var[...] = mean, var
    results = step(bn, inputs)
    Expected(inputs, (mean, var)).assert_are_results(results)
    assert_same_bits(bn.running_mean, mean)

    bn.train().freeze()
    assert_same(step(bn, inputs), (*results[:2], None, None, results.dresidual))
    assert_same_bits(bn.running_var, var)


def test_a_layer_without_running_statistics(rng):
    inputs = drawn(rng, CASE, np.float32, "relu", True)
    bn = layer_of(inputs, track_running_stats=False).eval()
    assert_same(step(bn, inputs), both_passes(inputs))


@pytest.mark.parametrize("name", ALL)
def test_without_parameters(rng, name):
    inputs = drawn(rng, CASE, np.float32, name, True)._replace(weight=None, bias=None)
    bn = bnext.BatchNorm(5, affine=False, activation=name, negative_slope=SLOPE)
    expected = both_passes(inputs)
    assert_same(step(bn, inputs), (*expected[:2], None, None, expected.dresidual))


def test_what_a_call_keeps(rng):
    """The residual only where the derivative follows from it."""
    for name in ALL:
        inputs = drawn(rng, CASE, np.float32, name, True)
        bn = layer_of(inputs)
        bn(inputs.x, residual=inputs.residual)
        (_, saved, residual) = bn._latest[None]
        assert (residual is inputs.residual) == saved.reads_residual == (name in SMOOTH)
        assert residual is None or name not in KEEP_FLAGS


def test_attributes_may_be_replaced(rng):
    inputs = drawn(rng, CASE, np.float32, "leaky_relu", True)
    bn = layer_of(inputs._replace(name=None))
    assert bn.activation is None
    bn.activation, bn.negative_slope = "leaky_relu", SLOPE
    assert_same(step(bn, inputs), both_passes(inputs))
    bn(inputs.x, residual=inputs.residual)
    bn.activation = "tanh"  # of the next call
    assert_same_bits(bn.backward(inputs.dy)[0], both_passes(inputs).dx)


def test_repr():
    start = "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True"
    assert repr(bnext.BatchNorm2d(3)) == f"{start})"
    assert repr(bnext.BatchNorm2d(3, activation="gelu")) == f"{start}, activation='gelu')"
    bn = bnext.BatchNorm2d(3, activation="leaky_relu", negative_slope=0.2)
    assert repr(bn) == f"{start}, activation='leaky_relu', negative_slope=0.2)"
    assert repr(bn.freeze()) == f"{start}, activation='leaky_relu', negative_slope=0.2, frozen)"


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ALL)
def test_copies(rng, name, copied):
    inputs = drawn(rng, CASE, np.float32, name, True)
    bn = layer_of(inputs)
    other = copied(bn)
    assert (other.activation, other.negative_slope) == (name, SLOPE)
    assert_same(step(other, inputs), step(bn, inputs))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_states_from_before_activations(rng, copied):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    bn = bnext.BatchNorm1d(3)
    state = bn.__getstate__()
    older = {key: state[key] for key in state if key not in ("activation", "negative_slope")}
    assert len(older) == len(state) - 2
    other = bnext.BatchNorm1d.__new__(bnext.BatchNorm1d)
    other.__setstate__(older)
    other = copied(other)
    assert (other.activation, other.negative_slope) == (None, 0.01)
    assert_same_bits(other(x), bn(x))
    assert_same_bits(other.backward(x), bn.backward(x))
    other.activation = "relu"
    assert_same_bits(other(x), np.maximum(bn(x), 0))


def test_state_dicts_do_not_have_it():
    """They are torch.nn's."""
    plain, bn = bnext.BatchNorm1d(3), bnext.BatchNorm1d(3, activation="relu")
    assert bn.state_dict().keys() == plain.state_dict().keys()
    bn.load_state_dict(plain.state_dict())
    assert bn.activation == "relu"


@pytest.mark.parametrize("name", SMOOTH)
def test_a_residual_that_changed_is_refused(rng, name):
    """And what was kept is there still: with the residual as it was, the call is made again."""
    inputs = drawn(rng, CASE, np.float32, name, True)
    bn = layer_of(inputs)
    before = inputs.residual.copy()
    bn(inputs.x, residual=inputs.residual)
    inputs.residual[...] += 1
    text = "saved: made from another residual, or it was changed since (its elements differ)"
    with raises_exactly(ValueError, text, lambda: layer_state(bn)):
        bn.backward(inputs.dy)
    inputs.residual[...] = before
    dx, _ = bn.backward(inputs.dy)
    assert_same_bits(dx, both_passes(inputs).dx)


def test_folding_refuses_them(rng):
    bn = randomize(bnext.BatchNorm1d(3, activation="relu"), rng)
    weight = rng.normal(size=(3, 3)).astype(np.float32)
    text = (
        "bn: expected a layer without an activation, got one that applies 'relu' "
        "(set bn.activation = None, and apply it after what was folded)"
    )
    for fold in (
        bn.as_affine,
        lambda: bnext.fold(weight, None, bn),
        lambda: bnext.fold_into_next(bn, weight, None),
    ):
        with raises_exactly(ValueError, text, lambda: layer_state(bn)):
            fold()
    bn.activation = None
    assert np.isfinite(bnext.fold(weight, None, bn)[0]).all()


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", None])
@pytest.mark.parametrize("cuts", [[7], [1, 4, 13], [0, 9, 9]], ids=str)
def test_micro_batches(rng, name, cuts):
    """Pieces of a batch, with pieces of its residual, give what the whole gives."""
    inputs = drawn(rng, Case("rows", (20, 4)), np.float64, name, True)
    expected = both_passes(inputs)
    bn = bnext.BatchNorm1d(4, dtype=np.float64, activation=name, negative_slope=SLOPE)
    bn.weight[...], bn.bias[...] = inputs.weight, inputs.bias

    def body(piece):
        x, residual, dy = piece
        y = bn(x, residual=residual)
        return y, *bn.backward(dy)

    pieces = [np.split(each, cuts) for each in (inputs.x, inputs.residual, inputs.dy)]
    with bnext.micro_batches([bn]) as union:
        results = list(union.run(body, list(zip(*pieces, strict=True))))
    wholes = [np.concatenate(parts) for parts in zip(*results, strict=True)]
    for actual, other in zip(wholes, (expected.y, expected.dx, expected.dresidual), strict=True):
        np.testing.assert_allclose(actual, other, rtol=0, atol=1e-13 * np.abs(other).max())


@pytest.mark.parametrize("make", [dense, conv])
@pytest.mark.parametrize("method", ["exact", "pooled"])
def test_running_statistics_made_anew(rng, make, method):
    """Of layers that apply their ReLU themselves: as of those whose network does."""
    network = make(3, rng, np.float64)
    fused = network.copy()
    for bn in fused.layers:
        bn.activation = "relu"
    batches = in_batches(network.data(rng, 40), 16)
    for each in (network, fused):
        bnext.update_statistics(each, batches, each.layers, method=method)
    for bn, other in zip(fused.layers, network.layers, strict=True):
        assert_same_bits(bn.running_mean, other.running_mean)
        assert_same_bits(bn.running_var, other.running_var)
        assert bn.activation == "relu"
