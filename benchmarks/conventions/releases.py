"""The pinned releases, and how each is installed and run."""

from typing import NamedTuple

JAX = "jax==0.10.2"
TORCH = "torch==2.13.0"
TENSORFLOW = "tensorflow==2.21.0"


class Release(NamedTuple):
    """A library's release: the requirements of its environment, and its runner."""

    title: str
    runner: str  # a module of `runners`
    requirements: tuple[str, ...]
    python: str = "3.11"
    variables: tuple[tuple[str, str], ...] = ()  # of the runner's environment


RELEASES = {
    "pytorch": Release("PyTorch", "pytorch", (TORCH, "numpy")),
    "torch-geometric": Release("PyTorch Geometric", "pyg", (TORCH, "torch-geometric==2.8.1")),
    "e3nn": Release("e3nn", "e3nn", (TORCH, "e3nn==0.6.0")),
    "tinygrad": Release(
        "tinygrad", "tinygrad", ("tinygrad==0.14.0", "numpy"), variables=(("DEV", "PYTHON"),)
    ),
    "jittor": Release("Jittor", "jittor", ("jittor==1.3.11.0", "setuptools<81")),
    "mlx": Release("MLX from 0.32.1", "mlx", ("mlx[cpu]==0.32.4", "numpy")),
    "mlx-0.32.0": Release("MLX up to 0.32.0", "mlx", ("mlx[cpu]==0.32.0", "numpy")),
    "keras-jax": Release(
        "Keras 3 on JAX", "keras", ("keras==3.15.1", JAX), variables=(("KERAS_BACKEND", "jax"),)
    ),
    "keras-torch": Release(
        "Keras 3 on PyTorch", "keras", ("keras==3.15.1", TORCH),
        variables=(("KERAS_BACKEND", "torch"),),
    ),
    "keras-tensorflow": Release(
        "Keras 3 on TensorFlow", "keras", ("keras==3.15.1", TENSORFLOW),
        variables=(("KERAS_BACKEND", "tensorflow"),),
    ),
    "tf-keras": Release("tf-keras", "tf_keras", ("tf-keras==2.21.0", TENSORFLOW)),
    "sonnet": Release("Sonnet", "sonnet", ("dm-sonnet==2.0.2", TENSORFLOW, "tf-keras==2.21.0")),
    "flax": Release("Flax", "flax", ("flax==0.12.8", JAX)),
    "haiku": Release("Haiku", "haiku", ("dm-haiku==0.0.17", JAX)),
    "equinox": Release("Equinox", "equinox", ("equinox==0.13.8", JAX)),
    "objax": Release("Objax", "objax", ("objax==1.8.0", JAX)),
    "chainer": Release(
        "Chainer", "chainer", ("chainer==7.8.1", "numpy==1.23.5", "setuptools<81")
    ),
    "mxnet": Release("MXNet", "mxnet", ("mxnet==1.9.1", "numpy==1.23.5")),
    "paddle": Release("PaddlePaddle", "paddle", ("paddlepaddle==3.3.1", "setuptools")),
    "mindspore": Release("MindSpore", "mindspore", ("mindspore==2.10.0", "numpy<2")),
    "onnx": Release("ONNX, reference", "onnx_reference", ("onnx==1.23.2",)),
    "onnxruntime": Release(
        "ONNX Runtime", "onnx_runtime", ("onnxruntime==1.32.0", "onnx==1.23.2")
    ),
    "openvino": Release("OpenVINO", "openvino", ("openvino==2026.4.1", "onnx==1.23.2")),
    "ncnn": Release("ncnn", "ncnn", ("ncnn==1.0.20261020",)),
    "coremltools": Release("Core ML", "coreml", ("coremltools==9.0",)),
}  # fmt: skip
