"""Arrays whose values are not where they seem: deleted, sharded, of a dtype that NumPy has not."""

import subprocess
import sys

import numpy as np
import pytest

import bnext

from . import fake_cuda


class WithoutMemory:
    """An array on the CPU, by what it says, that has elements and no address."""

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, max_version=None):
        return fake_cuda.capsule(np.ones((4, 3), np.float32), device_type=1, memory=False)

    def __array__(self, dtype=None, copy=None):
        return np.ones((4, 3), np.float32)


def test_arrays_without_memory_are_refused():
    with pytest.raises(TypeError, match=r"^x: expected an array whose memory holds its values"):
        bnext.batch_norm_forward(WithoutMemory())
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    _, saved = bnext.batch_norm_forward(x)
    with pytest.raises(TypeError, match=r"^dy: expected an array whose memory holds its values"):
        bnext.batch_norm_backward(WithoutMemory(), x, saved)


@pytest.mark.jax
def test_jax_arrays_that_were_deleted():
    import jax.numpy as jnp

    x, weight = jnp.ones((4, 3)) + 1, jnp.ones(3) + 1
    deleted_x, deleted_weight = x + 1, weight + 1
    deleted_x.delete()
    deleted_weight.delete()
    text = "expected an array that holds values, got one that was deleted"
    with pytest.raises(TypeError, match=f"^x: {text}"):
        bnext.batch_norm_forward(deleted_x)
    with pytest.raises(TypeError, match=f"^x: {text}"):
        bnext.BatchNorm1d(3)(deleted_x)
    with pytest.raises(TypeError, match=f"^x: {text}"):
        bnext.moments(deleted_x)
    with pytest.raises(TypeError, match=f"^weight: {text}"):
        bnext.batch_norm_forward(x, deleted_weight)
    with pytest.raises(TypeError, match=r"^weight: expected an array that NumPy can read"):
        bnext.batch_norm_forward(np.ones((4, 3), np.float32), deleted_weight)
    bn = bnext.BatchNorm1d(3)
    with pytest.raises(RuntimeError, match=r'parameter named "weight", got: .*deleted'):
        bn.load_state_dict({"weight": deleted_weight}, strict=False)


@pytest.mark.jax
def test_jax_arrays_that_are_sharded():
    """On two devices of the CPU, which a process has to ask for before it starts."""
    script = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, numpy as np, bnext
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("d",))
values = np.arange(12, dtype=np.float32).reshape(4, 3)
def refused(name, call):
    try:
        call()
    except TypeError as error:
        text = f"{name}: expected an array on one device, got one on 2"
        assert str(error).startswith(text), error
    else:
        raise AssertionError(name)
for spec in (PartitionSpec("d"), PartitionSpec()):
    x = jax.device_put(values, NamedSharding(mesh, spec))
    refused("x", lambda: bnext.batch_norm_forward(x))
weight = jax.device_put(values[0], NamedSharding(mesh, PartitionSpec()))
refused("weight", lambda: bnext.batch_norm_forward(jax.numpy.asarray(values), weight))
bn = bnext.BatchNorm1d(3)
bn.load_state_dict({"weight": weight}, strict=False)
assert (bn.weight == values[0]).all()
alone = jax.device_put(values, jax.devices()[1])
assert (np.asarray(bnext.batch_norm_forward(alone)[0]) == bnext.batch_norm_forward(values)[0]).all()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def bfloat16_layer():
    import torch

    layer = torch.nn.BatchNorm2d(5)
    layer(torch.randn(4, 5, 3, 3))
    return layer.bfloat16()


@pytest.mark.parametrize("ml_dtypes", [True, False], ids=["ml_dtypes", "without"])
def test_torch_checkpoints_in_bfloat16(torch, ml_dtypes, monkeypatch):
    if not ml_dtypes:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    layer = bfloat16_layer()
    state = layer.state_dict()
    expected = {name: value.float().numpy() for name, value in state.items()}
    loaded = bnext.BatchNorm2d(5)
    loaded.load_state_dict(state)
    converted = bnext.from_convention("pytorch", state)
    moved = bnext.BatchNorm2d(5).to(torch.empty(0))
    moved.load_state_dict(state)
    for bn in (loaded, converted, moved):
        for name, value in bn.state_dict().items():
            np.testing.assert_array_equal(np.asarray(value), expected[name], name)


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_torch_lazy_and_wrapped_values_of_checkpoints(torch):
    bn = bnext.BatchNorm1d(3)
    weight = torch.arange(3.0)
    bn.load_state_dict({"weight": torch._neg_view(weight)}, strict=False)
    np.testing.assert_array_equal(bn.weight, [0, -1, -2])
    with pytest.raises(RuntimeError, match="expected a tensor whose memory holds its values, got "):
        bn.load_state_dict({"weight": torch.masked.masked_tensor(weight, weight > 0)}, strict=False)
