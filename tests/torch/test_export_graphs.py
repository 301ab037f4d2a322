"""Graphs of make_fx that run where gradients are recorded: they leave the state of layers alone."""

import copy

import pytest

import bnext

from .support import torch

nn = torch.nn


def graph_of(model, *inputs):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(lambda *given: model(*given))(*inputs)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("fuse", [False, True], ids=["not", "fused"])
def test_graphs_of_training_leave_running_statistics_without_gradients(fuse, momentum):
    torch.manual_seed(5)
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(),
        nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, momentum=momentum),
    )  # fmt: skip
    ours = bnext.torch.convert(copy.deepcopy(theirs), fuse=fuse)
    x = torch.randn(5, 3, 6, 6)
    graph = graph_of(ours, x)
    assert any("bnext" in str(node.target) for node in graph.graph.nodes)
    theirs(x)
    if momentum is not None:  # the graph has the factor of the call that was traced
        torch.testing.assert_close(graph(x), theirs(x))
        torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    else:
        graph(x)
    assert not any(buffer.requires_grad for buffer in ours.buffers())
    ours.eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    ours(x).sum().backward()
