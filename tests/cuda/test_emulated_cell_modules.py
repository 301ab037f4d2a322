"""Group and instance normalization of PyTorch's tensors on a GPU, without one."""

import pytest

import bnext

from .roads import DTYPES, assert_equal, both_ways, torch

pytestmark = pytest.mark.usefixtures("pretended", "seeded")

SHAPES = [(16, 8, 33, 9), (8, 12, 400), (2, 6, 9, 17, 19)]  # beyond the values left to PyTorch
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = [(s, False) for s in SHAPES] + [(s, True) for s in SHAPES if len(s) in LAST]
TOLERANCE = {
    torch.float32: 2e-5, torch.float64: 1e-11, torch.float16: 4e-3, torch.bfloat16: 3e-2,
}  # fmt: skip


def arguments(shape, dtype, last=False):
    x, dy = ((torch.randn(shape) + 0.5).to(dtype) for _ in range(2))
    if last:
        x, dy = (t.to(memory_format=LAST[len(shape)]) for t in (x, dy))
    return x, dy


def norms(shape, dtype, **options):
    """A group norm and an instance norm, with parameters other than 1 and 0."""
    instance = getattr(bnext.torch, f"InstanceNorm{len(shape) - 2}d")
    made = (
        bnext.torch.GroupNorm(shape[1] // 2, shape[1], **options),
        instance(shape[1], affine=True, **options),
    )
    for norm in made:
        if dtype == torch.float64:
            norm.double()
        with torch.no_grad():
            norm.weight.normal_(1, 0.5)
            norm.bias.normal_()
    return made


def gradients(norm, x, dy):
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(leaf)
    return y, *torch.autograd.grad(y, (leaf, *norm.parameters()), dy)


def peer_of(norm):
    """PyTorch's layer with the same parameters."""
    if isinstance(norm, torch.nn.GroupNorm):
        peer = torch.nn.GroupNorm(norm.num_groups, norm.num_channels)
    else:
        peer = getattr(torch.nn, type(norm).__name__)(norm.num_features, affine=True)
    peer.double().load_state_dict({k: v.double() for k, v in norm.state_dict().items()})
    return peer


@pytest.fixture
def launches(pretended):
    """The launches so far; how many there were, at the end of a test, is for the test."""
    pretended.record(True)
    yield lambda: [what for what, _ in pretended.record(True)].count("run")
    pretended.record(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "last"), LAYOUTS, ids=str)
def test_both_passes_are_pytorchs(launches, shape, last, dtype):
    x, dy = arguments(shape, dtype, last)
    for norm in norms(shape, dtype):
        launches()
        found = gradients(norm, x, dy)
        assert launches() > 0
        expected = gradients(peer_of(norm), x.double(), dy.double())
        assert found[0].dtype == found[1].dtype == x.dtype
        assert found[0].stride() == found[1].stride() == x.stride()
        for actual, wanted in zip(found, expected, strict=True):
            scale = float(wanted.detach().abs().max())
            error = float((actual.double() - wanted).detach().abs().max())
            assert error <= TOLERANCE[dtype] * max(scale, 1)


@pytest.mark.parametrize(("shape", "last"), LAYOUTS[::2], ids=str)
def test_roads(roads, shape, last):
    """Plain tensors, and those that are seen one by one."""
    x, dy = arguments(shape, torch.float32, last)
    for norm in norms(shape, torch.float32):
        both_ways(roads, lambda norm=norm: gradients(norm, x, dy))


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_activations(launches, name):
    x, dy = arguments(SHAPES[0], torch.float64)
    for norm in norms(SHAPES[0], torch.float64, activation=name):
        launches()
        found = gradients(norm, x, dy)
        assert launches() > 0
        activation = {"relu": torch.nn.ReLU, "silu": torch.nn.SiLU}[name]()
        peer = torch.nn.Sequential(peer_of(norm), activation)
        for actual, wanted in zip(found, gradients(peer, x, dy), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


def test_running_statistics_move_and_normalize(launches):
    x, dy = arguments(SHAPES[0], torch.float32)
    ours, theirs = (
        module.InstanceNorm2d(8, momentum=0.3, track_running_stats=True, affine=True)
        for module in (bnext.torch, torch.nn)
    )
    for training in (True, True, False):
        launches()
        results = [gradients(norm.train(training), x, dy) for norm in (ours, theirs)]
        assert launches() > 0
        for actual, wanted in zip(*results, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
        for actual, wanted in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


def test_16_bits_beside_their_own_parameters(launches):
    """Parameters of 16 bits are widened, as on the CPU."""
    x, dy = arguments(SHAPES[0], torch.bfloat16)
    for norm in norms(SHAPES[0], torch.bfloat16):
        wide = gradients(norm, x, dy)
        norm.bfloat16()
        launches()
        narrow = gradients(norm, x, dy)
        assert launches() > 0
        assert narrow[2].dtype == torch.bfloat16
        torch.testing.assert_close(narrow[0], wide[0], rtol=2e-2, atol=5e-2)


def test_double_backward():
    """By formulas of PyTorch's operations."""
    x, _ = arguments((16, 4, 24, 24), torch.float64)
    for norm in norms(x.shape, torch.float64):
        found = []
        for layer in (norm, peer_of(norm)):
            leaf = x.clone().requires_grad_()
            (dx,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
            found.append(torch.autograd.grad(dx.square().sum(), leaf)[0])
        torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


def test_registered_operators():
    """As compiled graphs call them; `saved` is made of the rows again."""
    x, dy = arguments(SHAPES[0], torch.float32)
    for norm in norms(SHAPES[0], torch.float32):
        groups = getattr(norm, "num_groups", 8)
        leaf = x.clone().requires_grad_()
        y, rows = torch.ops.bnext.group_norm_training(leaf, norm.weight, norm.bias, groups, 1e-5)
        assert rows.shape == (5, 16, groups)
        found = y, *torch.autograd.grad(y, (leaf, norm.weight, norm.bias), dy)
        assert_equal(list(found), list(gradients(norm, x, dy)))


def test_a_frozen_layer():
    x, dy = arguments(SHAPES[0], torch.float32)
    for norm in norms(SHAPES[0], torch.float32):
        expected = gradients(norm, x, dy)[1]
        norm.requires_grad_(False)
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(norm(leaf), leaf, dy)
        assert torch.equal(dx, expected)
