"""A loss of gradients, which differentiates layers twice: of a whole batch, or of a shard."""

import bnext

from ..groups.support import CUTS, members
from .support import torch


def activated(layer, x, residual, activation):
    """What the layer gives, and what follows it; a layer of bnext's has it itself."""
    if isinstance(layer, bnext.torch.SyncBatchNorm):
        return layer(x, residual=residual)
    y = layer(x)
    y = y if residual is None else y + residual
    return y if activation is None else getattr(torch.nn.functional, activation)(y)


def differentiate_twice(layer, x, residual=None, activation=None):
    """Gradients of the squares of the first gradients: by the data, and by parameters."""
    inputs = [x.clone().requires_grad_()]
    if residual is not None:
        inputs.append(residual.clone().requires_grad_())
    y = activated(layer, inputs[0], inputs[1] if residual is not None else None, activation)
    first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
    loss = sum(each.square().sum() for each in first)
    found = torch.autograd.grad(loss, [*inputs, *layer.parameters()])
    return {
        "by data": [each.detach() for each in found[: len(inputs)]],
        "by parameters": [each.detach() for each in found[len(inputs) :]],
    }


def differentiate_shards_twice(group, replicas, cut, x, residual, activation):
    """The same of the members of a group, each with a replica of the layer and its shard."""

    def member(rank):
        shard, added = (
            None if each is None else torch.tensor_split(each, CUTS[cut](len(x)))[rank]
            for each in (x, residual)
        )
        return differentiate_twice(replicas[rank], shard, added, activation)

    return members(group, member)


def second_gradients_of(norm, activation, has_residual):
    """Gradients of gradients, as a function of the inputs; of batches' own statistics."""

    def second(x, weight, bias, residual):
        y = norm(
            x, None, None, weight, bias, True, activation=activation,
            residual=residual if has_residual else None,
        )  # fmt: skip
        first = torch.autograd.grad(y.sin().sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(
            sum(each.square().sum() for each in first), (x, weight), create_graph=True
        )

    return second
