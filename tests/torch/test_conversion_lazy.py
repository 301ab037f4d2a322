"""Lazy layers: bnext's from their first call on, also in a group."""

import pickle

import pytest

import bnext

from .support import assert_close, torch

from bnext.torch import classes  # isort: skip - of which there is nothing without PyTorch

convert, revert = bnext.torch.convert, bnext.torch.revert
SHAPES = {"1d": (5, 3), "2d": (5, 3, 4, 4), "3d": (5, 3, 2, 4, 4)}


class Own(torch.nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


class OwnLazy(torch.nn.LazyBatchNorm2d):
    cls_to_become = Own


class Unready(torch.nn.LazyBatchNorm2d):
    cls_to_become = None


def theirs_of(rank):
    return getattr(torch.nn, f"LazyBatchNorm{rank}"), getattr(torch.nn, f"BatchNorm{rank}")


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("rank", SHAPES)
def test_lazy_layers_become_ours(rank, options, kernel_calls):
    lazy, eager = theirs_of(rank)
    layer, reference = convert(lazy(**options)), lazy(**options)
    assert type(layer) is getattr(bnext.torch, f"LazyBatchNorm{rank}")
    assert isinstance(layer, lazy)
    assert "kernels=bnext" in repr(layer)
    assert type(convert(layer)) is type(layer)
    copies = [pickle.loads(pickle.dumps(layer)), layer]  # PyTorch cannot deepcopy them
    x = torch.randn(SHAPES[rank])
    expected = reference(x)
    for each in copies:
        before = kernel_calls["forward"]
        assert_close(each(x), expected, "y", 10.0)
        assert kernel_calls["forward"] == before + 1
        assert type(each) is getattr(bnext.torch, f"BatchNorm{rank}")
        for name, value in reference.state_dict().items():
            assert_close(each.state_dict()[name], value, name, 1.0)
        assert set(vars(each)) == set(vars(reference))
    assert type(revert(layer)) is eager


@pytest.mark.parametrize("rank", SHAPES)
def test_lazy_layers_of_ours_are_made_directly(rank):
    layer = getattr(bnext.torch, f"LazyBatchNorm{rank}")(eps=0.25)
    x = torch.randn(SHAPES[rank])
    theirs = theirs_of(rank)[1](3, eps=0.25)
    assert_close(layer(x), theirs(x), "y", 10.0)
    assert type(layer) is getattr(bnext.torch, f"BatchNorm{rank}")


@pytest.mark.parametrize("rank", SHAPES)
def test_lazy_layers_are_reverted(rank):
    lazy, eager = theirs_of(rank)
    for sync in (None, True):
        layer = lazy()
        names = set(vars(layer))
        assert type(revert(convert(layer, sync))) is lazy
        assert set(vars(layer)) == names
        convert(layer, sync)(torch.randn(SHAPES[rank]))
        assert type(revert(layer)) is eager
        assert set(vars(layer)) == set(vars(eager(3)))


@pytest.mark.parametrize("rank", SHAPES)
def test_lazy_layers_are_in_the_group_from_the_first_call(rank):
    lazy, _ = theirs_of(rank)
    group = bnext.sync.ThreadGroup(2, timeout=0.05)
    layer = convert(lazy(), sync=group)
    assert isinstance(layer, lazy)
    x = torch.randn(SHAPES[rank])
    with pytest.raises(bnext.sync.GroupError), group.member(0):
        layer(x)
    assert type(layer) is bnext.torch.SyncBatchNorm
    other = bnext.sync.ThreadGroup(1)
    layer = convert(convert(lazy()), sync=other)
    copied = pickle.loads(pickle.dumps(convert(lazy(), sync=True)))
    for each in (layer, copied):
        with other.member(0):
            assert_close(each(x), theirs_of(rank)[1](3)(x), "y", 10.0)
        assert type(each) is bnext.torch.SyncBatchNorm


def test_lazy_layers_of_a_user(kernel_calls):
    layer, reference = convert(OwnLazy()), OwnLazy()
    assert isinstance(layer, OwnLazy)
    assert type(pickle.loads(pickle.dumps(layer))) is type(layer)
    x = torch.randn(SHAPES["2d"])
    for _ in range(2):
        assert_close(layer(x), reference(x), "y", 10.0)
    assert kernel_calls["forward"] == 2
    assert isinstance(layer, Own)
    assert classes.is_ours(layer)
    assert type(revert(layer)) is Own
    with pytest.warns(bnext.torch.ConversionWarning, match="its class never becomes another"):
        convert(Unready())


def test_lazy_layers_take_states():
    state = torch.nn.BatchNorm2d(3).state_dict()
    layer = convert(torch.nn.LazyBatchNorm2d())
    layer.load_state_dict(state)
    layer(torch.randn(SHAPES["2d"]))
    assert type(layer) is bnext.torch.BatchNorm2d
    assert layer.num_batches_tracked == 1
    layer = convert(torch.nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(torch.randn(5, 3))
