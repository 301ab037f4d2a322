"""The layers `bnext.LayerNorm` and `bnext.RMSNorm`: state, both passes, errors."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

KINDS = pytest.mark.parametrize("kind", [bnext.LayerNorm, bnext.RMSNorm])


@KINDS
def test_passes_are_the_functions(kind, rng):
    for dtype, of_layer in ((np.float32, np.float32), (ml_dtypes.bfloat16, np.float32),
                            (np.float64, np.float64)):  # fmt: skip
        layer = kind((3, 4), dtype=of_layer)
        layer.weight[...] = rng.standard_normal((3, 4))
        x, dy = (rng.standard_normal((5, 3, 4)).astype(dtype) for _ in range(2))
        if kind is bnext.LayerNorm:
            y, saved = bnext.layer_norm_forward(x, (3, 4), layer.weight, layer.bias)
            dx, *gradients = bnext.layer_norm_backward(dy, x, saved, layer.weight)
        else:
            y, saved = bnext.rms_norm_forward(x, (3, 4), layer.weight)
            dx, *gradients = bnext.rms_norm_backward(dy, x, saved, layer.weight)
        assert layer(x).tobytes() == y.tobytes()
        own = dy.copy()
        assert layer.backward(own, out=own) is own
        assert own.tobytes() == dx.tobytes()
        found = [layer.weight_grad, layer.bias_grad][: len(gradients)]
        assert all(np.array_equal(a, b) for a, b in zip(found, gradients, strict=True))
        with pytest.raises(RuntimeError, match="backward: expected a forward call before it"):
            layer.backward(dy)


@KINDS
def test_without_parameters(kind, rng):
    layer = kind(4, elementwise_affine=False)
    assert layer.weight is layer.bias is None
    assert layer.state_dict() == {}
    x = rng.standard_normal((2, 4)).astype(np.float32)
    layer(x)
    assert layer.backward(x).shape == (2, 4)
    assert layer.weight_grad is layer.bias_grad is None


def test_state(rng):
    layer = bnext.LayerNorm((2, 3), eps=1e-3)
    assert repr(layer) == "LayerNorm((2, 3), eps=0.001, elementwise_affine=True, bias=True)"
    assert repr(bnext.RMSNorm(5, dtype=float)) == (
        "RMSNorm((5,), eps=None, elementwise_affine=True, dtype=float64)"
    )
    assert bnext.LayerNorm(3, bias=False).bias is None
    state = {name: rng.standard_normal((2, 3)) for name in ("weight", "bias")}
    assert layer.load_state_dict(state) == ([], [])
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert np.array_equal(layer.weight, state["weight"].astype(np.float32))
    again = pickle.loads(pickle.dumps(layer))
    shared = copy.copy(layer)
    assert shared.weight is layer.weight
    x = rng.standard_normal((4, 2, 3)).astype(np.float32)
    assert np.array_equal(again(x), layer(x))
    assert layer.eval().training is False
    assert layer.train().training is True
    assert layer.to(x) is layer
    layer.reset_parameters()
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()
    for wrong, text in (
        ({"weight": state["weight"]}, 'Missing key.* "bias"'),
        ({**state, "running_mean": 0}, 'Unexpected key.* "running_mean"'),
        ({**state, "bias": np.zeros(3)}, "size mismatch for bias"),
    ):
        with pytest.raises(RuntimeError, match=text):
            layer.load_state_dict(wrong)


@KINDS
def test_errors(kind, rng):
    x = np.zeros((2, 4), np.float32)
    cases = [
        (lambda: kind(()), ValueError, "normalized_shape: expected at least 1 dimension"),
        (lambda: kind("4"), TypeError, "normalized_shape: expected an integer or a sequence"),
        (lambda: kind(4, eps=-1.0), ValueError, "eps: expected a finite number"),
        (lambda: kind(4, dtype=int), TypeError, "dtype: expected dtype float32 or float64"),
        (lambda: kind(3)(x), ValueError, r"x: expected shape \(\*, 3\)"),
        (lambda: kind(4)(x.astype(float)), TypeError, "x: expected dtype float32, float16 or"),
        (lambda: kind(4)(None), TypeError, "x: expected"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
