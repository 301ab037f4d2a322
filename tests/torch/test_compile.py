"""torch.compile: no breaks, the results and statistics of eager calls, and few compilations."""

import copy
import functools

import pytest

import bnext

from .support import (
    COMPILED,
    Failure,
    assert_close,
    buffers_of,
    layers,
    name_of_dtype,
    outcome_of,
    torch,
)

pytestmark = COMPILED
# Inductor is slow: most tests need only the graphs that it would get.
GRAPHS = "aot_eager"


def compiled(model, backend=GRAPHS, **options):
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def run(layer, call, x, dy):
    layer.zero_grad()
    leaf = x.detach().clone().requires_grad_()
    y = call(leaf)
    y.backward(dy)
    results = {"y": y, "dx": leaf.grad}
    results |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    return results | buffers_of(layer)


def check(layer, call, reference, shape, dtype=torch.float32, steps=2, put=lambda x: x):
    """Steps of `call`, which is `layer` compiled, beside those of the layer itself."""
    for _ in range(steps):
        x, dy = map(put, torch.randn(2, *shape).to(dtype))
        actual, expected = run(layer, call, x, dy), run(reference, reference, x, dy)
        for name, value in expected.items():
            assert_close(actual[name], value, name, 10.0)
        assert actual["y"].stride() == expected["y"].stride()


def adapted_to_batches(layer):
    vars(layer)["_special"] = bnext.torch.adaptation.Blended(0.5)
    return layer.eval()


def applying_relu(layer):
    return bnext.torch.convert(torch.nn.Sequential(layer, torch.nn.ReLU()), fuse=True)


# Layers of one class, and what each has that others lack.
APART = {
    "plain": {},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "leaky": {"activation": "leaky_relu", "negative_slope": 0.3},
    "recompute": {"recompute": True},
    "ghosts": {"ghost_batch_size": 2},
    "skipping": {"skip_nonfinite": True},
    "evaluation": torch.nn.Module.eval,
    "frozen": bnext.torch.freeze,
    "adapted": adapted_to_batches,
    "fused": applying_relu,
    "fused in evaluation": lambda layer: applying_relu(layer).eval(),
}


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
def test_compiled_layers_of_one_class_are_told_apart(backwards):
    """Compiled code is kept for the class: it must not run for a layer that needs other code."""
    layers_ = {}
    for name, how in APART.items():
        layer = bnext.torch.BatchNorm1d(3, **(how if isinstance(how, dict) else {}))
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.uniform_(layer.running_mean)
        layers_[name] = layer if isinstance(how, dict) else how(layer) or layer
    x = torch.randn(8, 3)
    for name in reversed(APART) if backwards else APART:
        reference = copy.deepcopy(layers_[name])
        call = torch.compile(layers_[name], backend=GRAPHS)
        with torch._dynamo.config.patch(recompile_limit=2 * len(APART)):
            assert_close(call(x), reference(x), name, 10.0)
        moved = dict(layers_[name].named_buffers())
        for buffer, expected in reference.named_buffers():
            assert_close(moved[buffer], expected, f"{name}: {buffer}", 10.0)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False},
                                     {"track_running_stats": False}], ids=str)  # fmt: skip
def test_compile_without_breaks(options, kernel_calls, small_by_kernels):
    """Training, then evaluation, then training again."""
    _, layer = layers("BatchNorm2d", **options)
    reference, call = copy.deepcopy(layer), compiled(layer)
    for training in (True, False, True):
        layer.train(training)
        reference.train(training)
        check(layer, call, reference, (4, 5, 3, 3))
    assert kernel_calls["forward"] >= 8, "it was not our operator"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=name_of_dtype)
@pytest.mark.parametrize("kind", ["own", "float32"])
def test_compile_in_every_dtype(dtype, kind):
    _, layer = layers("BatchNorm1d", dtype=dtype if kind == "own" else torch.float32)
    reference, call = copy.deepcopy(layer), compiled(layer)
    if dtype == torch.float64 and kind == "float32":
        assert isinstance(outcome_of(call, torch.randn(4, 5, dtype=dtype)), Failure)
    else:
        check(layer, call, reference, (8, 5), dtype)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_compile_keeps_the_memory_format(memory_format):
    _, layer = layers("BatchNorm2d")
    put = functools.partial(torch.Tensor.contiguous, memory_format=memory_format)
    for shape in ((4, 5, 3, 2), (1, 5, 3, 2)):
        check(layer, compiled(layer), copy.deepcopy(layer), shape, put=put)


def test_compile_of_transposed_input():
    _, layer = layers("BatchNorm1d")
    check(layer, compiled(layer), copy.deepcopy(layer), (4, 7, 5), put=lambda x: x.transpose(1, 2))


def test_compile_with_dynamic_shapes(kernel_calls):
    """One compilation for batches of any size."""
    from torch._dynamo.testing import CompileCounterWithBackend

    _, layer = layers("BatchNorm2d")
    reference = copy.deepcopy(layer)
    counter = CompileCounterWithBackend(GRAPHS)
    call = compiled(layer, counter, dynamic=True)
    compilations = []
    for size in (4, 7, 2, 11):
        check(layer, call, reference, (size, 5, 3, size), steps=1)
        compilations.append(counter.frame_count)
    assert compilations == compilations[:1] * 4
    assert kernel_calls["backward"] == 8


def test_compile_refuses_what_torch_refuses():
    wrong = {
        "single": torch.randn(1, 5), "channels": torch.randn(4, 6), "rank": torch.randn(4),
        "integers": torch.ones(4, 5, dtype=torch.int64), "float64": torch.randn(4, 5).double(),
    }  # fmt: skip
    for what, x in wrong.items():
        torch.compiler.reset()
        pair = layers("BatchNorm1d")
        theirs, ours = (outcome_of(compiled(layer), x) for layer in pair)
        assert isinstance(theirs, Failure), what
        assert isinstance(ours, Failure), what
        said = outcome_of(pair[1], x).text
        assert said in ours.text or said not in theirs.text, what
        assert pair[1].num_batches_tracked == 3


def test_compile_of_a_converted_model_with_inductor(kernel_calls):
    """A convolutional network, whole training steps, then evaluation; beside it without us."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(6, 4, 1), torch.nn.BatchNorm2d(4, momentum=None), torch.nn.Flatten(),
        torch.nn.Linear(4 * 16, 3),
    ).double()  # fmt: skip
    theirs, ours = copy.deepcopy(model), bnext.torch.convert(model)
    call = torch.compile(ours, fullgraph=True, mode="reduce-overhead")
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (ours, theirs)]
    for training in (True, True, False, True):
        ours.train(training)
        theirs.train(training)
        x, target = torch.randn(8, 3, 6, 6, dtype=torch.float64), torch.randint(3, (8,))
        for optimizer, run_model in zip(optimizers, (call, theirs), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(run_model(x), target).backward()
            if training:
                optimizer.step()
    for name, expected in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, rtol=1e-8, atol=1e-10)
    assert kernel_calls == {"forward": 6, "backward": 6}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_compile_with_activation_checkpointing(use_reentrant, small_by_kernels):
    """Compiled within, and around it; statistics move once a step either way."""
    from torch.utils.checkpoint import checkpoint

    _, layer = layers("BatchNorm1d")
    expected = buffers_of(layer)
    x = torch.randn(6, 5)
    reference = copy.deepcopy(layer)
    reference(x)
    expected = buffers_of(reference)
    for order in ("within", "around"):
        other = copy.deepcopy(layer)
        torch.compiler.reset()
        if order == "within":
            call = functools.partial(checkpoint, compiled(other), use_reentrant=use_reentrant)
        else:
            call = torch.compile(
                lambda x, layer=other: checkpoint(layer, x, use_reentrant=use_reentrant),
                backend=GRAPHS,
            )
        leaf = x.clone().requires_grad_()
        call(leaf).square().sum().backward()
        for name, value in expected.items():
            assert torch.equal(buffers_of(other)[name], value), (order, name)
        assert leaf.grad.abs().max() > 0


def test_compile_of_functional_transforms():
    """Which know PyTorch's operators, and not ours."""
    for name in ("grad", "jacrev"):
        results = []
        x = torch.randn(6, 5, dtype=torch.float64)
        for layer in layers("BatchNorm1d", dtype=torch.float64, track_running_stats=False):
            torch.compiler.reset()

            def loss(x, layer=layer, name=name):
                y = layer(x).pow(3)
                return y.sum() if name == "grad" else y

            transform = getattr(torch.func, name)
            call = compiled(lambda x, loss=loss, transform=transform: transform(loss)(x))
            results.append(call(x))
        torch.testing.assert_close(results[1], results[0])


def test_compile_stops_at_a_group_and_goes_on():
    """A layer of a group with others is no part of a graph; alone it is."""
    group = bnext.sync.ThreadGroup(1)
    _, layer = layers("BatchNorm1d")
    reference = copy.deepcopy(layer)
    in_group = bnext.torch.convert(copy.deepcopy(layer), sync=group)
    model = torch.nn.Sequential(torch.nn.Identity(), in_group, torch.nn.Tanh())
    expected = torch.nn.Sequential(reference, torch.nn.Tanh())
    with group.member(0):
        call = torch.compile(model, backend=GRAPHS)
        for _ in range(2):
            x = torch.randn(6, 5)
            leaves = [x.clone().requires_grad_() for _ in range(2)]
            for leaf, each in zip(leaves, (call, expected), strict=True):
                each(leaf).square().sum().backward()
            assert_close(leaves[0].grad, leaves[1].grad, "dx", 10.0)
        for name, value in buffers_of(reference).items():
            assert_close(buffers_of(in_group)[name], value, name)
    alone = bnext.torch.SyncBatchNorm(5)
    check(alone, compiled(alone), copy.deepcopy(alone), (6, 5))
    torch.compiler.reset()
    with group.member(0):
        failure = outcome_of(compiled(in_group), x)  # which is to have no break
    assert isinstance(failure, Failure)


def test_compile_of_what_calls_the_function():
    """Without a layer: statistics are arguments, and move."""

    def normalized(x, mean, var):
        return bnext.torch.functional.batch_norm(x.sin(), mean, var, training=True, momentum=0.3)

    x = torch.randn(6, 5)
    results = []
    for call in (normalized, compiled(normalized)):
        mean, var = torch.zeros(5), torch.ones(5)
        results.append((call(x, mean, var), mean, var))
    for name, actual, expected in zip(("y", "mean", "var"), *results[::-1], strict=True):
        assert_close(actual, expected, name)
    assert not torch.equal(results[1][1], torch.zeros(5))
