"""The registered operators by themselves: schemas, fake implementations, autograd formulas."""

import itertools

import pytest

import bnext
from bnext.rows import ROW

from .support import MEMORIES, assert_close, assert_same_format, name_of_dtype, torch

# PyTorch's own, from 2.14 on: opcheck describes tensors that it has cloned.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
opcheck = torch.library.opcheck
forward, backward = (
    torch.ops.bnext.batch_norm_training.default,
    torch.ops.bnext.batch_norm_backward.default,
)
recorded = torch.ops.bnext.forward_by_batch_recorded.default
fused = torch.ops.bnext.fused_batch_norm_training.default
needs_fused = pytest.mark.skipif(
    not bnext.torch.kernels.fuses(torch.ones(1)), reason="this PyTorch has no table of functions"
)
SHAPES = [(6, 5), (4, 5, 3), (3, 5, 4, 2), (1, 5, 3, 2), (2, 5, 3, 2, 2)]


def parameters(dtype, given, wanted=True):
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("weight", "bias"):
        yield torch.randn(5, dtype=kind).requires_grad_(wanted) if name in given else None


def statistics_of(x):
    return forward(x.detach(), None, None, 1e-5)[1]


# Those that opcheck runs with traces of dynamic shapes take longest: they have few of the cases.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("given", [("weight", "bias"), ("weight",), ()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16],
                         ids=name_of_dtype)  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_opcheck(shape, dtype, given):
    for memory in ("contiguous", "channels_last", "axes-reversed", "every-second-channel"):
        x = MEMORIES[memory](torch.randn(shape, dtype=dtype))
        if x is None:
            continue
        dy = MEMORIES["contiguous"](torch.randn(shape, dtype=dtype))
        weight, bias = parameters(dtype, given)
        statistics = statistics_of(x)
        opcheck(forward, (x.requires_grad_(), weight, bias, 1e-5), test_utils=QUICK)
        opcheck(backward, (dy, x, weight, statistics, 1e-5), test_utils=QUICK)
        opcheck(recorded, (x, weight, bias, 1e-5), test_utils=QUICK)
        if bnext.torch.kernels.fuses(x):
            opcheck(fused, (x.requires_grad_(), weight, bias, 1e-5), test_utils=QUICK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of_dtype)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("given", [("weight", "bias"), ()], ids=str)
def test_opcheck_of_compiled_gradients(given, memory, dtype):
    x = MEMORIES[memory](torch.randn(3, 5, 4, 2, dtype=dtype)).requires_grad_()
    weight, bias = parameters(dtype, given)
    opcheck(forward, (x, weight, bias, 1e-5))


def test_opcheck_of_compiled_gradients_of_gradients():
    x, dy = torch.randn(2, 4, 5, 3, dtype=torch.float64).unbind()
    weight, _ = parameters(torch.float64, ("weight",))
    statistics = statistics_of(x)
    opcheck(backward, (dy.requires_grad_(), x.clone().requires_grad_(), weight, statistics, 1e-5))


@pytest.mark.parametrize("given", [("weight", "bias"), ("weight",), ("bias",), ()], ids=str)
def test_operators_gradcheck(given):
    x = torch.randn(5, 5, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = parameters(torch.float64, given)

    def y_of(x, weight, bias):
        return forward(x, weight, bias, 1e-5)[0]

    assert torch.autograd.gradcheck(y_of, (x, weight, bias))
    assert torch.autograd.gradgradcheck(y_of, (x, weight, bias))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operators_do_what_the_functions_do(shape):
    """Those of eager calls, to the bit; and lie in memory as PyTorch's results do."""
    for memory, dtype in itertools.product(MEMORIES, (torch.float32, torch.bfloat16)):
        x = MEMORIES[memory](torch.randn(shape, dtype=dtype))
        if x is None:
            continue
        dy = torch.randn(shape, dtype=dtype)
        weight, bias = parameters(dtype, ("weight", "bias"))
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (weight, bias)]
        ours = x.detach().requires_grad_()
        expected = bnext.torch.functional.batch_norm(ours, None, None, *leaves, True)
        expected.backward(dy)
        leaf = x.detach().requires_grad_()
        y, statistics, first = forward(leaf, weight, bias, 1e-5)
        y.backward(dy)
        assert torch.equal(y, expected)
        assert torch.equal(leaf.grad, ours.grad)
        assert torch.equal(weight.grad, leaves[0].grad)
        assert torch.equal(bias.grad, leaves[1].grad)
        assert_same_format(y, torch.nn.functional.batch_norm(x, None, None, training=True))
        dims = [axis for axis in range(x.dim()) if axis != 1]
        torch.testing.assert_close(statistics[0], x.double().mean(dims))
        torch.testing.assert_close(statistics[2], x.double().var(dims, correction=0))
        assert first.item() == 1
        assert not statistics.requires_grad


@needs_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16],
                         ids=name_of_dtype)  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_operators_do_what_the_others_do(shape, dtype):
    """The same to the bit, but for the last rounding of y; of what is not dense, a copy's."""
    for memory in MEMORIES:
        x = MEMORIES[memory](torch.randn(shape, dtype=dtype) * 3 + 2)
        if x is None:
            continue
        dy = torch.randn(shape, dtype=dtype)
        results = []
        weight, bias = parameters(dtype, ("weight", "bias"))
        for operator in (fused, forward):
            leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
            y, statistics = operator(*leaves, 1e-5)[:2]
            y.backward(dy)
            results.append((y, statistics, *(leaf.grad for leaf in leaves)))
        assert_close(results[0][0], results[1][0], f"y, {memory}")
        assert_same_format(results[0][0], results[1][0])
        for actual, expected in zip(results[0][1:], results[1][1:], strict=True):
            if memory in ("contiguous", "channels_last"):
                assert torch.equal(actual, expected), memory
            elif actual.dtype == torch.float64 and dtype != torch.float64:
                assert_close(actual.float(), expected.float(), memory)
            else:
                assert_close(actual, expected, memory)


@needs_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of_dtype)
def test_fused_operators_at_the_ends_of_the_range(dtype):
    """Of float32: channels of one call each at an end of its own, an ordinary one among them."""
    scales = torch.tensor([1e-43, 1e-40, 1e-38, 1e-30, 1.0, 1e30, 1e37, 3e38], dtype=torch.float64)
    x = (torch.rand(97, 8, 5, dtype=torch.float64) - 0.5) * scales[:, None]
    x[:, 5:] += scales[5:, None] * 0.4
    x = x.to(dtype)
    weight, bias = torch.rand(2, 8) + 0.5
    for eps in (1e-90, 1e-5):
        expected = torch.nn.functional.batch_norm(
            x.double(), None, None, weight.double(), bias.double(), training=True, eps=eps
        )
        y = fused(x, weight, bias, eps)[0]
        assert y.isfinite().all()
        assert_close(y, forward(x, weight, bias, eps)[0], "y", 2.0)
        off = (y.double() - expected).abs().amax((0, 2))
        assert (off < 16 * torch.finfo(dtype).eps).all(), off
    constant = torch.full((9, 2, 4), 3e38, dtype=dtype)
    assert torch.equal(fused(constant, None, None, 1e-40)[0], torch.zeros_like(constant))


def test_operators_tell_a_repetition():
    seen = []
    x = torch.randn(4, 5, requires_grad=True)
    y = x * 1
    y.register_hook(lambda gradient: seen.append(forward(x.detach(), None, None, 1e-5)[2].item()))
    y.sum().backward()
    assert seen == [0]


def test_operators_on_meta_tensors_know_shapes():
    x = torch.empty(3, 5, 4, 2, device="meta", dtype=torch.bfloat16)
    y, statistics, first = forward(x, None, None, 1e-5)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert (statistics.shape, statistics.dtype) == ((len(ROW), 5), torch.float64)
    assert first.dtype == torch.int64
    dx, dweight, dbias = backward(y, x, None, statistics, 1e-5)
    assert dx.shape == x.shape
    assert dweight.shape == dbias.shape == (5,)
    assert dweight.dtype == torch.float32
