"""`bnext.torch.convert` and `revert` of layers besides batch normalization."""

import copy
import pickle

import pytest

import bnext

from .norms import small  # noqa: F401
from .support import torch

from torch import nn  # isort: skip - of which there is nothing without PyTorch


def test_convert_cells():
    def model():
        return torch.nn.Sequential(
            torch.nn.GroupNorm(3, 6), torch.nn.InstanceNorm2d(6, track_running_stats=True),
            torch.nn.BatchNorm2d(6), torch.nn.InstanceNorm1d(6), torch.nn.InstanceNorm3d(6),
        )  # fmt: skip

    ours = [
        bnext.torch.GroupNorm, bnext.torch.InstanceNorm2d, bnext.torch.BatchNorm2d,
        bnext.torch.InstanceNorm1d, bnext.torch.InstanceNorm3d,
    ]  # fmt: skip
    theirs = [type(layer) for layer in model()]

    def kinds(model):
        return [type(layer) for layer in model]

    assert kinds(bnext.torch.convert(model(), norms="all")) == ours
    assert kinds(bnext.torch.convert(model(), norms="group")) == [ours[0], *theirs[1:]]
    some = bnext.torch.convert(model(), norms=("instance",))
    assert kinds(some) == [theirs[0], ours[1], theirs[2], *ours[3:]]
    assert kinds(bnext.torch.convert(model())) == [*theirs[:2], ours[2], *theirs[3:]]
    assert kinds(bnext.torch.revert(bnext.torch.convert(model(), norms="all"))) == theirs
    assert "kernels=bnext" in repr(some)
    state = bnext.torch.convert(model(), norms="all").state_dict()
    model().load_state_dict(state)


def model():
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.Sequential(nn.RMSNorm(8), nn.BatchNorm1d(8))
    )


def test_convert_and_revert_by_names():
    for norms, kinds in (
        ("batch", (nn.LayerNorm, nn.RMSNorm, bnext.torch.BatchNorm1d)),
        ("layer", (bnext.torch.LayerNorm, nn.RMSNorm, nn.BatchNorm1d)),
        ({"layer", "rms"}, (bnext.torch.LayerNorm, bnext.torch.RMSNorm, nn.BatchNorm1d)),
        ("all", (bnext.torch.LayerNorm, bnext.torch.RMSNorm, bnext.torch.BatchNorm1d)),
    ):
        network = model()
        x, state = torch.randn(5, 6), copy.deepcopy(network.state_dict())
        expected = network(x)
        parameters = list(network.parameters())
        assert bnext.torch.convert(network, norms=norms) is network
        assert (type(network[1]), type(network[2][0]), type(network[2][1])) == kinds
        network.load_state_dict(state)
        assert torch.allclose(network(x), expected, atol=1e-5)
        bnext.torch.convert(network, norms=norms)
        bnext.torch.revert(network)
        kinds = (type(network[1]), type(network[2][0]), type(network[2][1]))
        assert kinds == (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d)
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert type(bnext.torch.convert(model())[1]) is nn.LayerNorm
    for norms, text in (("group_", "got 'group_'"), (("batch", 3), "got 3"), (7, "got 7")):
        with pytest.raises(ValueError, match=f"norms: expected 'all' or names among .*{text}"):
            bnext.torch.convert(model(), norms=norms)


def test_a_computation_of_its_own_stays_as_it_is():
    class Own(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x, self.normalized_shape) + 1

    network = nn.Sequential(Own(3), nn.LayerNorm(3))
    with pytest.warns(bnext.torch.ConversionWarning, match="1 layer of normalization stays"):
        bnext.torch.convert(network, norms="all")
    assert type(network[0]) is Own
    assert type(network[1]) is bnext.torch.LayerNorm
    (left,) = bnext.torch.report(network).left
    assert (left.name, left.norm) == ("0", "layer")
    assert left.reason.endswith("Own has a computation of its own")


@pytest.mark.parametrize("norm", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
def test_lazy_instance_norms_become_ours(norm):
    """At their first call, whose result is ours as well; and back."""
    x = torch.randn(2, 3, *(4,) * int(norm[-2]))
    lazy = getattr(torch.nn, f"Lazy{norm}")
    network = torch.nn.Sequential(lazy(affine=True), lazy())
    assert bnext.torch.convert(network, norms="instance") is network
    assert [type(layer) for layer in network] == [getattr(bnext.torch, f"Lazy{norm}")] * 2
    assert "kernels=bnext" in repr(network[0])
    y = network(x)
    assert [type(layer) for layer in network] == [getattr(bnext.torch, norm)] * 2
    torch.testing.assert_close(y, network(x))
    bnext.torch.revert(network)
    assert [type(layer) for layer in network] == [getattr(torch.nn, norm)] * 2
    torch.testing.assert_close(y, network(x))
    back = bnext.torch.revert(bnext.torch.convert(torch.nn.Sequential(lazy()), norms="all"))
    assert type(back[0]) is lazy


class Named(torch.nn.GroupNorm):
    """A subclass that inherits PyTorch's forward."""

    def __init__(self, channels):
        super().__init__(3, channels)


class Scaled(torch.nn.InstanceNorm2d):
    """One that calls it."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_subclasses_of_cells_are_converted():
    network = torch.nn.Sequential(Named(6), Scaled(6, affine=True))
    x = torch.randn(2, 6, 5, 5)
    expected = network(x)
    bnext.torch.convert(network, norms="all")
    assert isinstance(network[0], Named)
    assert isinstance(network[0], bnext.torch.GroupNorm)
    assert isinstance(network[1], bnext.torch.InstanceNorm2d)
    assert type(network[0]).__name__ == "Named"
    torch.testing.assert_close(network(x), expected)
    again = pickle.loads(pickle.dumps(network))
    assert type(again[0]) is type(network[0])
    report = bnext.torch.report(network)
    assert [each.norm for each in report.exchanged] == ["group", "instance"]
    assert str(report).startswith("2 of 2 layers of normalization are bnext's")
    bnext.torch.revert(network)
    assert [type(layer) for layer in network] == [Named, Scaled]
    assert [each.reason for each in bnext.torch.report(network).left] == [
        f"not converted yet: bnext.torch.convert(norms={name!r}) exchanges it"
        for name in ("group", "instance")
    ]
