"""What PyTorch's profiler sees of a call: one event, with the shapes and the bytes of PyTorch's."""

import copy

import pytest

import bnext

from .support import assert_close, torch

SHAPES = [(4, 8, 6, 6), (8, 16, 40, 40)]  # results beside their header, and in the pool


def profiled(call, **options):
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, record_shapes=True, **options
    ) as profile:
        result = call()
    return result, profile.events()


def event_of(events, name):
    (found,) = [each for each in events if each.name == name]
    return found


def pair(shape):
    layer = torch.nn.BatchNorm2d(shape[1])
    return layer, bnext.torch.convert(copy.deepcopy(layer))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_call_is_one_event_with_its_bytes(shape, training, recorded):
    x = torch.randn(shape, requires_grad=recorded)
    _, ours = pair(shape)
    y, events = profiled(lambda: ours.train(training)(x))
    event = event_of(events, "bnext::batch_norm")
    assert event.cpu_memory_usage == y.nbytes
    assert event.input_shapes[0] == list(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_backward_pass_has_the_bytes_of_pytorch_s(shape, training):
    found = []
    for layer in pair(shape):
        x = torch.randn(shape, requires_grad=True)
        y = layer.train(training)(x)
        dy = torch.randn_like(y)
        node = y.grad_fn.name().removesuffix("0")
        _, events = profiled(lambda y=y, dy=dy: y.backward(dy))
        (event,) = [each for each in events if each.name.removesuffix("0") == node]
        found.append(event.cpu_memory_usage)
    assert found[0] == found[1]
    assert found[0] >= x.nbytes


def test_what_is_freed_was_seen_before():
    """Sums over a step are not negative, as they are if results come from elsewhere."""
    totals = []
    for layer in pair(SHAPES[1]):
        model = torch.nn.Sequential(layer, torch.nn.ReLU())
        x = torch.randn(SHAPES[1], requires_grad=True)
        model(x).sum().backward()  # gradients have memory
        _, events = profiled(lambda model=model, x=x: model(x).sum().backward())
        totals.append(events.key_averages())
    sums = [sum(each.self_cpu_memory_usage for each in every) for every in totals]
    assert sums[0] == sums[1]


def test_results_come_from_elsewhere_without_a_profiler_of_memory():
    shape = SHAPES[1]
    _, ours = pair(shape)
    x = torch.randn(shape)
    before = bnext._core.pool_figures()
    y = ours(x)
    assert bnext._core.pool_figures() != before
    expected = profiled(lambda: copy.deepcopy(ours)(x))[0]
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()


def test_profiled_results_have_the_formats_of_others():
    for x in (
        torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last),
        torch.randn(4, 8, 6, 6)[:, :, ::2],
        torch.randn(4, 8, 6, 6).bfloat16(),
        torch.randn(0, 8, 6, 6),
        torch.randn(4, 8, 6, 6, dtype=torch.float64),
    ):
        layer = bnext.torch.BatchNorm2d(8, dtype=x.dtype)
        layer.eval()
        expected = copy.deepcopy(layer)(x)
        with torch.device("meta"):  # of tensors that are made without a device
            actual, _ = profiled(lambda layer=layer, x=x: layer(x))
        assert_close(actual, expected, "y")
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "group_norm", "instance_norm"])
def test_other_norms_have_events_of_their_names(norm):
    x = torch.randn(4, 64, 16, 16)
    arguments = {
        "layer_norm": ((16, 16),), "rms_norm": ((16, 16),), "group_norm": (8,), "instance_norm": (),
    }[norm]  # fmt: skip
    function = getattr(bnext.torch.functional, norm, None)
    if function is None:
        from bnext.torch import cell_functional, row_functional

        function = getattr(cell_functional, norm, None) or getattr(row_functional, norm)
    y, events = profiled(lambda: function(x, *arguments))
    assert event_of(events, f"bnext::{norm}").cpu_memory_usage == y.nbytes
