"""Autograd as PyTorch has it: which gradients are wanted, what is kept, hooks, twice, errors."""

import gc
import itertools
import weakref

import pytest

import bnext

from .support import LIBRARIES, Failure, assert_close, layers, outcome_of, torch

THEIRS, OURS = torch.nn.functional.batch_norm, bnext.torch.functional.batch_norm
WANTED = list(itertools.product([True, False], repeat=3))
STATISTICS = ("batch", "running")


def arguments(statistics, dtype=torch.float64, channels=4, **options):
    mean, var = torch.randn(channels, dtype=dtype), torch.rand(channels, dtype=dtype) + 0.5
    return {"running_mean": mean, "running_var": var, "training": statistics == "batch"} | options


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("given", [("weight", "bias"), ("weight",), ("bias",), ()], ids=str)
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_gradients_of_only_some_inputs(wanted, given, statistics, kernel_calls):
    x, dy = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    options = arguments(statistics)
    parameters = {name: torch.randn(4, dtype=torch.float64) for name in given}
    of = dict(zip(("x", "weight", "bias"), wanted, strict=True))

    def run(function):
        leaves = {"x": x, **parameters}
        leaves = {name: value.clone().requires_grad_(of[name]) for name, value in leaves.items()}
        named = {name: leaves[name] for name in given}
        buffers = {name: options[name].clone() for name in ("running_mean", "running_var")}
        y = function(leaves["x"], **options | buffers, **named)
        if y.requires_grad:
            y.backward(dy)
        return y, {name: leaf.grad for name, leaf in leaves.items()}

    (y, actual), (expected_y, expected) = run(OURS), run(THEIRS)
    assert y.requires_grad == expected_y.requires_grad
    assert_close(y, expected_y, "y")
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, name, 10.0)
    backwards = sum(kernel_calls.values()) - 1
    assert backwards == int(y.requires_grad), kernel_calls


def kept_of(y):
    """How many bytes autograd keeps for the backward pass of `y`, by storage."""
    storages = {}
    for tensor in y.grad_fn.saved_tensors:
        if tensor is not None:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_x_is_not_kept_where_no_parameter_wants_gradients(dtype):
    """In evaluation; and it is freed, as well as what was saved of it."""
    layer = bnext.torch.BatchNorm2d(4).requires_grad_(False).eval()
    leaf = torch.randn(2, 4, 3, 3, dtype=dtype, requires_grad=True)
    x = leaf * 1
    y = layer(x)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None
    y.sum().backward()
    assert leaf.grad.isfinite().all()
    # With parameters that want them it is kept.
    x = leaf * 1
    y = layer.requires_grad_()(x)
    alive = weakref.ref(x)
    del x
    assert alive() is not None
    assert kept_of(y) >= leaf.numel() * leaf.element_size()
    del y
    assert alive() is None


def test_nothing_is_kept_that_no_gradient_needs():
    x = torch.randn(2, 4, 3, 3)
    for layer in (bnext.torch.BatchNorm2d(4), bnext.torch.BatchNorm2d(4).eval()):
        with torch.no_grad():
            assert layer(x).grad_fn is None
        assert layer.requires_grad_(False)(x).grad_fn is None
        with torch.inference_mode():
            y = layer.requires_grad_()(x)
        assert y.is_inference()
        assert y.grad_fn is None


@pytest.mark.parametrize("statistics", STATISTICS)
def test_backward_twice(statistics):
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = OURS(x, weight=weight, **arguments(statistics)).square().sum()
    y.backward(retain_graph=True)
    first = x.grad.clone(), weight.grad.clone()
    for _ in range(2):
        y.backward(retain_graph=True)
    torch.testing.assert_close((x.grad, weight.grad), (3 * first[0], 3 * first[1]))
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


def test_backward_twice_where_nothing_was_kept():
    x = torch.randn(6, 4, requires_grad=True)
    y = OURS(x, torch.zeros(4), torch.ones(4))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_x_changed_in_place_is_noticed():
    for library, training in itertools.product(LIBRARIES.values(), (True, False)):
        layer = library.BatchNorm1d(4).train(training)
        leaf = torch.randn(6, 4, requires_grad=True)
        for changed in ("x", "weight"):
            x = leaf * 1
            y = layer(x)
            with torch.no_grad():
                (x if changed == "x" else layer.weight).add_(1)
            failure = outcome_of(y.sum().backward)
            assert failure.type is RuntimeError
            assert "modified by an inplace operation" in failure.text
            assert "is at version 1; expected version 0" in failure.text or changed == "weight"


def test_buffers_may_change_before_the_backward_pass():
    """What PyTorch keeps of them is what they were; ours never asks."""
    for training in (True, False):
        theirs, ours = (layer.train(training) for layer in layers("BatchNorm1d", 4))
        x = torch.randn(6, 4)
        gradients = []
        for layer, moves in ((ours, True), (theirs, False)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            if moves:
                layer.train()(torch.randn(6, 4))
                layer.running_var.mul_(2)
                layer.reset_running_stats()
            y.square().sum().backward()
            gradients.append((leaf.grad, layer.weight.grad))
        for actual, expected in zip(*gradients, strict=True):
            assert_close(actual, expected, "gradient", 10.0)


def test_others_that_kept_a_buffer_learn_that_it_has_moved():
    layer = bnext.torch.BatchNorm1d(4)
    weight = torch.ones(4, requires_grad=True)
    product = weight * layer.running_mean
    layer(torch.randn(6, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_y_may_be_changed_in_place():
    for training in (True, False):
        results = []
        for layer in layers("BatchNorm2d", 4):
            torch.manual_seed(1)
            x = torch.randn(3, 4, 5, 5, requires_grad=True)
            model = torch.nn.Sequential(layer.train(training), torch.nn.ReLU(inplace=True))
            y = model(x)
            y.sum().backward()
            y = layer(x).mul_(2).add_(1)
            y[0].zero_()
            y.square().sum().backward()
            results.append((y, x.grad, layer.weight.grad))
        for expected, actual in zip(*results, strict=True):
            assert_close(actual, expected, "changed", 100.0)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_hooks_on_gradients(statistics):
    seen = []
    x = torch.randn(6, 4, requires_grad=True)
    y = OURS(x * 1, **arguments(statistics, torch.float32))
    y.register_hook(lambda gradient: gradient * 2)
    y.grad_fn.register_prehook(lambda gradients: seen.append(gradients[0].clone()))
    y.grad_fn.register_hook(lambda into, outof: seen.append(into[0].clone()))
    y.sum().backward()
    assert torch.equal(seen[0], torch.full_like(y, 2))
    assert torch.equal(seen[1], x.grad)


def test_module_hooks():
    """Full backward hooks see the gradients that torch.nn's layers give them."""
    seen = {}
    for name, layer in zip(LIBRARIES, layers("BatchNorm1d", 4), strict=True):
        calls = seen[name] = []
        layer.register_forward_pre_hook(lambda module, given, to=calls: to.append(given[0]))
        layer.register_forward_hook(lambda module, given, y, to=calls: to.append(y))
        layer.register_full_backward_pre_hook(lambda module, dy, to=calls: to.append(dy[0]))
        layer.register_full_backward_hook(lambda module, dx, dy, to=calls: to.append(dx[0]))
        torch.manual_seed(1)
        layer(torch.randn(6, 4, requires_grad=True)).square().sum().backward()
    for expected, actual in zip(*seen.values(), strict=True):
        assert_close(actual, expected, "seen", 10.0)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_saved_tensors_go_through_hooks(statistics):
    """Offloading has them all; packed less exactly, they give gradients that are less exact."""
    x = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(4, requires_grad=True)
    options = arguments(statistics, torch.float32)
    (exact,) = torch.autograd.grad(OURS(x, weight=weight, **options).pow(3).sum(), x)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.to(torch.bfloat16)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.float()):
        y = OURS(x, weight=weight, **options)
    assert sorted(map(len, packed)) == [1, 2]
    (less_exact,) = torch.autograd.grad(y.pow(3).sum(), x)
    assert 0 < (less_exact - exact).abs().max() < 0.1 * exact.abs().max()
    with torch.autograd.graph.save_on_cpu():
        y = OURS(x, weight=weight, **options)
    (offloaded,) = torch.autograd.grad(y.pow(3).sum(), x)
    assert torch.equal(offloaded, exact)


def test_an_error_of_a_hook_is_the_caller_s():
    layer = bnext.torch.BatchNorm1d(4)

    def refuse(tensor):
        raise ValueError("not this one")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda kept: kept):
        failure = outcome_of(layer, torch.randn(6, 4))
    assert failure == Failure(ValueError, "not this one")


def test_anomaly_mode_names_the_pass():
    layer = bnext.torch.BatchNorm1d(4)
    x = torch.randn(6, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="Anomaly Detection"):
        mode = torch.autograd.detect_anomaly(check_nan=True)
    with mode:
        layer(x).sum().backward()
        y = layer(x)
        with (
            pytest.warns(UserWarning, match="Traceback of forward call"),
            pytest.raises(RuntimeError, match=r"'_NormalizationBackward' returned nan values"),
        ):
            y.backward(torch.full_like(y, float("nan")))


def test_gradients_with_a_stride_of_zero_and_of_other_formats():
    x = torch.randn(3, 4, 5, 2)
    for format_of_x, format_of_dy in itertools.product(
        (torch.contiguous_format, torch.channels_last), repeat=2
    ):
        results = []
        dy = torch.randn(3, 4, 5, 2).contiguous(memory_format=format_of_dy)
        for layer in layers("BatchNorm2d", 4):
            leaf = x.clone(memory_format=format_of_x).requires_grad_()
            layer(leaf).sum().backward()
            layer(leaf).backward(dy)
            layer(leaf).permute(1, 2, 3, 0).backward(dy.permute(1, 2, 3, 0))
            results.append((leaf.grad, layer.weight.grad, layer.bias.grad))
        for expected, actual in zip(*results, strict=True):
            assert_close(actual, expected, "gradient", 100.0)


def test_gradients_from_several_threads_add_up():
    """One graph that two threads go backward through; parameters get both."""
    from concurrent.futures import ThreadPoolExecutor

    layer = bnext.torch.BatchNorm1d(4).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: layer.eval()(x).square().sum().backward(), range(16)))
    several = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(several, 16 * layer.weight.grad)
