"""Training on synthetic data: the same network with PyTorch's layers, with bnext's, with none."""

import copy

import torch

import bnext.torch
from benchmarks.models import networks

LAYERS = {"torch": "PyTorch's", "bnext": "bnext's", "none": "none"}
CLASSES = 10
BATCHES = 4  # that are gone through in turn
SEED = 20


class Training:
    """A network, its data and its optimizer, ready for one step after the other.

    Parameters
    ----------
    case : Case
    layers : str
        Of `LAYERS`: whose batch normalization the network has. "none" leaves it out.
    rate : float
        Of learning; at 0 all steps are alike.
    precise : bool
        Compute in float64.
    """

    def __init__(self, case, layers, rate=0.0, precise=False):
        self.case = case
        self.network = with_layers(_network(case, precise), layers)
        self.batches = _batches(case, precise)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4
        )
        self.steps = 0

    def step(self):
        """Take one step; the loss before it, as a tensor that may not be there yet."""
        x, labels = self.batches[self.steps % BATCHES]
        self.steps += 1
        self.optimizer.zero_grad()
        narrow = self.case.dtype == "bfloat16"
        with torch.autocast(self.case.device, torch.bfloat16, enabled=narrow):
            loss = torch.nn.functional.cross_entropy(self.network(x), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def finished_step(self):
        """Take one step, and wait until it is over."""
        self.step()
        if self.case.device == "cuda":
            torch.cuda.synchronize()


def sgd_step(network, x, labels, narrow=False, **options):
    """A call of one step of stochastic gradient descent; `narrow`: in bfloat16, by autocast."""
    optimizer = torch.optim.SGD(network.parameters(), **options)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = torch.nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()

    return step


def with_layers(network, layers):
    """A copy of a network of PyTorch's layers, with those of `layers` instead."""
    network = copy.deepcopy(network)
    if layers == "bnext":
        return bnext.torch.convert(network)
    if layers == "none":
        for module in network.modules():
            for name, child in module.named_children():
                if isinstance(child, NORMALIZATIONS):
                    setattr(module, name, torch.nn.Identity())
    return network


NORMALIZATIONS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


def normalizations(network):
    """The layers of batch normalization in a network, whoever's they are."""
    return [module for module in network.modules() if isinstance(module, NORMALIZATIONS)]


def _network(case, precise):
    torch.manual_seed(SEED)  # initial values are drawn on the CPU, whatever the device
    network = networks.BUILDERS[case.network]().to(case.device)
    if precise:
        network = network.double()
    if case.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def _batches(case, precise):
    """Noisy pictures of some classes, so that there is something to learn."""
    generator = torch.Generator().manual_seed(SEED + 1)
    dtype = torch.float64 if precise else torch.float32
    pictures = torch.randn((CLASSES, *case.shape[1:]), generator=generator)
    found = []
    for _ in range(BATCHES):
        labels = torch.randint(CLASSES, (case.batch,), generator=generator)
        x = pictures[labels] + torch.randn(case.shape, generator=generator)
        x = x.to(case.device, dtype)
        if case.channels_last:
            x = x.to(memory_format=torch.channels_last)
        found.append((x, labels.to(case.device)))
    return found
