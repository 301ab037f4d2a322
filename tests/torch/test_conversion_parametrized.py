"""Parametrized layers: their parametrizations stay, over another class."""

import copy

import pytest

import bnext

from .support import assert_close, torch

from bnext.torch import classes  # isort: skip - of which there is nothing without PyTorch

convert, revert = bnext.torch.convert, bnext.torch.revert


class Defaults(torch.nn.BatchNorm2d):
    """Other defaults, and nothing else."""

    def __init__(self, features):
        super().__init__(features, eps=1e-3, momentum=0.03)


class Followed(torch.nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 3 - 1


def assert_same(ours, theirs, x):
    for training in (True, False):
        assert_close(ours.train(training)(x), theirs.train(training)(x), "y", 20.0)
    for name, value in theirs.state_dict().items():
        assert_close(ours.state_dict()[name], value, name, 1.0)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def parametrized(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize("sync", [None, True])
@pytest.mark.parametrize("first", ["convert", "parametrize"])
@pytest.mark.parametrize("kind", [torch.nn.BatchNorm2d, Defaults, Followed])
def test_parametrized_layers_are_converted_and_reverted(kind, first, sync):
    from torch.nn.utils import parametrize

    reference = parametrized(kind(4))
    if first == "convert":
        layer = parametrized(convert(kind(4), sync))
    else:
        layer = convert(parametrized(kind(4)), sync)
    assert classes.is_ours(layer)
    assert parametrize.is_parametrized(layer, "weight")
    assert classes.original(parametrize.type_before_parametrizations(layer)) in (
        (kind,) if sync is None else (kind, torch.nn.SyncBatchNorm)
    )
    x = torch.randn(5, 4, 3, 3)
    assert_same(layer, copy.deepcopy(reference), x)
    assert_same(copy.deepcopy(layer), copy.deepcopy(layer), x)
    assert type(convert(layer)) is type(layer)
    revert(layer)
    assert not classes.is_ours(layer)
    assert parametrize.type_before_parametrizations(layer) is kind
    layer.load_state_dict(reference.state_dict())
    assert_same(layer, reference, x)
    parametrize.remove_parametrizations(convert(layer), "weight")
    assert classes.is_ours(layer)
    assert type(revert(layer)) is kind
