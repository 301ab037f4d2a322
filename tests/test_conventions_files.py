"""Files of arrays and graphs, most written by the libraries themselves, read as layers."""

import json
import pickle
import struct

import numpy as np
import pytest

import bnext
from bnext.inference.conventions import files

from .checkpoints import (
    CHANNELS,
    PYTORCH,
    arrays_of,
    assert_checkpoint,
    assert_is,
    checkpoint,
)
from .compare import assert_same_bits
from .optional import import_extra

# --- plain files ----------------------------------------------------------------------------------


def test_npz(rng, tmp_path):
    state = checkpoint(rng)
    np.savez(tmp_path / "a.npz", **state)
    assert_checkpoint(bnext.load_statistics(tmp_path / "a.npz"), state)
    only = bnext.load_statistics(str(tmp_path / "a.npz"), prefix="body.", decay=0.99, eps=1e-3)
    assert list(only) == ["body.0.bn"]
    assert (only["body.0.bn"].eps, only["body.0.bn"].decay) == (1e-3, 0.99)


def test_safetensors_of_our_own(rng, tmp_path):
    state = checkpoint(rng) | {"half": rng.normal(size=3).astype(np.float16), "none": np.ones(0)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(files.WRITERS[".safetensors"](state))
    assert_checkpoint(bnext.load_statistics(path), state)
    assert_same_bits(files.read(path).arrays["half"], state["half"])


@pytest.mark.libraries("safetensors")
def test_safetensors_by_their_own_package(rng, tmp_path):
    from safetensors import numpy

    state = checkpoint(rng)
    numpy.save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert_checkpoint(bnext.load_statistics(tmp_path / "theirs.safetensors"), state)
    (tmp_path / "ours.safetensors").write_bytes(files.WRITERS[".safetensors"](state))
    read = numpy.load_file(tmp_path / "ours.safetensors")
    assert read.keys() == state.keys()
    for name, array in state.items():
        assert_same_bits(read[name], array, name)


def test_safetensors_in_bfloat16(rng, tmp_path):
    ml_dtypes = import_extra("ml_dtypes")
    values = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays_of(rng, PYTORCH).items()}
    header, data = {}, b""
    for name, array in values.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": "BF16", "shape": [CHANNELS], "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path = tmp_path / "b.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(ValueError, match=r"convention: expected one of 'pytorch'.*'e3nn'"):
        bnext.load_statistics(path)
    (bn,) = bnext.load_statistics(path, "pytorch").values()
    np.testing.assert_array_equal(bn.running_var, values["running_var"].astype(np.float32))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "a header longer than the file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "a header longer than the file"),
        (struct.pack("<Q", 2) + b"xx", "a header that is no JSON"),
        (struct.pack("<Q", 2) + b"[]", "a header that is no object"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "a wrong entry for a"),
        (
            struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0, 8]}} ',
            "a outside of the file",
        ),
    ],
)
def test_broken_safetensors(tmp_path, data, text):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"expected a .safetensors file, got {text}"):
        bnext.load_statistics(path)


# --- PyTorch --------------------------------------------------------------------------------------


def test_pytorch_state_dicts(torch, rng, tmp_path):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, CHANNELS, 3), torch.nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.01)
    )
    x = torch.randn(4, 3, 9, 9) * 3 + 1
    for _ in range(3):
        net(x)
    expected = net.eval()(x).detach().numpy()
    inner = net[0](x).detach().numpy()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "b.pth")
    torch.save(net.to(torch.bfloat16).state_dict(), tmp_path / "c.bin")
    for name in ("a.pt", "b.pth"):
        layers = bnext.load_statistics(tmp_path / name, eps=1e-3, decay=0.99)
        assert list(layers) == ["1"]
        bn = layers["1"].eval()
        assert (bn.num_batches_tracked, bn.momentum) == (3, pytest.approx(0.01))
        np.testing.assert_allclose(bn(inner), expected, rtol=1e-5, atol=1e-5)
    half = bnext.load_statistics(tmp_path / "c.bin")["1"]
    np.testing.assert_array_equal(half.running_var, net[1].running_var.float().numpy())


def test_whole_models_of_pytorch_are_refused(torch, tmp_path):
    torch.save(torch.nn.BatchNorm1d(3), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"expected a state dict that torch.load reads with weig"):
        bnext.load_statistics(tmp_path / "model.pt")


# --- ONNX, MXNet, Paddle --------------------------------------------------------------------------


@pytest.mark.libraries("onnx")
@pytest.mark.parametrize("producer", ["pytorch", "other"])
def test_onnx(rng, tmp_path, producer):
    import onnx
    from onnx import helper, numpy_helper

    names = ("scale", "B", "input_mean", "input_var")
    values = arrays_of(rng, [f"c_{name}" for name in names])
    nodes = [
        helper.make_node("BatchNormalization", ["x", *values], ["y"], name="bn", epsilon=1e-3,
                         momentum=0.8),
        helper.make_node("BatchNormalization", ["y", *values], ["z"]),
    ]  # fmt: skip
    info = [helper.make_tensor_value_info(n, 1, ["N", CHANNELS, 4]) for n in ("x", "z")]
    constants = [numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    model = helper.make_model(
        graph, producer_name=producer, opset_imports=[helper.make_opsetid("", 15)]
    )
    onnx.save(model, tmp_path / "m.onnx")
    layers = bnext.load_statistics(tmp_path / "m.onnx")
    assert list(layers) == ["bn", "z"]
    assert (layers["bn"].eps, layers["bn"].decay) == (1e-3, pytest.approx(0.8))
    assert layers["z"].eps == 1e-5
    assert layers["bn"].estimator.bessel == (producer == "pytorch")
    from onnx.reference import ReferenceEvaluator

    x = rng.normal(size=(3, CHANNELS, 4)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    y = layers["z"].eval()(layers["bn"].eval()(x))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    if producer == "other":
        with pytest.raises(ValueError, match=r"bn: bessel: expected True or False for ONNX"):
            bnext.load_statistics(tmp_path / "m.onnx", count=8)


@pytest.mark.libraries("onnx")
def test_onnx_models_that_pytorch_exported(rng, tmp_path):
    """The older exporter gives equal arrays one name, and copies it by Identity nodes."""
    import onnx
    from onnx import helper, numpy_helper

    names = ("scale", "B", "input_mean", "input_var")
    values = arrays_of(rng, names)
    nodes = [
        helper.make_node("Identity", ["scale"], ["scale2"]),
        helper.make_node("BatchNormalization", ["x", *names], ["y"], name="one"),
        helper.make_node("BatchNormalization", ["y", "scale2", *names[1:]], ["z"], name="two"),
        helper.make_node("Add", ["scale", "B"], ["sum"]),
        helper.make_node("BatchNormalization", ["z", "sum", *names[1:]], ["u"], name="three"),
    ]
    info = [helper.make_tensor_value_info(n, 1, ["N", CHANNELS]) for n in ("x", "u")]
    constants = [numpy_helper.from_array(array, name) for name, array in values.items()]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], constants)),
        tmp_path / "m.onnx",
    )
    with pytest.warns(UserWarning, match="three: left out, since the graph computes"):
        layers = bnext.load_statistics(tmp_path / "m.onnx")
    assert list(layers) == ["one", "two"]
    assert_is(layers["two"], values, names)


def mxnet_bytes(arrays, version):
    """MXNet's format, as its source defines it."""
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        out += struct.pack("<Ii", version, 0) + struct.pack("<i", array.ndim)
        out += struct.pack(f"<{array.ndim}q", *array.shape) + struct.pack("<iii", 1, 0, 0)
        out += array.astype("<f4").tobytes()
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    return out


@pytest.mark.parametrize("version", [0xF993FAC9, 0xF993FACA])
def test_mxnet(rng, tmp_path, version):
    gluon = {f"features.1.{k}": v for k, v in
             arrays_of(rng, ("gamma", "beta", "running_mean", "running_var")).items()}  # fmt: skip
    (tmp_path / "a.params").write_bytes(mxnet_bytes(gluon, version))
    layers = bnext.load_statistics(tmp_path / "a.params")
    assert list(layers) == ["features.1"]
    assert_is(layers["features.1"], gluon, gluon)
    assert layers["features.1"].eps == 1e-5

    names = ("arg:bn0_gamma", "arg:bn0_beta", "aux:bn0_moving_mean", "aux:bn0_moving_var")
    symbol = arrays_of(rng, names)
    (tmp_path / "b.params").write_bytes(mxnet_bytes(symbol, version))
    with pytest.raises(ValueError, match="fix_gamma: expected True"):
        bnext.load_statistics(tmp_path / "b.params")
    symbol["arg:bn0_gamma"] = np.ones(CHANNELS, np.float32)
    (tmp_path / "c.params").write_bytes(mxnet_bytes(symbol, version))
    layers = bnext.load_statistics(tmp_path / "c.params")
    assert list(layers) == ["bn0"]
    assert_is(layers["bn0"], symbol, names)
    assert layers["bn0"].eps == 1e-3


@pytest.mark.parametrize("cut", [3, 20, 60, -4])
def test_mxnet_files_that_end_early(rng, tmp_path, cut):
    data = mxnet_bytes({"running_mean": np.ones(3), "running_var": np.ones(3)}, 0xF993FAC9)
    (tmp_path / "a.params").write_bytes(data[:cut])
    with pytest.raises(ValueError, match="got the end of the file"):
        bnext.load_statistics(tmp_path / "a.params")


@pytest.mark.parametrize("protocol", [2, 4])
def test_paddle(rng, tmp_path, protocol):
    names = ("weight", "bias", "_mean", "_variance")
    state = {f"bn1.{name}": array for name, array in arrays_of(rng, names).items()}
    table = {name: f"batch_norm2d_0.w_{n}" for n, name in enumerate(state)}
    named = {name: (table[name], array) for name, array in state.items()}
    for values in (state, named):
        data = pickle.dumps(values | {"StructuredToParameterName@@": table}, protocol=protocol)
        (tmp_path / "a.pdparams").write_bytes(data)
        layers = bnext.load_statistics(tmp_path / "a.pdparams")
        assert list(layers) == ["bn1"]
        assert_is(layers["bn1"], state, state)
        assert layers["bn1"].estimator == bnext.Exponential(decay=0.9, bessel=False)


class Harmless:
    """Its pickle names a function that no array needs."""

    def __reduce__(self):
        return len, ([1, 2],)


@pytest.mark.parametrize("value", [Harmless(), json.JSONDecoder, [Harmless()], np.sum])
def test_pickles_of_anything_else_are_refused(tmp_path, value):
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps({"bn1._mean": value}))
    with pytest.raises(ValueError, match=r"of arrays and containers alone, got the name .*, which"):
        bnext.load_statistics(path)


# --- errors ---------------------------------------------------------------------------------------


def test_packages_that_are_missing(rng, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__
    wanted = {"torch", "h5py", "flax", "orbax", "onnx"}

    def without(name):
        if name.partition(".")[0] in wanted:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    from bnext.inference.conventions.files import contents

    monkeypatch.setattr(contents.importlib, "import_module", without)
    for format, package in (
        ("torch", "torch"), ("h5", "h5py"), ("msgpack", "flax"), ("onnx", "onnx"),
        ("orbax", "orbax-checkpoint"),
    ):  # fmt: skip
        with pytest.raises(ImportError, match=f"not installed here: pip install {package}$"):
            bnext.load_statistics(tmp_path, format=format)


def test_wrong_arguments(rng, tmp_path):
    with pytest.raises(FileNotFoundError):
        bnext.load_statistics(tmp_path / "none.npz")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"format: expected one of 'npz', .* the suffix '.txt'"):
        bnext.load_statistics(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="got 'zip'"):
        bnext.load_statistics(tmp_path / "a.txt", format="zip")
    with pytest.raises(ValueError, match=r"expected an .npz file of plain arrays"):
        bnext.load_statistics(tmp_path / "a.txt", format="npz")
    np.savez(tmp_path / "a.npz", kernel=np.ones(3))
    with pytest.raises(ValueError, match="expected statistics by the names of Keras 3, got kernel"):
        bnext.load_statistics(tmp_path / "a.npz", "keras")
    with pytest.raises(ValueError, match="convention: expected one of"):
        bnext.load_statistics(tmp_path / "a.npz", "theano")


def test_what_is_wrong_in_a_layer_names_the_layer(rng, tmp_path):
    state = checkpoint(rng)
    state["body.0.bn.running_var"][3] = -8
    np.savez(tmp_path / "a.npz", **state)
    with pytest.raises(
        ValueError,
        match=r"^body.0.bn: running_var: expected a finite variance >= 0, got -8.0 in chan",
    ):
        bnext.load_statistics(tmp_path / "a.npz")
