"""torch.func, forward-mode differentiation, modes: as far as torch.nn's own layers go."""

import contextlib
import copy

import pytest

import bnext

from .support import (
    LIBRARIES,
    Failure,
    assert_close,
    buffers_of,
    layers,
    outcome_of,
    torch,
)

# PyTorch's own, when it first differentiates forward.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
func = torch.func
forward_ad = torch.autograd.forward_ad


def same(actual, expected):
    """Tensors, nested in any way, or failures."""
    if isinstance(expected, Failure):
        assert actual == expected
    else:
        torch.testing.assert_close(actual, expected)


def of_layer(run):
    """What `run(layer, x)` gives with torch.nn's layer and with ours, and their buffers then."""
    x = torch.randn(6, 5, dtype=torch.float64)
    pair = layers("BatchNorm1d", dtype=torch.float64)
    return [(outcome_of(run, layer, x), buffers_of(layer)) for layer in pair]


def loss(layer, training=True, **options):
    """A function of x alone or of parameters and x, without buffers that move."""

    def call(parameters, x):
        state = {name: getattr(layer, name).clone() for name in ("running_mean", "running_var")}
        given = parameters | state | {"num_batches_tracked": torch.tensor(0)}
        return func.functional_call(layer.train(training), given, (x,)).pow(3)

    return call


def parameters_of(layer):
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


TRANSFORMS = {
    "functional_call": lambda layer, x: func.functional_call(
        layer, parameters_of(layer) | {"weight": torch.full((5,), 2.0, dtype=x.dtype)}, (x,)
    ),
    "grad": lambda layer, x: func.grad(lambda p, x: loss(layer)(p, x).sum())(
        parameters_of(layer), x
    ),
    "grad of x": lambda layer, x: func.grad(lambda x: layer(x).pow(3).sum())(x),
    "grad of x, evaluation": lambda layer, x: func.grad(lambda x: layer.eval()(x).pow(3).sum())(x),
    "grad of grad": lambda layer, x: func.grad(
        lambda x: func.grad(lambda x: loss(layer)(parameters_of(layer), x).sum())(x).sin().sum()
    )(x),
    "vjp": lambda layer, x: func.vjp(lambda x: loss(layer)(parameters_of(layer), x), x)[1](x),
    "jvp": lambda layer, x: func.jvp(
        lambda x: loss(layer)(parameters_of(layer), x), (x,), (x.cos(),)
    ),
    "jvp, evaluation": lambda layer, x: func.jvp(
        lambda x: loss(layer, False)(parameters_of(layer), x), (x,), (x.cos(),)
    ),
    "jacrev": lambda layer, x: func.jacrev(lambda x: loss(layer)(parameters_of(layer), x))(x),
    "jacfwd": lambda layer, x: func.jacfwd(lambda x: loss(layer)(parameters_of(layer), x))(x),
    "hessian": lambda layer, x: func.hessian(
        lambda x: loss(layer)(parameters_of(layer), x).sum()
    )(x),
    "linearize": lambda layer, x: func.linearize(
        lambda x: loss(layer)(parameters_of(layer), x), x
    )[1](x.cos()),
    "functionalize": lambda layer, x: func.functionalize(
        lambda x: loss(layer)(parameters_of(layer), x)
    )(x),
    "vmap, training": lambda layer, x: func.vmap(layer)(x.expand(3, 6, 5)),
    "vmap, evaluation": lambda layer, x: func.vmap(layer.eval())(x.expand(3, 6, 5)),
    "vmap, no statistics": lambda layer, x: func.vmap(
        lambda x: torch.nn.functional.relu(_untracked(layer)(x))
    )(torch.stack([x, 2 * x, x.sin()])),
    "vmap of grad": lambda layer, x: func.vmap(
        func.grad(lambda x: _untracked(layer)(x).pow(3).sum())
    )(torch.stack([x, 2 * x, x.sin()])),
    "vmap over a part": lambda layer, x: func.vmap(
        lambda row: layer.eval()(row.unsqueeze(0)).squeeze(0)
    )(x),
    "gradients of each example": lambda layer, x: func.vmap(
        func.grad(lambda p, row: loss(layer, False)(p, row.unsqueeze(0)).sum()), in_dims=(None, 0)
    )(parameters_of(layer), x),
}  # fmt: skip


# By PyTorch, since buffers of the layer would move.
REFUSED = ("grad of x", "vmap, training")


def _untracked(layer):
    other = copy.deepcopy(layer)
    other.track_running_stats = False
    other.running_mean = other.running_var = other.num_batches_tracked = None
    return other


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_func(name):
    (expected, of_theirs), (actual, of_ours) = of_layer(TRANSFORMS[name])
    same(actual, expected)
    assert isinstance(expected, Failure) == (name in REFUSED), expected
    if name not in REFUSED:  # PyTorch has counted what it refuses
        same(of_ours, of_theirs)


def test_vmap_over_models():
    """An ensemble: parameters and statistics of several layers, stacked."""
    x = torch.randn(6, 5)
    for training in (True, False):
        results = []
        for library in LIBRARIES.values():
            torch.manual_seed(4)
            models = [library.BatchNorm1d(5).train(training) for _ in range(3)]
            for model in models:
                torch.nn.init.normal_(model.weight)
            parameters, buffers = func.stack_module_state(models)
            buffers = {name: value.clone() for name, value in buffers.items()}

            def call(parameters, buffers, x, model=models[0]):
                return func.functional_call(model, (parameters, buffers), (x,))

            run = func.vmap(call, in_dims=(0, 0, None))
            results.append((run(parameters, buffers, x), buffers))
        same(results[1][0], results[0][0])
        same(results[1][1], results[0][1])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dual_numbers(training):
    """Forward mode, of x and of parameters; the tangent is not lost where nothing is recorded."""
    x, tangent = torch.randn(2, 6, 5, dtype=torch.float64)
    results = []
    for layer in layers("BatchNorm1d", dtype=torch.float64):
        layer.train(training)
        for context in (contextlib.nullcontext(), torch.no_grad()):
            with forward_ad.dual_level(), context:
                y = layer(forward_ad.make_dual(x, tangent))
                results.append(forward_ad.unpack_dual(y))
    same(results[2:], results[:2])
    assert results[3].tangent is not None


def test_forward_over_reverse():
    """A graph recorded before the dual level began, gone back through within it."""
    results = []
    x, v = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    for layer in layers("BatchNorm1d", dtype=torch.float64):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        with forward_ad.dual_level():
            (dx,) = torch.autograd.grad(y, leaf, forward_ad.make_dual(v, v.cos()))
            results.append(forward_ad.unpack_dual(dx))
    same(results[1], results[0])


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode

    for training in (True, False):
        results = []
        for library in LIBRARIES.values():
            with FakeTensorMode():
                layer = library.BatchNorm2d(5).train(training)
                x = torch.randn(2, 5, 3, 3).to(memory_format=torch.channels_last)
                y = layer(x.requires_grad_())
                y.sum().backward()
                leaves = (x, layer.weight, layer.bias)
                results.append([(g.shape, g.dtype) for g in (y, *(each.grad for each in leaves))])
                assert y.stride() == x.stride()
        assert results[0] == results[1]


def test_fake_tensors_outside_of_their_mode():
    from torch._subclasses import FakeTensorMode

    mode = FakeTensorMode()
    layer = bnext.torch.BatchNorm2d(5)
    state = {name: mode.from_tensor(value) for name, value in layer.state_dict().items()}
    y = func.functional_call(layer, state, (mode.from_tensor(torch.randn(2, 5, 3, 3)),))
    assert y.shape == (2, 5, 3, 3)
    assert layer.num_batches_tracked == 0


def test_meta_tensors_and_contexts_of_a_device():
    results = []
    for layer in layers("BatchNorm1d"):
        with torch.device("meta"):  # which is for new tensors
            y = layer(torch.randn(6, 5, device="cpu"))
        assert y.device.type == "cpu"
        y = layer.to("meta")(torch.randn(6, 5, device="meta"))
        results.append((y.device, y.shape, layer.running_mean.device))
    assert results[0] == results[1]


def test_dispatch_modes_see_operators(kernel_calls):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    for training, expected in ((True, "bnext.forward_by_batch."), (False, "batch_norm.default")):
        theirs, ours = (layer.train(training) for layer in layers("BatchNorm1d"))
        x = torch.randn(6, 5)
        with Seen() as seen:
            leaf = x.clone().requires_grad_()
            y = ours(leaf)
            y.square().sum().backward()
        assert any(expected in name for name in seen.names)
        reference = x.clone().requires_grad_()
        theirs(reference).square().sum().backward()
        assert_close(leaf.grad, reference.grad, "dx", 10.0)
        for name, value in buffers_of(theirs).items():
            assert_close(buffers_of(ours)[name], value, name)
    assert kernel_calls == {"forward": 1, "backward": 1}


def test_flop_counter_counts_the_rest():
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for library in LIBRARIES.values():
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), library.BatchNorm1d(5))
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(6, 4)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, kernel_calls):
    """Data in whatever dtype the operator before it gives; the layer's parameters stay float32."""
    for training in (True, False):
        results = []
        x = torch.randn(6, 4)
        for layer in layers("BatchNorm1d"):
            torch.manual_seed(2)
            model = torch.nn.Sequential(torch.nn.Linear(4, 5), layer.train(training))
            with torch.autocast("cpu", dtype=dtype):
                y = model(x)
            y.float().square().sum().backward()
            results.append((y, layer.weight.grad, model[0].weight.grad, layer.running_var))
        for expected, actual in zip(*results, strict=True):
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)
        assert results[1][0].dtype == dtype
    assert kernel_calls == {"forward": 1, "inference": 1, "backward": 2}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_autocast_of_other_inputs(kind):
    for dtype in (torch.bfloat16, torch.float16):
        results = []
        x = torch.randn(6, 5).to(kind)
        for layer in layers("BatchNorm1d"):
            with torch.autocast("cpu", dtype=dtype):
                y = outcome_of(layer, x)
            results.append(y if isinstance(y, Failure) else y.dtype)
        assert results[0] == results[1]
