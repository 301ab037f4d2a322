"""The conventions of the libraries, as declared records.

Facts are measured: they were printed by runs of the releases that `releases` names, on a CPU,
unless `note` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bnext.inference.conventions.record import Convention

__all__ = ["CONVENTIONS", "convention_of"]

PYTORCH = ("weight", "bias", "running_mean", "running_var")
KERAS = ("gamma", "beta", "moving_mean", "moving_variance")
CORE_ML = ("gamma", "beta", "mean", "variance")
RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
COUNTER = ("num_batches_tracked",)

_ALL = {
    "pytorch": Convention(
        title="PyTorch", releases="2.13.0", names=PYTORCH, counters=COUNTER,
        momentum=0.1, momentum_weighs="new", bessel=True, cumulative=True,
    ),
    "torch-geometric": Convention(
        title="PyTorch Geometric", releases="2.8.1", names=PYTORCH, counters=COUNTER,
        momentum=0.1, momentum_weighs="new", bessel=True, cumulative=True, prefixes=("module.",),
        note="a BatchNorm1d under the name module",
    ),
    "thunder": Convention(
        title="Lightning Thunder", releases="0.2.6", names=PYTORCH, counters=COUNTER,
        momentum=0.1, momentum_weighs="new", bessel=True,
    ),
    "tinygrad": Convention(
        title="tinygrad", releases="0.14.0", names=PYTORCH, counters=COUNTER,
        momentum=0.1, momentum_weighs="new", bessel=True,
        note="has the counter also with track_running_stats=False",
    ),
    "e3nn": Convention(
        title="e3nn, scalars", releases="0.6.0", names=PYTORCH, momentum=0.1,
        momentum_weighs="new", channel_axis=-1,
        note="irreps of l > 0 have no mean, and one variance each: they are no batch normalization",
    ),
    "jittor": Convention(
        title="Jittor", releases="1.3.11.0", names=PYTORCH, momentum=0.1,
        momentum_weighs="new",
    ),
    "mlx": Convention(
        title="MLX", releases="0.32.4", names=PYTORCH, momentum=0.1, momentum_weighs="new",
        channel_axis=-1, bessel=None,
        bessel_depends="the version: True from 0.32.1, False up to 0.32.0",
    ),
    "keras": Convention(
        title="Keras 3", separator="/", releases="3.15.1", names=KERAS, eps=1e-3,
        eps_name="epsilon", momentum=0.99, channel_axis=-1, dropped=RENORM,
        note="the PyTorch backend can store a negative or NaN variance",
    ),
    "tf-keras": Convention(
        title="tf-keras (Keras 2)", separator="/", releases="2.21.0", names=KERAS, eps=1e-3,
        eps_name="epsilon", momentum=0.99, channel_axis=-1, dropped=RENORM,
        bessel=None,
        bessel_depends="the kernel: True for input of rank 4 and 5 (fused), False for rank 2 and "
        "3, fused=False and synchronized=True",
    ),
    "flax": Convention(
        title="Flax, linen and nnx", separator="/", releases="0.12.8",
        names=("scale", "bias", "mean", "var"),
        eps_name="epsilon", momentum=0.99, channel_axis=-1, collections=("params/", "batch_stats/"),
    ),
    "haiku": Convention(
        title="Haiku", separator="/", releases="0.0.17",
        names=("scale", "offset", "mean_ema/average", "var_ema/average"), momentum=None,
        momentum_name="decay_rate", channel_axis=-1, start="debiased",
        counters=("mean_ema/counter", "var_ema/counter"),
        hidden=("mean_ema/hidden", "var_ema/hidden"), form="keepdims",
        aliases={
            f"~/{mean}_ema/{name}": f"{mean}_ema/{name}"
            for mean in ("mean", "var") for name in ("average", "counter", "hidden")
        },
    ),
    "sonnet": Convention(
        title="Sonnet", separator="/", releases="2.0.2",
        names=("scale", "offset", "moving_mean/average", "moving_variance/average"), momentum=0.999,
        momentum_name="decay_rate", channel_axis=-1, start="debiased", bessel=None,
        bessel_depends="the kernel: True for input of rank 4 with channels last (fused), False "
        "for channels first and for other ranks",
        counters=("moving_mean/counter", "moving_variance/counter"),
        hidden=("moving_mean/hidden", "moving_variance/hidden"), form="keepdims",
        form_of=("moving_mean/average", "moving_variance/average", "moving_mean/hidden",
                 "moving_variance/hidden"),
        trailing=("scale", "offset"),
    ),
    "equinox-batch": Convention(
        title='Equinox, mode="batch"', releases="0.13.8", names=("weight", "bias", "mean", "var"),
        momentum=0.99, start="divided", counters=("counter",),
        note="the stored pair is blended from 0 and 1; Equinox evaluates with it divided by "
        "1 - d^k, so that the variance it uses is too large by d^k / (1 - d^k)",
    ),
    "equinox-ema": Convention(
        title='Equinox, mode="ema"', releases="0.13.8", names=("weight", "bias", "mean", "var"),
        momentum=0.99, start="first", first_flag="first_time",
        note="also training normalizes by the running statistics",
    ),
    "objax": Convention(
        title="Objax", releases="1.8.0", names=("gamma", "beta", "running_mean", "running_var"),
        eps=1e-6, momentum=0.999, form="keepdims", ndim=4,
    ),
    "chainer": Convention(
        title="Chainer", releases="7.8.1", names=("gamma", "beta", "avg_mean", "avg_var"),
        eps=2e-5, momentum_name="decay", bessel=True, cumulative=True, counters=("N",),
        counts="cumulative", note="N counts the steps with finetune=True, a cumulative average",
    ),
    "mxnet": Convention(
        title="MXNet, Gluon", releases="1.9.1",
        names=("gamma", "beta", "running_mean", "running_var"), eps_name="epsilon",
        collections=("arg:", "aux:"), underscores=True,
        unit_weight_flag="fix_gamma", unit_weight=False,
        note="backward moves the statistics; scale=False (fix_gamma) sets the stored gamma to 1",
    ),
    "mxnet-symbol": Convention(
        title="MXNet, the operator", releases="1.9.1",
        names=("gamma", "beta", "moving_mean", "moving_var"), eps=1e-3,
        collections=("arg:", "aux:"), underscores=True, unit_weight_flag="fix_gamma",
        note="fix_gamma is True by default, and the file of the arrays does not say it",
    ),
    "paddle": Convention(
        title="PaddlePaddle", releases="3.3.1", names=("weight", "bias", "_mean", "_variance"),
        eps_name="epsilon", dropped=("StructuredToParameterName@@",),
    ),
    "mindspore": Convention(
        title="MindSpore", releases="2.10.0", names=KERAS, bessel=True,
        aliases={"mean": "moving_mean", "variance": "moving_variance"},
        note="names as in Keras; a batch of one value stores NaN",
    ),
    "onnx": Convention(
        title="ONNX, opset 7 to 15", separator="/", releases="1.23.2",
        names=("scale", "B", "input_mean", "input_var"), eps_name="epsilon", needs_parameters=True,
        bessel=None, moves_bessel=False,
        bessel_depends="the writer: False for what a runtime's training_mode=1 gives, True for a "
        "model exported from PyTorch, whose running_var is copied",
        aliases={"mean": "input_mean", "var": "input_var"},
        note="opsets 7 and 9 call the statistics mean and var",
    ),
    "caffe": Convention(
        title="Caffe", names=CORE_ML, momentum=0.999, momentum_name="moving_average_fraction",
        start="debiased", bessel=True, factor="scale_factor",
        note="not run; blobs 0 and 1 are sums, to be divided by blob 2; gamma and beta belong to "
        "the Scale layer",
    ),
    "ncnn": Convention(
        title="ncnn", releases="1.0.20261020", names=("slope", "bias", "mean", "variance"),
        eps=0.0, start=None, bessel=None, needs_parameters=True, least_std=1e-4,
    ),
    "coreml": Convention(
        title="Core ML", releases="9.0", names=CORE_ML, eps=None, eps_name="epsilon", start=None,
        bessel=None, needs_parameters=True,
        note="epsilon is 1e-5 by the builder and 0 where the field is absent; an ML Program stores "
        "float16 unless compute_precision is FLOAT32",
    ),
    "openvino": Convention(
        title="OpenVINO, BatchNormInference", releases="2026.4.1", names=CORE_ML, eps=None,
        eps_name="epsilon", start=None, bessel=None, needs_parameters=True,
    ),
    "litert": Convention(
        title="LiteRT (TensorFlow Lite)", releases="2.1.0", names=("mul", "add", "", ""),
        start=None, bessel=None, folded=True,
        note="a scale and a shift are all that is kept",
    ),
}  # fmt: skip

CONVENTIONS: Mapping[str, Convention] = MappingProxyType(_ALL)


def convention_of(name: str) -> Convention:
    """Give the record of a convention by its name; ValueError where there is none."""
    if not isinstance(name, str) or name not in CONVENTIONS:
        expected = ", ".join(map(repr, CONVENTIONS))
        raise ValueError(f"convention: expected one of {expected}, got {name!r}")
    return CONVENTIONS[name]
