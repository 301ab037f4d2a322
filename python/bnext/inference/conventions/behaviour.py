"""What the libraries do with difficult input, as runs of their releases printed it.

Nothing is computed from these words: they are for docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["BEHAVIOUR", "Behaviour"]


class Behaviour(NamedTuple):
    """In training, float32 unless said; `large_mean` is the variance of data with mean/std 1e4."""

    one_value: str  # per channel
    empty: str  # a batch of 0 rows
    large_mean: str
    half: str  # 16-bit data
    mask: str = "none"


_FLAX_MASK = (
    "NaN under it stays out of the statistics; the gradient is NaN; all false: NaN statistics"
)
_DEBIASED = "y = 0, variance 0"
_BLENDED = "y = 0, variance moves towards 0"

_ALL = {
    "pytorch": Behaviour(
        "ValueError", "y empty, statistics stay", "off by 9e-5 in rows, 3e-8 in images",
        "right, in float16 and bfloat16",
    ),
    "torch-geometric": Behaviour(
        "ValueError", "statistics stay", "off by 2e-5 in rows", "not run",
    ),
    "thunder": Behaviour("RuntimeError", "NaN statistics", "off by 8e-8", "not run"),
    "tinygrad": Behaviour(
        "ZeroDivisionError", "NaN statistics", "off by 2e-6", "right; y is float32",
    ),
    "e3nn": Behaviour("y = 0, variance 0.5", "RuntimeError", "off by 2e-7 to 6e-7", "right"),
    "jittor": Behaviour(
        "y about 2e-5, variance 0.5", "statistics move towards 0", "off by 34 to 185 times",
        "statistics become 16-bit, variance infinite",
    ),
    "mlx": Behaviour(
        "ValueError", "NaN statistics", "off by 9e-5 to 3e-4",
        "float16: mean infinite, variance and y NaN, for large sums",
    ),
    "keras": Behaviour(
        _BLENDED, "NaN statistics (jax)",
        "jax: off by 1e-7; tensorflow: 9e-5; torch: variance 0, -8, 16",
        "right; statistics are 16-bit with dtype=\"float16\"",
        "NaN under it stays out; all false: mean 0 and variance 0 are blended in",
    ),
    "tf-keras": Behaviour(
        _BLENDED, "NaN statistics",
        "off by 9e-5, fused 3e-5; jit_compile: variance -168, y NaN",
        "statistics stay float32", "honoured with fused=False, ignored in 4-D by default",
    ),
    "flax": Behaviour(
        _BLENDED, "NaN statistics", "variance 8 to 24 in place of 1, or 0",
        "statistics are float32; nnx rounds them to 16 bits in inference", _FLAX_MASK,
    ),
    "haiku": Behaviour(
        _DEBIASED, "NaN statistics", "variance 8 to 24 in place of 1, or 0",
        "float16: variance NaN; bfloat16: variance 0",
    ),
    "sonnet": Behaviour(
        _DEBIASED, "NaN statistics", "off by 9e-5, fused 3e-5", "statistics are 16-bit",
    ),
    "equinox-batch": Behaviour(
        _BLENDED, "NaN statistics", "off by 1e-7 to 9e-7",
        "float16: NaN; bfloat16: mean off by 2, variance by 40 %",
    ),
    "equinox-ema": Behaviour(
        _DEBIASED, "NaN statistics", "off by 1e-7 to 9e-7", "TypeError, or NaN",
    ),
    "objax": Behaviour("y = 0", "NaN statistics", "off by 1e-7 to 8e-6", "right"),
    "chainer": Behaviour(
        f"{_BLENDED}, with a UserWarning", "NaN statistics", "off by 9e-5 to 8e-6",
        "layer in float16: mean and variance infinite",
    ),
    "mxnet": Behaviour("y = 0", "not run", "off by 1e-4", "float16: right; bfloat16: TypeError"),
    "paddle": Behaviour(
        "y = x, statistics stay", "y empty, statistics stay", "off by 9e-5 to 8e-6",
        "no kernel on CPUs: RuntimeError",
    ),
    "mindspore": Behaviour(
        "y = 0, variance NaN", "not run", "off by 9e-5 to 6e-7",
        "layer in float16: statistics never move",
    ),
    "onnx": Behaviour(
        "y = 0", "NaN statistics", "off by 9e-5 to 8e-6",
        "ONNX Runtime: right; reference: variance infinite, y 0",
    ),
}  # fmt: skip

BEHAVIOUR: Mapping[str, Behaviour] = MappingProxyType(_ALL)
