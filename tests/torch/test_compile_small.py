"""torch.compile of small calls: no operator of ours in their graphs, and statistics as exact."""

import copy
import functools
import re

import numpy as np
import pytest

import bnext

from .support import COMPILED, assert_close, buffers_of, name_of_dtype, torch

ACTIVATIONS = bnext.torch.epilogues.ACTIVATIONS
small_calls = bnext.torch.small_calls
pytestmark = COMPILED
GRAPHS = "aot_eager"


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
        assert not re.search("sqrt| / ", loop), loop


def test_graphs_of_small_calls_call_nothing_of_ours(kernel_calls):
    """What a compiler is given has PyTorch's operations alone."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func

    seen = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    layer = layer_of("BatchNorm1d", 11)
    backend = aot_autograd(fw_compiler=look, bw_compiler=look)
    torch.compile(layer, backend=backend, fullgraph=True)(torch.randn(19, 11)).sum().backward()
    assert any(name.startswith("aten.") for name in seen)
    assert not any("bnext" in name for name in seen)
    assert not kernel_calls


@pytest.mark.parametrize("options", [{}, {"activation": "silu"}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (40, 5, 13, 17)], ids=str)
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backend", ["eager", GRAPHS])
def test_repeated_calls_move_statistics_once(backend, use_reentrant, shape, options):
    """Small ones and others, in turns with calls that nothing repeats."""
    layer = layer_of("BatchNorm2d" if len(shape) == 4 else "BatchNorm1d", 5, **options)
    check_repeated(layer, shape, backend, use_reentrant)


@pytest.mark.parametrize("kind", ["BatchRenorm2d", "InstanceNorm2d"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_repeated_calls_of_others_move_statistics_once(kind, use_reentrant):
    options = {"track_running_stats": True, "affine": True} if kind == "InstanceNorm2d" else {}
    layer = layer_of(kind, 5, **options)
    check_repeated(layer, (6, 5, 3, 7), GRAPHS, use_reentrant)


def check_repeated(layer, shape, backend, use_reentrant):
    from torch.utils.checkpoint import checkpoint

    reference = copy.deepcopy(layer)
    call = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    for _ in range(3):
        for repeats in (False, True):
            x = torch.randn(shape)
            reference(x)
            leaf = x.clone().requires_grad_()
            y = checkpoint(call, leaf, use_reentrant=use_reentrant) if repeats else call(leaf)
            y.square().sum().backward()
            for name, value in buffers_of(reference).items():
                assert_close(buffers_of(layer)[name], value, name, 1.0)
            assert leaf.grad.abs().max() > 0


def test_a_call_that_is_compiled_within_a_backward_pass():
    """It moves nothing; the next call does."""
    layer = layer_of("BatchNorm1d", 5)
    call = torch.compile(layer, backend=GRAPHS, fullgraph=True, dynamic=False)
    x = torch.randn(6, 5)
    leaf = x.clone().requires_grad_()
    leaf.register_hook(lambda _: call(x))
    leaf.sum().backward()
    assert layer.num_batches_tracked == 0
    assert not layer.running_mean.any()
    call(x)
    assert layer.num_batches_tracked == 1
    assert layer.running_mean.abs().min() > 0


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
