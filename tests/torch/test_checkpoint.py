"""Activation checkpointing: a forward pass that is run again moves nothing twice."""

import functools
import importlib
import itertools

import pytest

import bnext

from .support import assert_close, buffers_of, torch

checkpointing = importlib.import_module("torch.utils.checkpoint")

checkpoint = checkpointing.checkpoint

REENTRANT = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not"])


def new_model(library, **options):
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), library.BatchNorm2d(6, **options), torch.nn.ReLU(),
        torch.nn.Conv2d(6, 6, 3, padding=1), library.BatchNorm2d(6, **options), torch.nn.ReLU(),
    )  # fmt: skip


def step(model, call=None, steps=2):
    """Gradients, and the buffers of the layers, after some steps."""
    torch.manual_seed(4)
    for _ in range(steps):
        x = torch.randn(4, 3, 6, 6, requires_grad=True)
        y = (call or model)(x)
        y.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad}
    buffers = [buffers_of(layer) for layer in model if hasattr(layer, "running_mean")]
    return gradients, buffers


def same(actual, expected):
    """To the bit where both are ours; PyTorch counts again, and its statistics move again."""
    for name, gradient in expected[0].items():
        assert_close(actual[0][name], gradient, name, 100.0)
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        for name, value in theirs.items():
            assert_close(ours[name], value, name, 1.0)


def nested(model, use_reentrant):
    """The first half within the whole, both run again."""
    inner = functools.partial(checkpoint, model[:3], use_reentrant=use_reentrant)
    return lambda x: checkpoint(lambda x: model[3:](inner(x)), x, use_reentrant=use_reentrant)


CALLS = {
    "whole": lambda model, re: lambda x: checkpoint(model, x, use_reentrant=re),
    "nested": nested,
    "segments": lambda model, re: lambda x: checkpointing.checkpoint_sequential(
        model, 3, x, use_reentrant=re
    ),
    "no statistics of the second": lambda model, re: lambda x: checkpoint(
        model[3:], model[:3](x), use_reentrant=re
    ),
}  # fmt: skip


@REENTRANT
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("way", CALLS)
def test_checkpoint_moves_statistics_once(way, momentum, use_reentrant, kernel_calls):
    expected = step(new_model(torch.nn, momentum=momentum))
    plain = step(new_model(bnext.torch, momentum=momentum))
    calls = kernel_calls["forward"]
    model = new_model(bnext.torch, momentum=momentum)
    actual = step(model, CALLS[way](model, use_reentrant))
    same(actual, expected)
    for ours, without in zip(actual[1], plain[1], strict=True):
        assert all(torch.equal(ours[name], without[name]) for name in without)
    assert [layer["num_batches_tracked"] for layer in actual[1]] == [2, 2]
    assert kernel_calls["forward"] > 2 * calls, "it was not run again"


def test_checkpoint_of_torch_s_own_moves_them_twice():
    """What we differ from; if this changes, so should the documentation."""
    model = new_model(torch.nn)
    _, buffers = step(model, CALLS["whole"](model, False))
    assert [layer["num_batches_tracked"] for layer in buffers] == [4, 4]


@pytest.mark.parametrize("policy", ["save-convolutions", "save-all", "save-nothing"])
def test_selective_checkpoint(policy):
    """Whose dispatch modes want to see operators, and have results of some of them given back."""
    policies = checkpointing.CheckpointPolicy

    def choose(context, operator, *args, **kwargs):
        saved = policy == "save-all" or (
            policy == "save-convolutions" and "convolution" in str(operator)
        )
        return policies.MUST_SAVE if saved else policies.PREFER_RECOMPUTE

    contexts = functools.partial(checkpointing.create_selective_checkpoint_contexts, choose)
    model = new_model(bnext.torch)
    call = functools.partial(checkpoint, model, use_reentrant=False, context_fn=contexts)
    if policy == "save-all":  # running statistics are written to, which PyTorch then refuses
        layers = [module for module in model if hasattr(module, "running_mean")]
        for layer in layers:
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    same(step(model, call), step(model_like(model), None))


def model_like(model):
    """torch.nn's, with as many statistics."""
    other = new_model(torch.nn)
    for ours, theirs in zip(model, other, strict=True):
        if hasattr(ours, "running_mean") and ours.running_mean is None:
            theirs.running_mean = theirs.running_var = theirs.num_batches_tracked = None
            theirs.track_running_stats = False
    return other


@REENTRANT
def test_checkpoint_in_evaluation_and_of_frozen_layers(use_reentrant):
    for training, frozen in itertools.product((True, False), repeat=2):
        results = []
        for library in (torch.nn, bnext.torch):
            model = new_model(library).train(training)
            for layer in (model[1], model[4]):
                layer.requires_grad_(not frozen)
            call = functools.partial(checkpoint, model, use_reentrant=use_reentrant)
            results.append(step(model, call if library is bnext.torch else None))
        same(results[1], results[0])


@REENTRANT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_checkpoint_in_every_dtype(dtype, use_reentrant):
    """Also what goes to PyTorch's operator, as an empty batch does."""
    for size in (4, 0):
        layer = bnext.torch.BatchNorm1d(5, dtype=dtype)
        x = torch.randn(size, 5).to(dtype).requires_grad_()
        checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
        assert layer.num_batches_tracked == 1
        other = bnext.torch.BatchNorm1d(5, dtype=dtype)
        other(x)
        assert torch.equal(layer.running_var, other.running_var)


@REENTRANT
def test_checkpoint_where_only_torch_has_kernels(use_reentrant, monkeypatch):
    """As on a device without ours: PyTorch's operator is given copies to move."""
    monkeypatch.setattr("bnext.torch.kernels.takes", lambda x: False)
    model = new_model(bnext.torch)
    actual = step(model, functools.partial(checkpoint, model, use_reentrant=use_reentrant))
    same(actual, step(new_model(torch.nn)))


def test_a_forward_pass_in_a_hook_of_the_backward_pass_counts_as_a_repetition():
    """All that runs in a backward pass does; nobody can tell it apart."""
    layer = bnext.torch.BatchNorm1d(5)
    x = torch.randn(4, 5, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: layer(x.detach()) and None)
    with pytest.raises(RuntimeError, match="ambiguous"):  # of the hook's own `and`
        y.sum().backward()
    assert layer.num_batches_tracked == 0
    layer(x)
    assert layer.num_batches_tracked == 1
