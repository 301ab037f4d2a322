"""`bnext.torch.LayerNorm` and `RMSNorm` of tensors on a GPU, by the emulated kernels.

All tensors say that they are there (benchmarks/pretended_gpu.py). PyTorch's own operators, which
run on the CPU, give what results are compared with.
"""

import copy
import pickle

import pytest

import bnext

from .roads import DTYPES, both_ways, torch

from bnext.torch import row_functional  # isort: skip
from bnext.torch.row_functional import layer_norm, rms_norm  # isort: skip

pytestmark = pytest.mark.usefixtures("pretended", "seeded")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}
PAIRS = [(bnext.torch.LayerNorm, torch.nn.LayerNorm), (bnext.torch.RMSNorm, torch.nn.RMSNorm)]
pairs = pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["layer", "rms"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
FUNCTIONS = {"layer": (layer_norm, torch.nn.functional.layer_norm),
             "rms": (rms_norm, torch.nn.functional.rms_norm)}  # fmt: skip
functions = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    """Calls of any size run the kernels."""
    monkeypatch.setattr(row_functional, "LEAST_VALUES", 0)


@pytest.fixture
def launches(pretended):
    """Counts the kernels that a call launches."""

    def count(call):
        pretended.record(True)
        try:
            result = call()
        finally:
            requests = pretended.record(False)
        return result, sum(what == "run" for what, _ in requests)

    return count


def drawn(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    return layer


def step(layer, x, dy, **more):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x, **more)
    y.backward(dy)
    return [y.detach(), x.grad, *(each.grad for each in layer.parameters())]


def check_same(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@dtypes
@pairs
def test_a_step_is_as_pytorchs(launches, ours, theirs, dtype):
    for shape, normalized in (((6, 5, 20), 20), ((3, 4, 7), (4, 7)), ((50, 36), (36,)), ((9,), 9)):
        x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        layer, own = drawn(theirs(normalized, dtype=dtype)), ours(normalized, dtype=dtype)
        own.load_state_dict(layer.state_dict())
        got, count = launches(lambda own=own, x=x, dy=dy: step(own, x, dy))
        assert count == 3  # forward, backward, the sums of all blocks
        check_same(got, step(layer, x, dy), 2 * TOLERANCE[dtype])


@pairs
def test_16_bits_beside_parameters_of_float32(launches, ours, theirs):
    """PyTorch's layers do not take these: it computes in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        x, dy = torch.randn(6, 5, 20).to(dtype), torch.randn(6, 5, 20).to(dtype)
        layer, own = drawn(theirs(20)), ours(20)
        own.load_state_dict(layer.state_dict())
        got, count = launches(lambda own=own, x=x, dy=dy: step(own, x, dy))
        assert count == 3
        y, dx, *parameters = step(layer, x.float(), dy.float())
        check_same(got, [y.to(dtype), dx.to(dtype), *parameters], 2 * TOLERANCE[dtype])


@functions
@pytest.mark.parametrize("wants", ["x", "weight", "nothing"])
def test_what_needs_no_gradient_is_not_computed(launches, name, wants):
    ours, theirs = FUNCTIONS[name]
    x, weight, dy = torch.randn(8, 20), torch.rand(20), torch.randn(8, 20)

    def call(function):
        given, scale = x.clone().requires_grad_(wants == "x"), weight.clone()
        scale.requires_grad_(wants == "weight")
        y = function(given, [20], scale)
        if wants == "nothing":
            return [y]
        return [y.detach(), *torch.autograd.grad(y, given if wants == "x" else scale, dy)]

    got, count = launches(lambda: call(ours))
    assert count == {"x": 2, "weight": 3, "nothing": 1}[wants]
    check_same(got, call(theirs), 2e-5)


@functions
def test_views_and_expanded_gradients(launches, name):
    """Data that is no matrix is copied, and what sums send back has no memory of its own."""
    ours, theirs = FUNCTIONS[name]
    whole = torch.randn(6, 24, 5)
    views = [whole.transpose(1, 2), whole[:, ::2].transpose(1, 2), whole[:, :, 1:].mT]

    def call(function, view):
        leaf = view.detach().requires_grad_()
        weight = torch.full(view.shape[-1:], 0.5, requires_grad=True)
        y = function(leaf, view.shape[-1:], weight)
        return [y.detach(), *torch.autograd.grad(y.sum(), (leaf, weight))]

    for view in views:
        got, count = launches(lambda view=view: call(ours, view))
        assert count == 3
        check_same(got, call(theirs, view), 5e-5)


@functions
def test_hooks_on_saved_tensors(name):
    """What they give back lies elsewhere; the statistics of the forward call are still used."""
    ours, theirs = FUNCTIONS[name]
    x, dy = torch.randn(6, 20), torch.randn(6, 20)

    def call(function):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
            y = function(leaf, [20])
        return torch.autograd.grad(y, leaf, dy)

    check_same(call(ours), call(theirs), 2e-5)


@functions
def test_second_derivatives(name):
    function = FUNCTIONS[name][0]
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(7, dtype=torch.float64, requires_grad=True)

    def call(x, weight):
        return function(x, [7], weight, eps=1e-3)

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))


@pairs
@pytest.mark.parametrize(
    ("name", "adds"),
    [("relu", False), ("silu", False), ("relu", True), ("silu", True), (None, True)],
)
def test_an_activation_and_a_residual(launches, ours, theirs, name, adds):
    x, dy, residual = (torch.randn(9, 4, 20) for _ in range(3))
    act = {"relu": torch.relu, "silu": torch.nn.functional.silu, None: lambda z: z}[name]
    layer, own = drawn(theirs(20)), ours(20, activation=name)
    own.load_state_dict(layer.state_dict())

    def call(norm, compose):
        leaf, added = x.clone().requires_grad_(), residual.clone().requires_grad_()
        inputs = (leaf, *norm.parameters(), *([added] if adds else []))
        if compose:
            y = act(norm(leaf) + added if adds else norm(leaf))
        else:
            y = norm(leaf, residual=added) if adds else norm(leaf)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy)]

    got, count = launches(lambda: call(own, False))
    assert count == 3
    check_same(got, call(layer, True), 5e-5)


@functions
def test_functions_on_plain_tensors_take_the_short_road(roads, name):
    x, dy, weight = torch.randn(6, 20), torch.randn(6, 20), torch.rand(20)

    def everything():
        if name == "layer":
            y, saved = bnext.layer_norm_forward(x, 20, weight, weight)
            return y, saved.rows, bnext.layer_norm_backward(dy, x, saved, weight)
        y, saved = bnext.rms_norm_forward(x, 20, weight)
        return y, saved.rows, bnext.rms_norm_backward(dy, x, saved, weight)

    both_ways(roads, everything)


def test_layers_of_arrays_take_tensors():
    x, dy = torch.randn(6, 4, 20), torch.randn(6, 4, 20)
    norm = bnext.LayerNorm((4, 20)).to(x)
    assert isinstance(norm.weight, torch.Tensor)
    theirs = torch.nn.LayerNorm((4, 20))
    got = [norm(x), norm.backward(dy), norm.weight_grad, norm.bias_grad]
    check_same(got, step(theirs, x, dy), 2e-5)


@pairs
def test_copies_and_pickles(ours, theirs):
    own = drawn(ours(20))
    x, dy = torch.randn(6, 20), torch.randn(6, 20)
    expected = step(own, x, dy)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        check_same(step(other, x, dy), expected, 0)


@functions
def test_pytorchs_errors(name):
    ours, theirs = FUNCTIONS[name]
    for call in (
        lambda norm: norm(torch.randn(4, 6), [5]),
        lambda norm: norm(torch.randn(4, 6), [6], torch.ones(5)),
        lambda norm: norm(torch.ones(4, 6, dtype=torch.int32), [6]),
    ):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            call(theirs)
        with pytest.raises(type(expected.value)) as found:
            call(ours)
        assert str(found.value) == str(expected.value)


@functions
@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_nothing_gives_nothing(name, shape):
    ours, theirs = FUNCTIONS[name]
    x = torch.empty(shape)
    check_same([ours(x, shape[1:])], [theirs(x, shape[1:])], 0)
