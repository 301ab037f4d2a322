"""Batches of every form, and models in wrappers: `update_statistics` calls these as loops do."""

import copy

import pytest

import bnext

from .support import torch

nn = torch.nn


class OfDict(nn.Module):
    """As models are written for loaders of dicts: the dict is the argument."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch):
        return self.norm(batch["x"])


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, a, b, scale=1.0):
        return self.norm(a + b) * scale


DATA = [torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def statistics_of(model, loader, method="exact"):
    model = bnext.torch.convert(copy.deepcopy(model))
    bnext.torch.update_statistics(model, loader, method)
    return list(model.buffers())


def assert_sums_are_known(found, data=DATA):
    every = torch.cat(data)
    torch.testing.assert_close(found[0], every.mean(0))
    torch.testing.assert_close(found[1], every.var(0))


@pytest.mark.parametrize("method", ["exact", "pooled"])
def test_a_dict_may_be_the_argument(method):
    loader = [{"x": x, "label": torch.zeros(5)} for x in DATA]
    assert_sums_are_known(statistics_of(OfDict(), loader, method))


def test_a_dict_that_names_the_argument_is_of_arguments():
    loader = [{"input": x, "label": 1} for x in DATA]
    assert_sums_are_known(statistics_of(nn.Sequential(nn.BatchNorm1d(3)), loader))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        statistics_of(OfTwo(), [{"a": x, "label": 1} for x in DATA])


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_take_what_their_model_takes(wrapper):
    wrapped = WRAPPERS[wrapper](OfTwo())
    halves = [(x / 2, x / 2, "label") for x in DATA]
    named = [{"a": x / 2, "b": x / 2, "label": 1} for x in DATA]
    for loader in (halves, named):
        bnext.torch.update_statistics(wrapped, loader)
        found = [each for each in wrapped.buffers() if each.dim() == 1]
        assert_sums_are_known(found)
