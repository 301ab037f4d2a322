"""Programs for CUDA, made without a GPU: their calls, and what is refused while they are made."""

import re

import numpy as np
import pytest

import bnext

from .support import Inputs, jax, jnp

from bnext.jax import gpu  # isort: skip


def lowered(function, *arguments):
    """Give the text of a program for CUDA."""
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def calls(text):
    """Give the calls of bnext: target, attributes, layouts and types, as the text has them."""
    return [
        (match[1], dict(re.findall(r'(\w+) = "?([^,"}]*)"?[,}]', match[2] + "}")), match[0])
        for match in re.finditer(
            r"custom_call @(bnext_\w+)\(.*?mhlo.backend_config = {(.*?)}.*", text
        )
    ]


def call(activation=None, **options):
    def both(x, dy, weight, bias, residual):
        y, pull_back, moments = jax.vjp(
            lambda *arrays: bnext.jax.batch_norm(
                *arrays[:3], residual=arrays[3], activation=activation, **options
            ),
            x, weight, bias, residual, has_aux=True,
        )  # fmt: skip
        return y, moments, pull_back(dy)

    return both


def arrays_of(inputs):
    return inputs.x, inputs.dy, *inputs.affine, inputs.residual


def test_gpu_both_passes(rng):
    inputs = Inputs(rng, (6, 5, 7, 19))
    text = lowered(call(), *arrays_of(inputs))
    forward, backward = calls(text)
    assert forward[0] == "bnext_gpu_forward"
    assert forward[1]["arguments"] == "x weight bias"
    assert forward[1]["results"] == "y statistics values workspace"
    assert forward[1]["channel_axis"].startswith("3")
    assert forward[1]["activation"] == "none"
    assert backward[0] == "bnext_gpu_backward"
    assert backward[1]["arguments"] == "x dy weight statistics"
    assert backward[1]["results"] == "dx dweight dbias workspace"
    # Statistics go from one to the other as words, and all arrays lie in C order.
    assert "tensor<5x19x2xui32>" in forward[2]
    assert "tensor<5x19x2xui32>" in backward[2]
    for _, _, line in (forward, backward):
        in_c_order = "dense<[3, 2, 1, 0]> : tensor<4xindex>"
        operands, results = re.search(
            r"operand_layouts = (.*), result_layouts = (.*?)}", line
        ).groups()
        assert in_c_order in operands
        assert results.startswith(f"[{in_c_order}")
        assert re.search(r"tensor<\d+xui8>\)$", line)  # the workspace comes last


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "tanh"])
def test_gpu_smooth_activations_are_the_kernels(rng, activation, dtype):
    inputs = Inputs(rng, (6, 5, 8), jnp.dtype(dtype), residual=True)
    forward, backward = calls(lowered(call(activation), *arrays_of(inputs)))
    assert forward[1]["activation"] == backward[1]["activation"] == activation
    assert forward[1]["arguments"] == "x weight bias residual"
    assert backward[1]["arguments"] == "x dy weight bias residual statistics"
    assert backward[1]["results"] == "dx dresidual dweight dbias workspace"


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu"])
def test_gpu_by_flags(rng, activation):
    """The forward pass is one kernel; backward, dy times the slope is XLA's, and dresidual."""
    inputs = Inputs(rng, (6, 5, 8), residual=True)
    forward, backward = calls(lowered(call(activation), *arrays_of(inputs)))
    assert forward[1]["activation"] == activation
    assert "flags" not in forward[1]["results"]
    assert backward[1]["activation"] == "none"
    assert backward[1]["arguments"] == "x dy weight statistics"
    assert "dresidual" not in backward[1]["results"]


def test_gpu_without_a_residual_an_activation_is_the_kernels(rng):
    _, backward = calls(lowered(call("relu"), *arrays_of(Inputs(rng, (6, 5, 8)))))
    assert backward[1]["activation"] == "relu"
    assert backward[1]["arguments"] == "x dy weight bias statistics"


def test_gpu_given_statistics(rng):
    inputs = Inputs(rng, (6, 5, 8))

    def loss(x, mean, var, weight, bias):
        return bnext.jax.normalize(x, mean, var, weight, bias, activation="silu").sum()

    arrays = inputs.x, inputs.mean, inputs.var, *inputs.affine
    forward, backward = calls(lowered(jax.grad(loss, argnums=range(5)), *arrays))
    assert forward[0] == "bnext_gpu_normalize"
    assert forward[1]["arguments"] == "x mean var weight bias"
    assert forward[1]["results"] == "y statistics workspace"
    assert backward[0] == "bnext_gpu_backward_given"


def test_gpu_export_of_both_platforms(rng):
    """One program for a CPU and a GPU, made where there is no GPU."""
    inputs = Inputs(rng, (6, 5, 8))
    exported = jax.export.export(
        jax.jit(lambda x: bnext.jax.batch_norm(x)[0]), platforms=["cpu", "cuda"],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(f"bnext_{name}")
            for name in ("forward", "gpu_forward")
        ],
    )(inputs.x)  # fmt: skip
    text = exported.mlir_module()
    assert {name for name, *_ in calls(text)} == {"bnext_forward", "bnext_gpu_forward"}
    np.testing.assert_array_equal(
        jax.jit(exported.call)(inputs.x), bnext.jax.batch_norm(inputs.x)[0]
    )


def test_gpu_programs_of_a_cpu_have_nothing_of_it(rng):
    text = jax.jit(call("relu")).lower(*arrays_of(Inputs(rng, (6, 5, 8)))).as_text()
    assert "gpu" not in text
    assert "ui8" not in text


X = np.ones((8, 6, 4), np.float32)
REFUSED = {
    "mask": (lambda x: bnext.jax.batch_norm(x, mask=X[..., 0] > 0)[0], "positions with weights"),
    "weights": (
        lambda x: bnext.jax.batch_norm(x, sample_weight=np.arange(8.0))[0], "positions with weights"
    ),
    "moments": (lambda x: bnext.jax.moments(x).mean, "collect_stats"),
    "layer": (lambda x: bnext.jax.layer_norm(x, 4), "rows_forward"),
    "rms": (lambda x: bnext.jax.rms_norm(x, 4), "rows_forward"),
    "group": (lambda x: bnext.jax.group_norm(x, 2), "cells_forward"),
    "instance": (lambda x: bnext.jax.instance_norm(x), "cells_forward"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_gpu_calls_without_kernels_are_refused(case):
    function, what = case
    with pytest.raises(
        NotImplementedError, match=r"bnext\.jax: expected a call that has kernels"
    ) as found:
        lowered(function, X)
    assert what in str(found.value)
    jax.jit(function)(X)  # on the CPU


def test_gpu_a_build_without_handlers_says_how_to_get_them(monkeypatch):
    """Where there is a GPU; a program for another machine can be made without."""
    assert len(calls(lowered(lambda x: bnext.jax.batch_norm(x)[0], X))) == 1
    monkeypatch.setattr(gpu, "_missing", "no kernels were built")
    assert len(calls(lowered(lambda x: bnext.jax.batch_norm(x, eps=1e-3)[0], X))) == 1
    monkeypatch.setattr(gpu, "_has_a_gpu", lambda: True)
    with pytest.raises(RuntimeError) as found:
        lowered(lambda x: bnext.jax.batch_norm(x, eps=1e-2)[0], X)
    assert str(found.value).startswith(
        "bnext.jax: expected a build with foreign functions for CUDA"
    )
    assert "no kernels were built" in str(found.value)
    assert "BNEXT_CUDA=ON" in str(found.value)
    assert "BNEXT_XLA=ON" in str(found.value)
