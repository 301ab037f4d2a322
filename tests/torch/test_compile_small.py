"""torch.compile of small calls: no operator of ours in their graphs, and statistics as exact."""

import copy
import functools

import numpy as np
import pytest

import bnext

from .support import COMPILED, assert_close, buffers_of, name_of_dtype, torch

ACTIVATIONS = bnext.torch.epilogues.ACTIVATIONS
small_calls = bnext.torch.small_calls
pytestmark = COMPILED
GRAPHS = "aot_eager"


@pytest.fixture
def asked(monkeypatch):
    """How often graphs have asked whether their pass is a repetition."""
    from bnext.torch import operators

    times = []
    is_recomputed = operators.is_recomputed

    def watched():
        answer = is_recomputed()
        times.append(answer)
        return answer

    monkeypatch.setattr(operators, "is_recomputed", watched)
    return times


def layer_of(kind, channels, **options):
    layer = getattr(bnext.torch, kind)(channels, **options)
    if layer.affine:
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.uniform_(layer.bias, -1.0, 1.0)
    return layer


def step_of(call, layer, x, dy):
    layer.zero_grad()
    leaf = x.detach().clone().requires_grad_()
    y = call(leaf)
    y.backward(dy)
    results = {"y": y, "dx": leaf.grad}
    results |= {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    buffers = {name: each.clone() for name, each in buffers_of(layer).items() if each is not None}
    return {name: each.detach() for name, each in results.items()} | buffers


def compare(actual, expected, scale):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, name, scale)
    assert actual["y"].stride() == expected["y"].stride()
    assert actual["dx"].stride() == expected["dx"].stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name_of_dtype)
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_small_calls_are_the_layers(dtype, options, kernel_calls):
    layer = layer_of("BatchNorm2d", 7, **options)
    reference = copy.deepcopy(layer)
    call = torch.compile(layer, backend=GRAPHS, fullgraph=True, dynamic=False)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for _ in range(2):
            x, dy = torch.randn(2, 5, 7, 3, 6).to(dtype).add(1.5)
            x = x.contiguous(memory_format=memory_format)
            actual = step_of(call, layer, x, dy)
            assert not kernel_calls
            compare(actual, step_of(reference, reference, x, dy), 10.0)
            assert kernel_calls["backward"] == 1
            kernel_calls.clear()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_small_calls_with_an_activation(name, kernel_calls):
    for residual in (False, True):
        layer = layer_of("BatchNorm1d", 13, activation=name, negative_slope=0.3)
        reference = copy.deepcopy(layer)
        call = torch.compile(layer, backend=GRAPHS, fullgraph=True, dynamic=False)
        x, dy, added = torch.randn(3, 17, 13)
        given = (added,) if residual else ()
        both = [
            step_of(functools.partial(_with, each, given), of, x, dy)
            for each, of in ((call, layer), (reference, reference))
        ]
        compare(*both, 10.0)
        assert kernel_calls.total() == 2, "the eager layer's two passes"
        kernel_calls.clear()


def _with(call, given, x):
    return call(x, *given)


@pytest.mark.parametrize(("ratio", "std"), [(0.0, 1.0), (1e4, 1.0), (1e6, 1.0), (3.0, 1e25)])
@pytest.mark.parametrize("threads", [1, 2])
def test_small_calls_are_exact(ratio, std, threads, kernel_calls):
    """By Inductor's code, against float64: mean/std is the ratio."""
    torch.set_num_threads(threads)
    layer = layer_of("BatchNorm1d", 37, track_running_stats=std == 1.0)  # no room for 1e50
    call = torch.compile(layer, fullgraph=True, dynamic=False)
    x = (torch.randn(203, 37) + ratio) * std
    dy = torch.randn(203, 37)
    actual = step_of(call, layer, x, dy)
    assert not kernel_calls
    wide = torch.nn.BatchNorm1d(37, track_running_stats=std == 1.0).double()
    wide.load_state_dict(layer.state_dict())
    wide.reset_running_stats()
    expected = step_of(wide, wide, x.double(), dy.double())
    for name, value in expected.items():
        found = actual[name].double()
        most = float(value.abs().max()) or 1.0
        error = float((found - value).abs().max()) / most
        assert error < 1e-6, (name, error)


def test_loops_over_values_compute_nothing_of_channels():
    """Roots and quotients are made once for each channel, and not again for each value."""
    from torch._inductor.utils import run_and_get_code

    layer = layer_of("BatchNorm1d", 37)
    call = torch.compile(layer, fullgraph=True, dynamic=False)
    x = torch.randn(23, 37, requires_grad=True)
    _, codes = run_and_get_code(lambda: call(x).sin().sum().backward())
    kernels = [kernel for code in codes for kernel in code.split("void  kernel(")[1:]]
    last = [kernel.rsplit("for(int64_t x0", 1)[-1].split("'''")[0] for kernel in kernels]
    assert any("sqrt" in kernel for kernel in kernels)
    for loop in last:
        assert "sqrt" not in loop and " / " not in loop, loop


def test_small_calls_ask_once_in_a_graph(asked, kernel_calls):
    """A compiler folds what has no inputs to one call, and does not take it for a constant."""
    model = torch.nn.Sequential(
        torch.nn.Linear(9, 11), layer_of("BatchNorm1d", 11), torch.nn.Tanh(),
        torch.nn.Linear(11, 7), layer_of("BatchNorm1d", 7),
    )  # fmt: skip
    call = torch.compile(model, fullgraph=True, dynamic=False)
    call(torch.randn(19, 9)).sum().backward()
    for times in range(3):
        asked.clear()
        call(torch.randn(19, 9)).sum().backward()
        assert asked == [False], times
    assert not kernel_calls
    assert model[4].num_batches_tracked == 4


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backend", [GRAPHS, "inductor"])
def test_small_calls_that_are_repeated_move_statistics_once(backend, use_reentrant, asked):
    from torch.utils.checkpoint import checkpoint

    layer = layer_of("BatchNorm1d", 5)
    reference = copy.deepcopy(layer)
    call = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    for repetition in range(2):
        x = torch.randn(6, 5)
        reference(x)
        leaf = x.clone().requires_grad_()
        checkpoint(call, leaf, use_reentrant=use_reentrant).square().sum().backward()
        for name, value in buffers_of(reference).items():
            assert_close(buffers_of(layer)[name], value, name, 1.0)
        assert asked.count(True) == repetition + 1 or not use_reentrant
        assert leaf.grad.abs().max() > 0


def test_what_is_small(kernel_calls):
    """Fewer values than the limit, of a size that does not change, and not of float64."""
    limit = small_calls.LEAST_VALUES
    for values, dtype, dynamic, small in (
        (limit - 1, torch.float32, False, True),
        (limit, torch.float32, False, False),
        (limit // 2, torch.float64, False, False),
        (limit // 2, torch.float32, True, False),
    ):
        torch.compiler.reset()
        layer = layer_of("BatchNorm1d", 1, dtype=dtype)
        call = torch.compile(layer, backend=GRAPHS, fullgraph=True, dynamic=dynamic)
        call(torch.randn(values, 1, dtype=dtype)).sum().backward()
        assert (not kernel_calls) == small, (values, dtype, dynamic)
        kernel_calls.clear()


def test_checks_before_a_compiled_call_read_little():
    """Of each layer no more than PyTorch's has, and of bnext's modules a few names."""
    from torch._dynamo import guards

    counts = {}
    for kind in (torch.nn.BatchNorm1d, bnext.torch.BatchNorm1d):
        seen = []
        begin = guards.CheckFunctionManager.__init__

        def watched(self, *arguments, begin=begin, seen=seen, **named):
            begin(self, *arguments, **named)
            seen.append(str(self.guard_manager).count("GuardManager"))

        for layers in (1, 9):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(guards.CheckFunctionManager, "__init__", watched)
                torch.compiler.reset()
                model = torch.nn.Sequential(*(kind(5) for _ in range(layers)))
                torch.compile(model, backend="eager", fullgraph=True)(torch.randn(4, 5))
        counts[kind] = np.diff(seen).item(), seen[0]
    theirs, ours = counts.values()
    assert ours[0] <= 1.35 * theirs[0]
    assert ours[1] - theirs[1] <= 60


def test_small_calls_twice_differentiable_where_operators_run():
    """The operator by itself, as a dispatch mode sees it: its derivatives have derivatives."""
    x, weight, bias = torch.randn(6, 3), torch.rand(3), torch.randn(3)
    inputs = [each.requires_grad_() for each in (x, weight, bias)]

    def call(*inputs):
        return small_calls.normalize(*inputs, 1e-5, None)[0]

    def reference(*inputs):
        return torch.nn.functional.batch_norm(inputs[0], None, None, *inputs[1:], True)

    found = []
    for function in (call, reference):
        first = torch.autograd.grad(function(*inputs).pow(3).sum(), inputs, create_graph=True)
        of_first = functools.reduce(torch.add, (each.sin().sum() for each in first))
        second = torch.autograd.grad(of_first, inputs)
        found.append([*first, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
