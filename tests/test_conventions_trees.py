"""Files of Keras and Flax, which know layers and trees, written by the libraries themselves."""

import json
import os
import zipfile

import numpy as np
import pytest

import bnext

from .checkpoints import CHANNELS, KERAS, arrays_of, assert_is

# --- Keras ----------------------------------------------------------------------------------------


warns_of_numpy = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in Keras itself


@pytest.fixture(scope="module")
def keras_model():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    rng = np.random.default_rng(5)
    layer = keras.layers.BatchNormalization
    inner = keras.Sequential([keras.Input((4, 4, 6)), layer(center=False, name="inner_bn")])
    x = source = keras.Input((4, 4, 6))
    for kind in (layer(name="first"), layer(scale=False, momentum=0.9, epsilon=1e-4), inner):
        x = kind(x)
    x = layer(axis=1, name="last")(x)
    model = keras.Model(source, x)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    return keras, model


@pytest.mark.jax
@pytest.mark.libraries("keras", "h5py")
@warns_of_numpy
def test_keras_files(keras_model, tmp_path):
    _, model = keras_model
    rng = np.random.default_rng(6)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    x = rng.normal(size=(3, 4, 4, 6)).astype(np.float32)
    for path in ("m.keras", "m.h5"):
        layers = bnext.load_statistics(tmp_path / path)
        by_name = {name.rpartition("/")[2]: bn for name, bn in layers.items()}
        found = [
            layer for layer in model._flatten_layers() if "normal" in type(layer).__name__.lower()
        ]
        assert {layer.name for layer in found} == by_name.keys()
        for layer in found:
            bn = by_name[layer.name].eval()
            assert (bn.eps, bn.decay) == (layer.epsilon, pytest.approx(layer.momentum))
            assert not bn.estimator.bessel
            assert bn.channel_axis == (1 if layer.name == "last" else -1)
            given = x if layer.name != "last" else np.ascontiguousarray(x[..., :4])
            expected = np.asarray(layer(given, training=False))
            np.testing.assert_allclose(bn(given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.jax
@pytest.mark.libraries("keras", "h5py")
@warns_of_numpy
def test_keras_weights(keras_model, tmp_path):
    keras, model = keras_model
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match=r"three variables .*save the model as .keras"):
        bnext.load_statistics(tmp_path / "m.weights.h5")
    source = keras.Input((6,))
    x = keras.layers.Dense(7, name="dense")(source)
    one = keras.layers.BatchNormalization(name="bn")
    small = keras.Model(source, one(x))
    one.set_weights([np.random.default_rng(n).uniform(0.5, 2, 7) for n in range(4)])
    small.save_weights(tmp_path / "s.weights.h5")
    layers = bnext.load_statistics(tmp_path / "s.weights.h5")
    assert list(layers) == ["bn"]
    assert_is(layers["bn"], dict(zip(KERAS, one.get_weights(), strict=True)), KERAS)
    assert not layers["bn"].estimator.bessel
    import h5py

    with h5py.File(tmp_path / "s.weights.h5", "a") as file:  # as Keras 2 writes it
        del file["layers/batch_normalization/vars"].attrs["name"]
        del file["layers/dense/vars"].attrs["name"]
        del file["layers/input_layer/vars"].attrs["name"]
    with pytest.raises(ValueError, match="convention: expected one of 'keras', 'tf-keras'"):
        bnext.load_statistics(tmp_path / "s.weights.h5")
    layers = bnext.load_statistics(tmp_path / "s.weights.h5", "tf-keras", bessel=True)
    assert list(layers) == ["layers/batch_normalization"]


@pytest.mark.jax
@pytest.mark.libraries("keras", "h5py")
@warns_of_numpy
def test_keras_layers_of_one_name(keras_model, tmp_path):
    keras, _ = keras_model
    x = source = keras.Input((4,))
    for n, eps in enumerate((1e-2, 1e-4)):
        layer = keras.layers.BatchNormalization(name="bn", epsilon=eps)
        x = keras.Sequential([keras.Input((4,)), layer], name=f"part{n}")(x)
    model = keras.Model(source, x)
    model.set_weights([np.full(w.shape, n + 1.0) for n, w in enumerate(model.get_weights())])
    model.save(tmp_path / "m.keras")
    layers = bnext.load_statistics(tmp_path / "m.keras")
    found = {bn.eps: bn.running_mean[0] for bn in layers.values()}
    assert found == {1e-2: 3, 1e-4: 7}


@pytest.mark.libraries("h5py")
def test_fused_layers_of_tf_keras(rng, tmp_path):
    """The file says the version and the rank of the input; so it says Bessel's correction."""
    import h5py

    layers = []
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for n, (name, shape, more) in enumerate(
            [("image", [None, 8, 8, 5], {}), ("row", [None, 5], {}),
             ("plain", [None, 8, 8, 5], {"fused": False})]
        ):  # fmt: skip
            place = file.create_group(f"layers/batch_normalization{f'_{n}' if n else ''}/vars")
            for k, array in enumerate(arrays_of(rng, KERAS).values()):
                place[str(k)] = array
            config = {"name": name, "axis": [len(shape) - 1], "momentum": 0.99, "epsilon": 0.002}
            layers.append({
                "class_name": "BatchNormalization", "config": config | more,
                "build_config": {"input_shape": shape},
            })  # fmt: skip
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.write(tmp_path / "model.weights.h5", "model.weights.h5")
        file.writestr("metadata.json", json.dumps({"keras_version": "2.21.0"}))
        file.writestr("config.json", json.dumps({"config": {"layers": layers}}))
    found = bnext.load_statistics(tmp_path / "m.keras")
    assert {name: bn.estimator.bessel for name, bn in found.items()} == {
        "image": True, "row": False, "plain": False
    }  # fmt: skip
    assert {bn.channel_axis for bn in found.values()} == {-1}
    assert {bn.eps for bn in found.values()} == {0.002}


# --- Flax, Orbax ----------------------------------------------------------------------------------


def flax_variables(rng):
    def layer():
        scale, bias, mean, var = arrays_of(rng, ("scale", "bias", "mean", "var")).values()
        return {"scale": scale, "bias": bias}, {"mean": mean, "var": var}

    first, second = layer(), layer()
    dense = {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}
    return {
        "params": {"BatchNorm_0": first[0], "Dense_0": dense, "Block_0": {"bn": second[0]}},
        "batch_stats": {"BatchNorm_0": first[1], "Block_0": {"bn": second[1]}},
    }


def assert_flax(layers, tree):
    assert sorted(layers) == ["BatchNorm_0", "Block_0/bn"]
    for name, bn in layers.items():
        params, stats = tree["params"], tree["batch_stats"]
        for part in name.split("/"):
            params, stats = params[part], stats[part]
        assert_is(bn, {**params, **stats}, ("scale", "bias", "mean", "var"))
        assert bn.estimator == bnext.Exponential(decay=0.99, bessel=False)


@pytest.mark.libraries("flax")
def test_flax_msgpack(rng, tmp_path):
    from flax import serialization

    tree = flax_variables(rng)
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(tree))
    assert_flax(bnext.load_statistics(tmp_path / "a.msgpack"), tree)
    one = serialization.to_bytes(tree["params"])
    (tmp_path / "b.msgpack").write_bytes(one)
    with pytest.raises(ValueError, match="expected statistics by the names of any known conventi"):
        bnext.load_statistics(tmp_path / "b.msgpack")


@pytest.mark.libraries("orbax")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_orbax(rng, tmp_path):
    from orbax import checkpoint as orbax

    tree = flax_variables(rng)
    with orbax.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "checkpoint", tree)
    assert_flax(bnext.load_statistics(tmp_path / "checkpoint"), tree)


@pytest.mark.libraries("flax")
def test_flax_linen_s_own_layer(jax, rng, tmp_path):
    from flax import linen, serialization

    net = linen.BatchNorm(momentum=0.9)
    x = rng.normal(2, 3, (16, CHANNELS)).astype(np.float32)
    variables = net.init(jax.random.PRNGKey(0), x, use_running_average=False)
    for _ in range(5):
        _, moved = net.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        variables = {**variables, **moved}
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(variables))
    bn = bnext.load_statistics(tmp_path / "a.msgpack", decay=0.9)[""]
    expected = net.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(bn.eval()(x), np.asarray(expected), rtol=1e-4, atol=1e-5)
    _, moved = net.apply(variables, x[:7], use_running_average=False, mutable=["batch_stats"])
    bn.train()(x[:7])
    np.testing.assert_allclose(bn.running_var, moved["batch_stats"]["var"], rtol=1e-5)
