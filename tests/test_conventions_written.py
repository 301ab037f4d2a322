"""Files that pinned releases wrote after 300 batches, and what those releases inferred from them.

`python -m benchmarks.conventions.written` makes the folder. So MXNet's, Paddle's and others' files
are read where the libraries are not installed.
"""

import pathlib

import numpy as np
import pytest

import bnext

from .checkpoints import import_reader
from .optional import import_torch

FOLDER = pathlib.Path(__file__).parent / "written"
FILES = {  # what has to be said, and the packages that read the file
    "pytorch.pt": ({"convention": "pytorch"}, ["torch"]),
    "pytorch-onnx.onnx": ({}, ["onnx"]),
    "keras-torch.h5": ({}, ["h5py"]),
    "keras-jax.keras": ({}, ["h5py"]),
    "keras-tensorflow.weights.h5": ({"convention": "keras"}, ["h5py"]),
    "tf-keras.keras": ({}, ["h5py"]),
    "flax.msgpack": ({}, ["flax.serialization"]),
    "tinygrad.safetensors": ({}, []),
    "mlx.safetensors": ({"convention": "mlx", "bessel": True}, []),
    "mlx-0.32.0.safetensors": ({"convention": "mlx", "bessel": False}, []),
    "chainer.npz": ({}, []),
    "mxnet.params": ({}, []),
    "paddle.pdparams": ({}, []),
}
TORCH = [name for name, (_, packages) in FILES.items() if "torch" in packages]


def assert_infers(name):
    options, _ = FILES[name]
    (bn,) = bnext.load_statistics(FOLDER / name, **options).values()
    with np.load(FOLDER / "expected.npz") as expected:
        x, y = expected["x"], expected[name]
    ours = bn.eval()(np.ascontiguousarray(np.moveaxis(x, 1, bn.channel_axis)))
    np.testing.assert_allclose(np.moveaxis(ours, bn.channel_axis, 1), y, rtol=2e-6, atol=2e-6)


# (Ids are suffixes: the names of some libraries choose tests.)
@pytest.mark.parametrize(
    "name",
    [name for name in FILES if name not in TORCH],
    ids=lambda name: name.partition(".")[2],
)
def test_inference_is_the_writer_s(name):
    for package in FILES[name][1]:
        import_reader(package, package.partition(".")[0])
    assert_infers(name)


@pytest.mark.parametrize("name", TORCH)
def test_inference_is_torch_s(name):
    import_torch()
    assert_infers(name)


def test_every_file_is_read():
    assert {path.name for path in FOLDER.iterdir()} == {*FILES, "expected.npz"}
    formats = {name.partition(".")[2] for name in FILES}
    assert len(formats) >= 10
