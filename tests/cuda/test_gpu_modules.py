"""On a GPU: the layers that `convert` makes, beside PyTorch's own there and in float64 here.

Compiled, in autocast, under activation checkpointing, and a whole training step as a CUDA graph.
"""

import copy
import itertools

import pytest

import bnext

from . import gpu

pytestmark = [
    pytest.mark.gpu,
    # PyTorch's own, about what it uses itself.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]

SHAPES = [(64, 20), (16, 12, 33), (8, 12, 15, 17), (1, 12, 9, 8), (4, 6, 5, 7, 9)]
# Units in the last place, of the largest magnitude, that a result may be off what float64 gives.
# 16 bits: rounded once, from float32. float32: the sums and the few operations after them.
UNITS = {"float32": 16.0, "float64": 64.0, "float16": 1.01, "bfloat16": 1.01}


@pytest.fixture
def torch(tensors):
    import bnext.torch  # noqa: F401

    tensors.xp.manual_seed(0)
    return tensors.xp


def layer_of(torch, shape, dtype):
    layer = getattr(torch.nn, f"BatchNorm{max(len(shape) - 2, 1)}d")(shape[1], dtype=dtype)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            tensor.copy_(torch.rand(shape[1]) + 0.5)
    return layer


def results_of(layer, x, dy):
    leaf = x.detach().clone().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    results = {"y": y.detach(), "dx": leaf.grad}
    results |= {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return results | dict(layer.named_buffers())


def check(torch, actual, expected):
    for name, value in expected.items():
        there = actual[name].detach()
        assert there.device.type == gpu.DEVICE, name
        if not value.is_floating_point():
            assert there.item() == value.item(), name
            continue
        unit = torch.finfo(there.dtype).eps * value.detach().abs().max()
        units = UNITS[str(there.dtype).removeprefix("torch.")]
        off = (there.double().cpu() - value.detach()).abs().max()
        assert off <= units * unit, (name, (off / unit).item())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("parameters", ["own", "float32"])
@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_of_tensors_beside_float64(torch, shape, dtype, parameters, training):
    if parameters == "float32" and dtype in ("float32", "float64"):
        return
    kind, own = getattr(torch, dtype), getattr(torch, dtype if parameters == "own" else "float32")
    formats = [torch.contiguous_format]
    formats += {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(len(shape), [])
    for memory_format in formats:
        theirs = layer_of(torch, shape, own).train(training)
        exact = copy.deepcopy(theirs).double()
        ours = bnext.torch.convert(copy.deepcopy(theirs)).to(gpu.DEVICE)
        x, dy = ((torch.randn(2, *shape) * 2 + 1).to(kind)).unbind()
        x = x.to(gpu.DEVICE).contiguous(memory_format=memory_format)
        actual = results_of(ours, x, dy.to(gpu.DEVICE))
        expected = results_of(exact, x.double().cpu(), dy.double())
        check(torch, actual, expected)
        assert actual["y"].dtype == kind
        assert actual["y"].is_contiguous(memory_format=memory_format)
        there = theirs.to(gpu.DEVICE)(x)
        assert actual["y"].stride() == there.stride()


def test_layers_of_tensors_count_and_refuse_as_there(torch):
    ours = bnext.torch.BatchNorm1d(5, device=gpu.DEVICE)
    theirs = torch.nn.BatchNorm1d(5, device=gpu.DEVICE)
    wrong = {
        "single": torch.randn(1, 5, device=gpu.DEVICE),
        "channels": torch.randn(4, 6, device=gpu.DEVICE),
        "rank": torch.randn(4, device=gpu.DEVICE),
        "here": torch.randn(4, 5),
    }
    for what, x in wrong.items():
        texts = []
        for layer in (theirs, ours):
            with pytest.raises((ValueError, RuntimeError)) as failure:
                layer(x)
            texts.append((failure.type, str(failure.value)))
        assert texts[0] == texts[1], what
    assert ours.num_batches_tracked == 0
    ours(torch.randn(4, 5, device=gpu.DEVICE))
    assert ours.num_batches_tracked == 1


def new_model(torch, convert=True):
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, bias=False), torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(inplace=True), torch.nn.Conv2d(16, 8, 3, bias=False),
        torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 3),
    ).double().to(gpu.DEVICE)  # fmt: skip
    return bnext.torch.convert(model) if convert else model


def fit(torch, model, step, steps=6):
    """Losses of `step(x, target)`, and the state of the model after all of them."""
    torch.manual_seed(5)
    losses = []
    for _ in range(steps):
        target = torch.randint(3, (8,), device=gpu.DEVICE)
        x = torch.randn(8, 3, 8, 8, dtype=torch.float64, device=gpu.DEVICE)
        losses.append(step(x, target).item())
    return losses, {name: value.clone() for name, value in model.state_dict().items()}


def stepper(torch, model, call=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(x, target):
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.cross_entropy((call or model)(x), target)
        loss.backward()
        optimizer.step()
        return loss

    step.optimizer = optimizer
    return step


def assert_same_training(torch, actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)


def test_a_training_of_tensors_follows_torch_s(torch):
    expected = fit(torch, model := new_model(torch, False), stepper(torch, model))
    actual = fit(torch, model := new_model(torch), stepper(torch, model))
    assert_same_training(torch, actual, expected)


def test_a_whole_step_of_tensors_as_a_cuda_graph(torch):
    """Forward, backward and the optimizer, captured once and replayed for every batch."""
    expected = fit(torch, model := new_model(torch), stepper(torch, model))
    model = new_model(torch)
    start = copy.deepcopy(model.state_dict())
    step = stepper(torch, model)
    x = torch.zeros(8, 3, 8, 8, dtype=torch.float64, device=gpu.DEVICE)
    target = torch.zeros(8, dtype=torch.int64, device=gpu.DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(torch.randn_like(x), target)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(x, target)
    # Back to where it began, in place: momentum of the optimizer too.
    model.load_state_dict(start)
    for state in step.optimizer.state.values():
        state["momentum_buffer"].zero_()

    def replayed(batch, classes):
        x.copy_(batch)
        target.copy_(classes)
        graph.replay()
        return loss

    assert_same_training(torch, fit(torch, model, replayed), expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_calls_of_layers_of_tensors_wait_for_nothing(torch, training):
    """PyTorch would say so: nothing is read back, and nothing is copied to the host."""
    layer = bnext.torch.convert(torch.nn.BatchNorm2d(16).to(gpu.DEVICE)).train(training)
    x = torch.randn(8, 16, 20, 20, device=gpu.DEVICE, requires_grad=True)
    layer(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_models_of_tensors_have_no_break(torch):
    expected = fit(torch, model := new_model(torch), stepper(torch, model))
    for mode in ("default", "reduce-overhead"):
        torch.compiler.reset()
        model = new_model(torch)
        call = torch.compile(model, fullgraph=True, mode=mode)
        assert_same_training(torch, fit(torch, model, stepper(torch, model, call)), expected)


def test_exported_models_of_tensors(torch):
    for training in (True, False):
        model = new_model(torch).train(training)
        x = torch.randn(8, 3, 8, 8, dtype=torch.float64, device=gpu.DEVICE)
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(x), new_model(torch).train(training)(x))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_operators_of_tensors_are_checked(torch, dtype):
    kind = getattr(torch, dtype)
    own = torch.float64 if dtype == "float64" else torch.float32
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 5, 4, 2, device=gpu.DEVICE, dtype=kind)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        weight = torch.randn(5, device=gpu.DEVICE, dtype=own, requires_grad=True)
        operator = torch.ops.bnext.batch_norm_training.default
        torch.library.opcheck(operator, (x, weight, None, 1e-5))


def test_gradients_of_tensors_are_checked(torch):
    for training, memory_format in itertools.product(
        (True, False), (torch.contiguous_format, torch.channels_last)
    ):
        mean, var = torch.zeros(2, 3, dtype=torch.float64, device=gpu.DEVICE).unbind()
        options = (None, None) if training else (mean, var + 0.5)

        def call(x, weight, bias, options=options, training=training):
            return bnext.torch.functional.batch_norm(x, *options, weight, bias, training)

        x = torch.randn(2, 3, 4, 2, dtype=torch.float64, device=gpu.DEVICE)
        given = [x.contiguous(memory_format=memory_format).requires_grad_()]
        given += [torch.randn(3, dtype=torch.float64, device=gpu.DEVICE, requires_grad=True)
                  for _ in range(2)]  # fmt: skip
        assert torch.autograd.gradcheck(call, given)
        assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_of_tensors_move_once(torch, use_reentrant):
    """The backward pass runs in a thread of PyTorch's there."""
    from torch.utils.checkpoint import checkpoint

    plain, model = new_model(torch), new_model(torch)

    def call(x):
        return checkpoint(model, x, use_reentrant=use_reentrant)

    expected = fit(torch, plain, stepper(torch, plain))
    x = torch.zeros((), dtype=torch.float64, device=gpu.DEVICE, requires_grad=True)
    actual = fit(torch, model, stepper(torch, model, lambda batch: call(batch + x)))
    assert_same_training(torch, actual, expected)
    assert model[1].num_batches_tracked == 6


def test_autocast_of_tensors(torch):
    for dtype in (torch.float16, torch.bfloat16):
        results = []
        for convert in (False, True):
            model = new_model(torch, convert).float()
            with torch.autocast(gpu.DEVICE, dtype=dtype):
                y = model[:2](torch.arange(8.0 * 3 * 64, device=gpu.DEVICE).sin().view(8, 3, 8, 8))
            results.append((y.dtype, y.float(), model[1].running_var))
        assert results[0][0] == results[1][0]
        torch.testing.assert_close(results[1][1:], results[0][1:], rtol=0.02, atol=0.02)
