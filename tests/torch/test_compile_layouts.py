"""torch.compile: the layouts that operators are given, and the ones that they answer with."""

import copy

import pytest

import bnext

from .support import MEMORIES, assert_close, name_of_dtype, torch

# PyTorch's own, when it first loads inductor.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
SHAPES = [
    (6, 5),
    (4, 5, 3),
    (3, 5, 4, 2),
    (1, 5, 3, 2),
    (3, 1, 4, 2),
    (3, 5, 1, 1),
    (2, 5, 3, 2, 2),
]
LAYOUTS = MEMORIES | {
    "expanded over examples": lambda x: x[:1].expand_as(x),
    "expanded over channels": lambda x: x[:, :1].expand_as(x),
    "expanded": lambda x: x.sum().expand_as(x),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "last two swapped": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "from an offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
forward = torch.ops.bnext.forward_by_batch.default
backward = torch.ops.bnext.backward_by_batch.default


def fake_of(mode, tensor):
    return None if tensor is None else mode.from_tensor(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=name_of_dtype)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operators_answer_in_the_layout_that_was_foretold(shape, dtype):
    """A compiler believes the fake results: with another layout it would read other values."""
    from torch._subclasses import FakeTensorMode

    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn(shape[1], dtype=parameter)
    seen = set()
    for name, lay in LAYOUTS.items():
        x = lay(torch.randn(shape, dtype=dtype))
        if x is None:
            continue
        for of_dy in ("contiguous", "channels_last", name):
            dy = LAYOUTS[of_dy](torch.randn(shape, dtype=dtype))
            if dy is None:
                continue
            y, statistics, first = forward(x, weight, weight, 1e-5)
            real = (y, statistics, first, *backward(dy, x, weight, statistics, 1e-5))
            with FakeTensorMode() as mode:
                given = [fake_of(mode, each) for each in (x, dy, weight, statistics)]
                fake_x, fake_dy, fake_weight, fake_statistics = given
                fake = (
                    *forward(fake_x, fake_weight, fake_weight, 1e-5),
                    *backward(fake_dy, fake_x, fake_weight, fake_statistics, 1e-5),
                )
            for i, (result, told) in enumerate(zip(real, fake, strict=True)):
                assert result.shape == told.shape, (name, of_dy, i)
                assert result.stride() == told.stride(), (name, of_dy, i)
                assert result.dtype == told.dtype, (name, of_dy, i)
            seen.add(y.stride())
    assert len(seen) > 1 or len(shape) < 4 or 1 in shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "axes-reversed", "expanded",
                                    "sliced", "last two swapped"])  # fmt: skip
def test_compile_with_inductor_in_every_layout(layout):
    """Inductor checks the layout of results as they come."""
    torch.manual_seed(1)
    layer = bnext.torch.BatchNorm2d(5)
    torch.compiler.reset()
    call = torch.compile(lambda x: layer(x * 2).relu(), fullgraph=True, dynamic=False)
    reference = copy.deepcopy(layer)
    x = LAYOUTS[layout](torch.randn(3, 5, 4, 2))
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    actual, expected = call(leaves[0]), reference(leaves[1] * 2).relu()
    for y in (actual, expected):
        y.square().sum().backward()
    assert_close(actual, expected, "y", 10.0)
    assert_close(leaves[0].grad, leaves[1].grad, "dx", 10.0)
    assert_close(layer.running_var, reference.running_var, "running_var", 1.0)


@pytest.mark.parametrize("fuse", [False, True], ids=["converted", "fused"])
@pytest.mark.parametrize("groups", [1, 16], ids=["dense", "depthwise"])
def test_compile_gives_kernels_what_convolutions_give(groups, fuse, monkeypatch, small_by_kernels):
    """Inductor lays convolutions out with channels last; nobody copies in between."""
    from bnext.torch import kernels

    seen = []

    def watched(run, count):
        def call(*arguments):
            seen.extend(
                tensor.is_contiguous(memory_format=torch.channels_last)
                for tensor in arguments[:count]
            )
            return run(*arguments)

        return call

    monkeypatch.setattr(kernels, "statistics", watched(kernels.statistics, 1))
    for name in ("backward_by_rows", "activated_backward_by_rows"):
        monkeypatch.setattr(kernels, name, watched(getattr(kernels, name), 2))
    torch.compiler.reset()
    model = bnext.torch.convert(
        torch.nn.Sequential(
            torch.nn.Conv2d(8, 16, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 16, 3, groups=groups), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 8, 1),
        ), fuse=fuse,
    )  # fmt: skip
    reference = copy.deepcopy(model)
    x = torch.randn(4, 8, 12, 12)
    with torch._inductor.config.patch(fx_graph_cache=False):  # code from before is not taken
        torch.compile(model)(x).square().sum().backward()
    assert seen == [True] * 6
    reference(x).square().sum().backward()
    for actual, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fuse", [False, True], ids=["converted", "fused"])
def test_small_calls_leave_convolutions_their_layout(fuse):
    """Operands of a depthwise convolution's derivative have channels last, as in other networks."""
    from torch._inductor.utils import run_and_get_code

    torch.compiler.reset()
    model = bnext.torch.convert(
        torch.nn.Sequential(
            torch.nn.Conv2d(8, 16, 1), torch.nn.BatchNorm2d(16), torch.nn.Hardswish(),
            torch.nn.Conv2d(16, 16, 3, groups=16), torch.nn.BatchNorm2d(16), torch.nn.Hardswish(),
        ), fuse=fuse,
    )  # fmt: skip
    reference = copy.deepcopy(model)
    call = torch.compile(model)
    x = torch.randn(4, 8, 12, 12)
    with torch._inductor.config.patch(fx_graph_cache=False):
        _, (_, code) = run_and_get_code(lambda: call(x).square().sum().backward())
    assert "bnext" not in code.split("async_compile.wait")[-1]
    strides = [line for line in code.splitlines() if "= empty_strided_cpu((4, 16, 12, 12)" in line]
    assert strides
    assert all("(2304, 1, 192, 16)" in line for line in strides), strides
    reference(x).square().sum().backward()
    for actual, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-3)


def test_operators_say_that_they_take_every_layout():
    for operator in (forward, torch.ops.bnext.statistics_and_coefficients.default, backward):
        assert not hasattr(torch.Tag, "flexible_layout") or (
            torch.Tag.flexible_layout in operator.tags
        )
