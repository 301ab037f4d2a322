"""Files that pinned releases wrote after 300 batches, and what those releases inferred from them.

`python -m benchmarks.conventions.written` makes the folder. So MXNet's, Paddle's and others' files
are read where the libraries are not installed.
"""

import pathlib

import numpy as np
import pytest

import bnext

from .optional import marks_of

FOLDER = pathlib.Path(__file__).parent / "written"
FILES = {  # what has to be said, and the packages that read the file
    "pytorch.pt": ({"convention": "pytorch"}, ["torch"]),
    "pytorch-onnx.onnx": ({}, ["onnx"]),
    "keras-torch.h5": ({}, ["h5py"]),
    "keras-jax.keras": ({}, ["h5py"]),
    "keras-tensorflow.weights.h5": ({"convention": "keras"}, ["h5py"]),
    "tf-keras.keras": ({}, ["h5py"]),
    "flax.msgpack": ({}, ["flax"]),
    "tinygrad.safetensors": ({}, []),
    "mlx.safetensors": ({"convention": "mlx", "bessel": True}, []),
    "mlx-0.32.0.safetensors": ({"convention": "mlx", "bessel": False}, []),
    "chainer.npz": ({}, []),
    "mxnet.params": ({}, []),
    "paddle.pdparams": ({}, []),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=marks_of(packages)) for name, (_, packages) in FILES.items()],
)
def test_inference_is_the_writer_s(name):
    options, _ = FILES[name]
    (bn,) = bnext.load_statistics(FOLDER / name, **options).values()
    with np.load(FOLDER / "expected.npz") as expected:
        x, y = expected["x"], expected[name]
    ours = bn.eval()(np.ascontiguousarray(np.moveaxis(x, 1, bn.channel_axis)))
    np.testing.assert_allclose(np.moveaxis(ours, bn.channel_axis, 1), y, rtol=2e-6, atol=2e-6)


def test_every_file_is_read():
    assert {path.name for path in FOLDER.iterdir()} == {*FILES, "expected.npz"}
    formats = {name.partition(".")[2] for name in FILES}
    assert len(formats) >= 10
