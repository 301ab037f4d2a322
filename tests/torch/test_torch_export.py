"""torch.export: our operator in training, PyTorch's in evaluation; results as of eager calls."""

import copy

import pytest

import bnext

from .support import torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def model_and_data():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(96, 5), torch.nn.BatchNorm1d(5, momentum=None),
    )  # fmt: skip
    return bnext.torch.convert(model), torch.randn(4, 3, 6, 6)


def operators_of(program):
    return [str(node.target) for node in program.graph.nodes if "batch_norm" in str(node.target)]


@pytest.mark.parametrize("training", [True, False])
def test_torch_export(training):
    model, x = model_and_data()
    model.train(training)
    eager = copy.deepcopy(model)
    program = torch.export.export(model, (x,))
    name = "bnext.batch_norm.default" if training else "aten.batch_norm.default"
    assert operators_of(program) == [name] * 2
    module = program.module()
    torch.testing.assert_close(module(x), eager(x), rtol=1e-5, atol=1e-5)
    state = module.state_dict()
    for key, value in eager.state_dict().items():  # statistics have moved in both, or in neither
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)
