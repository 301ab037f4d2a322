"""The pinned releases: how each is installed and run, and the convention that it should follow."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JAX = "jax==0.10.2"
TORCH = "torch==2.13.0"
TENSORFLOW = "tensorflow==2.21.0"
ONNX = "onnx==1.23.2"
# tinygrad writes its files by a program that Clang compiles, also where its device is Python.
# Debian's Clang has a number in its name.
CLANG = next(filter(shutil.which, ["clang", *(f"clang-{n}" for n in range(25, 13, -1))]), "clang")
TITLES = {"jax": "JAX", "torch": "PyTorch", "tensorflow": "TensorFlow"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The convention of one variant of a layer, and what it has to be told."""

    convention: str
    bessel: bool | Mapping[int, bool] | None = None  # also by the rank of the input
    extra: Mapping[str, Any] = field(default_factory=dict)  # numbers that no array has
    copied: bool = False  # statistics were copied into it, from another library
    differs: str = ""  # why its inference is known to differ
    rounding: float = 0.0  # relative, of the library's own statistics, where it is beyond 1e-5
    note: str = ""  # beside its rows

    def options(self, rank: int) -> dict[str, Any]:
        """Give the options of conversions."""
        bessel = self.bessel[rank] if isinstance(self.bessel, Mapping) else self.bessel
        return {} if bessel is None else {"bessel": bessel}


@dataclass(frozen=True, kw_only=True)
class Release:
    """A library's release: an environment, which several may share, and a runner.

    ``{environment}`` in the value of a variable is the environment's folder.
    """

    title: str
    runner: str  # a module of `runners`
    environment: str
    requirements: tuple[str, ...]
    variants: Mapping[str, Variant]
    python: str = "3.11"
    first: tuple[str, ...] = ()  # what its own build needs: installed before, without isolation
    variables: Mapping[str, str] = field(default_factory=dict)  # of the runner


def _keras(backend: str, requirement: str) -> Release:
    return Release(
        title=f"Keras 3 on {TITLES[backend]}", runner="keras", environment=backend,
        requirements=("keras==3.15.1", requirement), variables={"KERAS_BACKEND": backend},
        variants={"default": Variant(convention="keras")},
    )  # fmt: skip


def _mlx(version: str, bessel: bool) -> Release:
    return Release(
        title=f"MLX {version}", runner="mlx", environment=f"mlx-{version}",
        requirements=(f"mlx[cpu]=={version}", "numpy"),
        variants={"default": Variant(convention="mlx", bessel=bessel)},
    )  # fmt: skip


# 0.999 and its power are rounded by 2**-25 at most, each, and 1 - 0.999**k is what is left.
DEBIASING = 2**-24 / (1 - 0.999)
DEBIASED_IN_FLOAT32 = "Sonnet divides by 1 - 0.999^k in float32: rounding up to 6e-05"
PYTORCH = Variant(convention="pytorch")
RUNTIME = {
    **{f"opset {n}": Variant(convention="onnx", bessel=False) for n in (15, 14)},
    **{
        f"opset {n}, inference": Variant(convention="onnx", bessel=True, copied=True)
        for n in (15, 9, 7)
    },
}
REFERENCE = RUNTIME | {
    "opset 9, inference": Variant(
        convention="onnx", bessel=True, copied=True,
        differs="the evaluator's opset 9 blends the batch's statistics with the given ones",
    ),
}  # fmt: skip

RELEASES = {
    "pytorch": Release(
        title="PyTorch", runner="pytorch", environment="torch", requirements=(TORCH, "numpy"),
        variants={"default": PYTORCH, "momentum=0.3": PYTORCH, "momentum=None": PYTORCH,
                  "float64": PYTORCH},
    ),
    "pytorch-onnx": Release(
        title="PyTorch, exported to ONNX", runner="pytorch_onnx", environment="torch",
        requirements=(TORCH, ONNX, "onnxscript==0.7.2", "onnxruntime==1.32.0"),
        variants={"exported": Variant(convention="onnx", bessel=True, copied=True)},
    ),
    "torch-geometric": Release(
        title="PyTorch Geometric", runner="pyg", environment="torch",
        requirements=(TORCH, "torch-geometric==2.8.1"),
        variants={"default": Variant(convention="torch-geometric")},
    ),
    "e3nn": Release(
        title="e3nn", runner="e3nn", environment="torch", requirements=(TORCH, "e3nn==0.6.0"),
        variants={"scalars": Variant(convention="e3nn")},
    ),
    "keras-torch": _keras("torch", TORCH),
    "tinygrad": Release(
        title="tinygrad", runner="tinygrad", environment="tinygrad",
        requirements=("tinygrad==0.14.0", "numpy"), variables={"DEV": "PYTHON", "CC": CLANG},
        variants={"default": Variant(convention="tinygrad")},
    ),
    "jittor": Release(
        title="Jittor", runner="jittor", environment="jittor",
        requirements=("jittor==1.3.11.0", "setuptools<81"),
        variables={"JITTOR_HOME": "{environment}/home"},  # of what its first import compiles
        variants={"default": Variant(convention="jittor")},
    ),
    "mlx": _mlx("0.32.4", bessel=True),
    "mlx-0.32.0": _mlx("0.32.0", bessel=False),
    "flax": Release(
        title="Flax", runner="flax", environment="jax", requirements=("flax==0.12.8", JAX),
        variants={
            **dict.fromkeys(("linen", "nnx"), Variant(convention="flax")),
            "linen, float64": Variant(
                convention="flax", note="Linen's averages begin in float32: 0.99 is rounded once"
            ),
        },
    ),
    "haiku": Release(
        title="Haiku", runner="haiku", environment="jax", requirements=("dm-haiku==0.0.17", JAX),
        variants=dict.fromkeys(("decay_rate=0.9", "float64"), Variant(convention="haiku")),
    ),
    "equinox": Release(
        title="Equinox", runner="equinox", environment="jax",
        requirements=("equinox==0.13.8", JAX),
        variants={
            "batch": Variant(convention="equinox-batch"),
            "batch, float64": Variant(convention="equinox-batch"),
            "ema": Variant(convention="equinox-ema"),
        },
    ),
    "keras-jax": _keras("jax", JAX),
    "keras-tensorflow": _keras("tensorflow", TENSORFLOW),
    "tf-keras": Release(
        title="tf-keras", runner="tf_keras", environment="tensorflow",
        requirements=("tf-keras==2.21.0", TENSORFLOW),
        variants={
            "default": Variant(convention="tf-keras", bessel={2: False, 4: True}),
            "fused=False": Variant(convention="tf-keras", bessel=False),
            "synchronized=True": Variant(convention="tf-keras", bessel=False),
        },
    ),
    "sonnet": Release(
        title="Sonnet", runner="sonnet", environment="tensorflow",
        requirements=("dm-sonnet==2.0.2", TENSORFLOW, "tf-keras==2.21.0"),
        variants={
            "channels_last": Variant(
                convention="sonnet", bessel={2: False, 4: True}, rounding=DEBIASING,
                note=DEBIASED_IN_FLOAT32,
            ),
            "channels_first": Variant(
                convention="sonnet", bessel=False, rounding=DEBIASING, note=DEBIASED_IN_FLOAT32
            ),
            "channels_first, float64": Variant(convention="sonnet", bessel=False),
        },
    ),
    "objax": Release(
        title="Objax", runner="objax", environment="objax",
        requirements=("objax==1.8.0", "jax==0.4.30", "jaxlib==0.4.30", "numpy<2", "six"),
        variants={"default": Variant(convention="objax")},
    ),
    "chainer": Release(
        title="Chainer", runner="chainer", environment="chainer",
        first=("setuptools<81", "wheel", "numpy==1.23.5"), requirements=("chainer==7.8.1",),
        variants={
            "default": Variant(convention="chainer"),
            "finetune=True": Variant(convention="chainer", extra={"decay": None}),
        },
    ),
    "mxnet": Release(
        title="MXNet, Gluon", runner="mxnet", environment="mxnet",
        requirements=("mxnet==1.9.1", "numpy==1.23.5"),
        variants={
            "default": Variant(convention="mxnet"),
            "scale=False": Variant(convention="mxnet", extra={"fix_gamma": True}),
        },
    ),
    "paddle": Release(
        title="PaddlePaddle", runner="paddle", environment="paddle",
        requirements=("paddlepaddle==3.3.1", "setuptools"),
        variants=dict.fromkeys(("NCHW", "NHWC"), Variant(convention="paddle")),
    ),
    "mindspore": Release(
        title="MindSpore", runner="mindspore", environment="mindspore",
        requirements=("mindspore==2.10.0", "numpy<2"),
        variants={"default": Variant(convention="mindspore")},
    ),
    "onnx": Release(
        title="ONNX, reference", runner="onnx_reference", environment="onnx",
        requirements=(ONNX,), variants=REFERENCE,
    ),
    "onnxruntime": Release(
        title="ONNX Runtime", runner="onnx_runtime", environment="onnx",
        requirements=("onnxruntime==1.32.0", ONNX), variants=RUNTIME,
    ),
    "openvino": Release(
        title="OpenVINO", runner="openvino", environment="openvino",
        requirements=("openvino==2026.4.1", ONNX),
        variants={
            "ONNX, opset 15": Variant(convention="onnx", bessel=False),
            "BatchNormInference": Variant(convention="openvino", copied=True),
        },
    ),
    "ncnn": Release(
        title="ncnn", runner="ncnn", environment="ncnn", requirements=("ncnn==1.0.20261020",),
        variants={"BatchNorm": Variant(convention="ncnn", copied=True)},
    ),
    "coremltools": Release(
        title="Core ML", runner="coreml", environment="coremltools",
        requirements=("coremltools==9.0",),
        variants={
            "builder": Variant(
                convention="coreml", copied=True, note="not inferred: only macOS runs the model"
            ),
        },
    ),
}  # fmt: skip
