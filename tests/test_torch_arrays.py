"""PyTorch's tensors on the CPU in calls of bnext, and as parameters of its layers."""

import copy
import pickle

import numpy as np
import pytest

import bnext

from .array_libraries import (
    IN_LAYOUTS,
    SHAPE,
    Small,
    as_torch,
    drawn,
    from_torch,
)
from .compare import assert_same_bits

pytestmark = pytest.mark.torch


@IN_LAYOUTS
def test_torch_layer_of_tensors(torch, rng, layout, dtype):
    """After `to`, parameters are tensors, updated in place; they serve PyTorch's optimizers."""
    x, dy, *_, axis = drawn(rng, layout, dtype)
    ours = bnext.BatchNorm(SHAPE[1], channel_axis=axis, dtype=dtype)
    bn = bnext.BatchNorm(SHAPE[1], channel_axis=axis, dtype=dtype).to(as_torch(x))
    running = bn.running_mean
    assert all(isinstance(a, torch.Tensor) for a in (running, bn.running_var, bn.weight, bn.bias))
    for training in (True, False):
        ours.train(training)
        bn.train(training)
        assert_same_bits(from_torch(bn(as_torch(x))), ours(x))
        assert_same_bits(from_torch(bn.backward(as_torch(dy))), ours.backward(dy))
        for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            assert_same_bits(from_torch(getattr(bn, name)), getattr(ours, name), name)
    assert bn.running_mean is running
    state = bn.state_dict()
    theirs = torch.nn.BatchNorm1d(SHAPE[1], dtype=getattr(torch, np.dtype(dtype).name))
    theirs.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    np.testing.assert_array_equal(theirs.running_var, ours.running_var)
    theirs.running_var[...] = 5
    assert (bn.running_var != 5).all()
    bn.load_state_dict(theirs.state_dict())
    assert (bn.running_var == 5).all()
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert_same_bits(from_torch(other.running_var), from_torch(bn.running_var))
    back = bn.to(np.empty(0))
    assert type(back.running_var) is type(back.weight_grad) is np.ndarray
    assert (back.running_var == 5).all()
    bn.reset_running_stats()
    assert (bn.running_var == 1).all()


def test_layer_of_tensors_and_a_numpy_array():
    """The two may stand together wherever nothing has to be updated in place."""
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    bn = bnext.BatchNorm1d(3).to(as_torch(x)).eval()
    assert type(bn(x)) is np.ndarray
    bn.train()
    text = r"^running_mean: expected an array of shape \(3,\), got Tensor$"
    with pytest.raises(TypeError, match=text):
        bn(x)


@pytest.mark.parametrize("name", ["x", "weight", "dy", "out"])
def test_torch_tensors_that_require_gradients(torch, name):
    """There is no autograd: a gradient that would silently be missing is an error."""
    tensors = {name: torch.ones(4, 3) for name in ("x", "dy", "out")} | {"weight": torch.ones(3)}
    saved = bnext.batch_norm_forward(torch.ones(4, 3))[1]
    tensors[name].requires_grad_()
    x, dy, weight, out = (tensors[name] for name in ("x", "dy", "weight", "out"))
    text = (
        f"{name}: expected a tensor that requires no gradient, got one that does; bnext's "
        f"functions record nothing for autograd (pass {name}.detach(), or call them under "
        "torch.no_grad())"
    )
    with pytest.raises(TypeError) as caught:
        bnext.batch_norm_backward(dy, x, saved, weight, out=out)
    assert str(caught.value) == text
    with torch.no_grad():
        bnext.batch_norm_backward(dy, x, saved, weight, out=out)


def test_torch_tensors_of_other_makes(torch):
    dense = torch.eye(4)
    for x, kind, text in (
        (dense.to(torch.int32), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got int32"),
        (dense.to(torch.complex64), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got complex64"),
        (dense.bool(), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got bool"),
        (torch.tensor(1.0), ValueError, "x: expected at least 1 dimension, got 0"),
        (dense.to("meta"), RuntimeError,
         "x: expected an array on the CPU or on a CUDA device, got one on meta"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            bnext.batch_norm_forward(x)
        assert str(caught.value) == text
    with pytest.raises(
        TypeError, match=r"^x: expected an array that DLPack can hand over, got Ten"
    ):
        bnext.batch_norm_forward(dense.to_sparse())


def test_torch_parameters_are_tensors(torch, rng):
    """Subclasses of Tensor, such as Parameter, are PyTorch's as well."""
    x = rng.normal(size=(19, 5)).astype(np.float32)
    weight = torch.nn.Parameter(torch.full((5,), 2.0), requires_grad=False)
    y, _ = bnext.batch_norm_forward(as_torch(x), weight)
    assert type(y) is torch.Tensor
    assert_same_bits(from_torch(y), bnext.batch_norm_forward(x, weight.numpy())[0])


def test_torch_tensors_beside_a_numpy_array(rng):
    x, dy = rng.normal(size=(2, 19, 5)).astype(np.float32)
    _, saved = bnext.batch_norm_forward(x)
    dx, _, _ = bnext.batch_norm_backward(as_torch(dy), x, saved, as_torch(np.ones(5, np.float32)))
    assert_same_bits(dx, bnext.batch_norm_backward(dy, x, saved)[0])


def test_two_libraries_do_not_mix(torch):
    x, weight = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    text = "^weight: expected an array of torch, like x, or of NumPy, got one of small$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(torch.from_numpy(x), Small(weight))
    with pytest.raises(TypeError, match=r"^out: expected an array of small, like x, or of NumPy"):
        bnext.batch_norm_forward(Small(x), out=torch.from_numpy(x))
