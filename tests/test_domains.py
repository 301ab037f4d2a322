"""Running statistics of several domains, and statistics blended with a test batch's."""

import pickle

import numpy as np
import pytest

import bnext

from .groups.support import new_group


def batch_of(shift, shape=(8, 3), seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) + shift).astype(np.float32)


def network():
    return [bnext.BatchNorm1d(3), bnext.BatchNorm1d(3, momentum=None)]


def trained(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def test_each_domain_has_its_statistics_and_all_one_weight():
    layers, photo, sketch = network(), network(), network()
    domains = bnext.Domains(layers, ["photo", "sketch"])
    for seed in range(3):
        trained(layers, batch_of(1, seed=seed))
        trained(photo, batch_of(1, seed=seed))
        with domains("sketch"):
            trained(layers, batch_of(-4, seed=seed))
        trained(sketch, batch_of(-4, seed=seed))
    assert domains.current == "photo"
    layers[0].weight[:] = 2
    for name, alone in (("sketch", sketch), ("photo", photo)):
        domains.current = name
        for layer, expected in zip(layers, alone, strict=True):
            np.testing.assert_array_equal(layer.running_mean, expected.running_mean)
            np.testing.assert_array_equal(layer.running_var, expected.running_var)
            assert layer.num_batches_tracked == 3
    assert layers[0].weight[0] == 2


def test_domains_begin_with_the_layers_statistics_and_keep_their_rules():
    layers = network()
    trained(layers, batch_of(3))
    before = layers[0].running_mean
    domains = bnext.Domains(layers, ("source", "target"))
    assert layers[0].running_mean is before
    layers[0].momentum, layers[0].skip_nonfinite = 0.5, True
    with domains("target"):
        assert layers[0].running_mean is not before
        np.testing.assert_array_equal(layers[0].running_mean, before)
        assert layers[0].momentum == 0.5
        layers[0](np.full((4, 3), np.nan, np.float32))
        assert layers[0].num_batches_skipped == 1
    assert layers[0].num_batches_skipped == 0
    with pytest.raises(RuntimeError, match="mine"), domains("target"):
        raise RuntimeError("mine")
    assert domains.current == "source"


def test_state_dicts():
    layers, others = network(), network()
    domains, copies = bnext.Domains(layers, ["a", "b"]), bnext.Domains(others, ["a", "b"])
    with domains("b"):
        trained(layers, batch_of(5))
    state = domains.state_dict()
    assert list(state)[:3] == ["a.0.running_mean", "a.0.running_var", "a.0.num_batches_tracked"]
    assert len(state) == 12
    copies.load_state_dict(state)
    with copies("b"):
        np.testing.assert_array_equal(others[1].running_var, state["b.1.running_var"])
    assert (others[0].running_mean == 0).all()
    state["b.1.running_var"] = np.ones(4)
    state["a.0.running_mean"] = np.ones(3)
    with pytest.raises(RuntimeError, match=r"^b.1.running_var: expected shape \(3,\), got \(4,\)"):
        copies.load_state_dict(state)
    assert (others[0].running_mean == 0).all()
    del state["b.1.running_var"]
    with pytest.raises(
        RuntimeError, match=r"^state_dict: expected the names of .*'b.1.running_var'"
    ):
        copies.load_state_dict(state)
    copies.load_state_dict(state, strict=False)
    assert (others[0].running_mean == 1).all()
    again = pickle.loads(pickle.dumps(copies))
    assert again.current == "a"
    again.current = "b"
    np.testing.assert_array_equal(again.layers[0].running_mean, state["b.0.running_mean"])
    assert repr(domains) == "Domains(a, b; 2 layers; current: a)"


def test_shared_layers_in_a_group():
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    domains = bnext.Domains([layer], ["a", "b"])
    domains.current = "b"
    x = batch_of(2)
    group.run(lambda rank, shard: layer(shard), np.split(x, 2))
    domains.current = "a"
    assert layer.num_batches_tracked == 0
    domains.current = "b"
    np.testing.assert_allclose(layer.running_mean, 0.1 * x.mean(0), rtol=1e-5)


BAD = [
    (lambda: bnext.Domains([], ["a"]), ValueError, "layers: expected at least one"),
    (lambda: bnext.Domains(network(), []), ValueError, "names: expected a name or more"),
    (lambda: bnext.Domains(network(), ["a", "a"]), ValueError, "names: expected a name or more"),
    (lambda: bnext.Domains(network(), "ab"), ValueError, "names: expected a name or more"),
    (lambda: bnext.Domains(network(), [1]), TypeError, "names: expected strings, got int"),
    (lambda: bnext.Domains([bnext.BatchNorm1d(3, track_running_stats=False)], ["a"]), ValueError,
     r"layers\[0\]: expected a layer with running statistics"),
    (lambda: bnext.Domains(network(), ["a"])("c").__enter__(), ValueError,
     "domain: expected one of a, got 'c'"),
    (lambda: bnext.Domains(network(), ["a"]).load_state_dict(3), TypeError,
     "state_dict: expected a mapping, got int"),
    (lambda: bnext.adapted_moments(network()[0], batch_of(0), -1), ValueError, "prior: expected"),
    (lambda: bnext.adapted_moments(network()[0], batch_of(0), "1"), TypeError, "prior: expected"),
    (lambda: bnext.adapted_moments(3, batch_of(0)), TypeError, "layer: expected a layer of bnext"),
    (lambda: bnext.adapted_moments(network()[0], batch_of(0, (8, 4))), ValueError,
     "x: expected 3 channels"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), BAD, ids=[text for *_, text in BAD])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=f"^{text}"):
        call()


def test_adapted_moments_of_examples_without_values_are_the_sources():
    layer = bnext.BatchNorm1d(3)
    layer(batch_of(1, (8, 3)))
    m = bnext.adapted_moments(layer, np.empty((4, 3, 0), np.float32))
    np.testing.assert_array_equal(m.mean, layer.running_mean)
    np.testing.assert_array_equal(m.var, layer.running_var)


@pytest.mark.parametrize("prior", [0, 2.5, 16, np.inf])
@pytest.mark.parametrize("shape", [(6, 3), (1, 3, 20)])
def test_adapted_moments_are_schneiders(shape, prior):
    layer = bnext.BatchNorm1d(3)
    layer(batch_of(1, (8, 3)))
    x = batch_of(-2, shape, seed=1)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    n = len(x)
    share = 0.0 if prior == np.inf else n / (n + prior)
    m = bnext.adapted_moments(layer, x, prior)
    wide = x.astype(float)
    mean = (1 - share) * layer.running_mean.astype(float) + share * wide.mean(axes)
    var = (1 - share) * layer.running_var.astype(float) + share * wide.var(axes)
    np.testing.assert_allclose(m.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(m.var, var, rtol=1e-12)
    assert m.count == x.size // 3
    y = bnext.normalize(x, m.mean, m.var, layer.weight, layer.bias, eps=layer.eps)
    if prior == np.inf:
        np.testing.assert_allclose(y, layer.eval()(x), rtol=1e-5, atol=1e-5)
    elif prior == 0:
        np.testing.assert_allclose(y, bnext.batch_norm_forward(x)[0], rtol=1e-4, atol=1e-5)


def test_adapted_moments_of_tensors(torch):
    layer, x = bnext.BatchNorm1d(3), batch_of(2)
    assert bnext.adapted_moments(layer, torch.from_numpy(x)) == bnext.adapted_moments(layer, x)
    empty = bnext.adapted_moments(layer, x[:0])
    np.testing.assert_array_equal(empty.var, layer.running_var)
