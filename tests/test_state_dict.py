"""state_dict and load_state_dict: torch's names, rules and messages, in both directions."""

import re
from collections import OrderedDict

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .snapshots import assert_unchanged, layer_state, snapshot

NAMES = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
F4 = np.float32


def trained(rng, channels=3, **options):
    """A layer after a few steps, with values in every array."""
    bn = bnext.BatchNorm2d(channels, **options)
    for _ in range(3):
        bn(rng.normal(1, 2, (4, channels, 5, 5)).astype(bn.dtype))
    if bn.weight is not None:
        bn.weight[...] = rng.uniform(0.5, 2, channels)
        bn.bias[...] = rng.normal(size=channels)
    return bn


def as_tensors(state):
    import torch

    return OrderedDict((name, torch.tensor(value)) for name, value in state.items())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_names_and_their_order_are_torch_s(affine, tracked):
    names = (NAMES[:2] if affine else []) + (NAMES[2:] if tracked else [])
    state = bnext.BatchNorm2d(3, affine=affine, track_running_stats=tracked).state_dict()
    assert isinstance(state, OrderedDict)
    assert list(state) == names
    assert state._metadata == {"": {"version": 2}}


def test_values_are_copies(rng):
    bn = trained(rng)
    state = bn.state_dict()
    before = snapshot(layer_state(bn))
    for name, value in state.items():
        assert_same_bits(value, getattr(bn, name), name)
        value[...] = 7
    assert_unchanged(layer_state(bn), before)


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_what_was_saved_loads(rng, dtype, options):
    bn, other = trained(rng, dtype=dtype, **options), bnext.BatchNorm2d(3, dtype=dtype, **options)
    arrays = {name: getattr(other, name) for name in bn.state_dict()}
    assert tuple(other.load_state_dict(bn.state_dict())) == ([], [])
    for name, value in bn.state_dict().items():
        assert_same_bits(getattr(other, name), value, name)
        assert getattr(other, name) is arrays[name], "loading copies in place"
    x = rng.normal(size=(4, 3, 5, 5)).astype(dtype)
    assert_same_bits(other.eval()(x), bn.eval()(x))


def test_loading_shares_no_memory(rng):
    state = trained(rng).state_dict()
    bn = bnext.BatchNorm2d(3)
    bn.load_state_dict(state)
    before = snapshot(layer_state(bn))
    for value in state.values():
        value[...] = 7
    assert_unchanged(layer_state(bn), before)


def test_values_are_converted_to_the_layer_s_dtype(rng):
    bn = bnext.BatchNorm2d(3)
    state = trained(rng, dtype=np.float64).state_dict()
    bn.load_state_dict(state)
    for name in NAMES[:4]:
        assert_same_bits(getattr(bn, name), state[name].astype(F4), name)


@pytest.mark.parametrize("metadata", [None, {}, {"": {"version": 1}}], ids=str)
def test_checkpoints_from_before_the_counter_keep_the_current_one(rng, metadata):
    state = trained(rng).state_dict()
    del state["num_batches_tracked"]
    state = OrderedDict(state)
    if metadata is not None:
        state._metadata = metadata
    bn = bnext.BatchNorm2d(3)
    bn.num_batches_tracked[...] = 41
    assert tuple(bn.load_state_dict(state)) == ([], [])
    assert bn.num_batches_tracked == 41
    assert_same_bits(bn.running_mean, state["running_mean"])


def test_not_strict_takes_what_fits(rng):
    state = trained(rng).state_dict()
    mean = state.pop("running_mean")
    state["else"] = mean
    bn = bnext.BatchNorm2d(3)
    missing, unexpected = bn.load_state_dict(state, strict=False)
    assert (list(missing), list(unexpected)) == (["running_mean"], ["else"])
    assert bn.running_mean.tolist() == [0.0] * 3
    assert_same_bits(bn.weight, state["weight"])
    assert bn.num_batches_tracked == 3


def spoiled(name):
    """State dicts that do not fit a layer of three features, with what torch calls the layer."""
    layer = {}
    state = trained(np.random.default_rng(1)).state_dict()
    if name == "missing":
        del state["running_mean"], state["running_var"], state["num_batches_tracked"]
    elif name == "unexpected":
        state["scale"] = np.ones(3, F4)
        state["shift"] = np.ones(3, F4)
    elif name == "size":
        state["weight"] = np.ones(5, F4)
        state["running_var"] = np.ones((3, 1), F4)
    elif name == "everything":
        del state["bias"]
        state["scale"] = np.ones(3, F4)
        state["running_mean"] = np.ones(4, F4)
    elif name == "untracked":
        layer = {"track_running_stats": False}
    elif name == "not affine":
        layer = {"affine": False}
    return state, layer


SPOILED = ["missing", "unexpected", "size", "everything", "untracked", "not affine"]


@pytest.mark.parametrize("name", SPOILED)
def test_what_does_not_fit_is_told_as_torch_tells_it(torch, name):
    state, options = spoiled(name)
    theirs = torch.nn.BatchNorm2d(3, **options)
    tensors = as_tensors(state)
    tensors._metadata = state._metadata
    with pytest.raises(RuntimeError) as expected:
        theirs.load_state_dict(tensors)
    with pytest.raises(RuntimeError) as actual:
        bnext.BatchNorm2d(3, **options).load_state_dict(state)
    assert without_sizes(actual.value) == without_sizes(expected.value)


def without_sizes(error):
    """torch prints torch.Size([3]) where NumPy has (3,)."""
    text = re.sub(r"torch\.Size\(\[([\d, ]*)\]\)", r"(\1)", str(error))
    return re.sub(r"\((\d+),\)", r"(\1)", text)


@pytest.mark.parametrize("name", SPOILED)
def test_what_does_not_fit_changes_nothing(name):
    state, options = spoiled(name)
    bn = bnext.BatchNorm2d(3, **options)
    before = snapshot(layer_state(bn))
    with pytest.raises(RuntimeError, match=r"^Error\(s\) in loading state_dict for BatchNorm2d:"):
        bn.load_state_dict(state)
    assert_unchanged(layer_state(bn), before)


def test_sizes_are_checked_even_where_names_need_not_match():
    state, _ = spoiled("size")
    bn = bnext.BatchNorm2d(3)
    before = snapshot(layer_state(bn))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        bn.load_state_dict(state, strict=False)
    assert_unchanged(layer_state(bn), before)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_torch_s_checkpoint_loads_and_loads_back(torch, rng, dtype, momentum):
    theirs = torch.nn.BatchNorm2d(3, momentum=momentum, dtype=getattr(torch, np.dtype(dtype).name))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.tensor(rng.uniform(0.5, 2, 3))
        for _ in range(3):
            theirs(torch.tensor(rng.normal(1, 2, (4, 3, 5, 5)).astype(dtype)))
    ours = bnext.BatchNorm2d(3, momentum=momentum, dtype=dtype)
    assert tuple(ours.load_state_dict(theirs.state_dict())) == ([], [])
    for name, tensor in theirs.state_dict().items():
        assert_same_bits(getattr(ours, name), tensor.numpy(), name)

    back = torch.nn.BatchNorm2d(3, momentum=momentum, dtype=getattr(torch, np.dtype(dtype).name))
    back.load_state_dict(as_tensors(ours.state_dict()))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name

    x = rng.normal(1, 2, (4, 3, 5, 5)).astype(dtype)
    for training in (True, False):
        expected = theirs.train(training)(torch.tensor(x)).detach().numpy()
        allowed = 16 * np.finfo(dtype).eps * np.abs(expected).max()
        np.testing.assert_allclose(ours.train(training)(x), expected, rtol=0, atol=allowed)


def test_parameters_that_require_gradients_load(torch):
    theirs = torch.nn.BatchNorm2d(3, track_running_stats=False)
    ours = bnext.BatchNorm2d(3, track_running_stats=False)
    ours.weight[...] = 7
    ours.load_state_dict(dict(theirs.named_parameters()))
    assert ours.weight.tolist() == [1.0] * 3
