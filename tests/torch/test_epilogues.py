"""Layers with an activation, and with a residual: act(norm(x) + residual), forward and backward."""

import copy
import itertools
import pickle

import pytest

import bnext

from .support import (
    LIBRARIES,
    MEMORIES,
    assert_close,
    assert_same_format,
    buffers_of,
    name_of,
    name_of_dtype,
    torch,
)

ACTIVATIONS = bnext.torch.epilogues.ACTIVATIONS
NAMES = [*ACTIVATIONS, None]
SLOPE = 0.2
SHAPES = [(9, 5), (4, 5, 7), (3, 5, 6, 5), (2, 5, 3, 4, 3)]
OURS = bnext.torch.functional.batch_norm


def after(y, activation, residual):
    """What follows normalization, by PyTorch's operators."""
    if residual is not None:
        y = y + residual
    return y if activation is None else ACTIVATIONS[activation](y, SLOPE)


def layer_pair(shape, activation, **options):
    """PyTorch's layer, and ours with the activation and the same parameters and statistics."""
    theirs = getattr(torch.nn, name_of(shape))(shape[1], **options)
    ours = getattr(bnext.torch, name_of(shape))(
        shape[1], activation=activation, negative_slope=SLOPE, **options
    )
    with torch.no_grad():
        for tensor in (*theirs.parameters(), theirs.running_mean):
            tensor.uniform_(-1, 1.5)
        theirs.running_var.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def away_from_kinks(z):
    """Where rounding does not decide which of two slopes a value gets."""
    return all(float((z.detach() - kink).abs().min()) > 1e-4 for kink in (-3.0, 0.0, 3.0, 6.0))


def step(call, leaves, dy):
    y = call(*leaves)
    y.backward(dy)
    return y, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", NAMES, ids=str)
def test_epilogue_beside_pytorch(activation, with_residual, mode, kernel_calls):
    """In every shape; y, all gradients and running statistics."""
    for shape in SHAPES:
        theirs, ours = layer_pair(shape, activation)
        for layer in (theirs, ours):
            layer.train(mode == "training").requires_grad_(mode != "frozen")
        exact = copy.deepcopy(theirs).double()
        x, residual, dy = torch.randn(3, *shape)
        results = []
        for layer, dtype in ((exact, torch.float64), (theirs, torch.float32), (ours, None)):
            leaves = [x.to(dtype or x.dtype).clone().requires_grad_()]
            if with_residual:
                leaves.append(residual.to(dtype or x.dtype).clone().requires_grad_())
            call = layer
            if dtype is not None:
                call = lambda x, r=None, layer=layer: after(layer(x), activation, r)  # noqa: E731
            results.append((*step(call, leaves, dy.to(dtype or x.dtype)), layer))
        (y, gradients, _), (_, _, theirs), (actual, actual_gradients, ours) = results
        z = exact.eval()(x.double()) if mode != "training" else None
        assert_close(actual, y.float(), "y", 10.0)
        for name, one, other in zip(
            ("dx", "dresidual"), actual_gradients, gradients, strict=with_residual
        ):
            if z is None or away_from_kinks(z):
                assert_close(one, other.float(), name, 10.0)
        for name, parameter in ours.named_parameters():
            expected = getattr(exact, name).grad
            expected = None if expected is None else expected.float()
            assert_close(parameter.grad, expected, name, 100.0)
        for name, expected in buffers_of(theirs).items():
            assert_close(buffers_of(ours)[name], expected, name, 1.0)
    assert sum(kernel_calls.values()) >= 2 * len(SHAPES), "it was not our kernels"


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", NAMES, ids=str)
def test_epilogue_gradcheck(activation, with_residual, statistics):
    """First and second derivatives beside finite differences."""
    mean, var = torch.randn(3).double(), torch.rand(3).double() + 0.5
    given = (None, None) if statistics == "batch" else (mean, var)

    def call(x, weight, bias, residual=None):
        return OURS(
            x, *given, weight, bias, statistics == "batch", activation=activation,
            residual=residual, negative_slope=SLOPE,
        )  # fmt: skip

    while True:  # finite differences see both sides of a kink
        x, residual = torch.randn(2, 5, 3, 2).double()
        weight, bias = torch.rand(2, 3).double() + 0.5
        z = OURS(x, *given, weight, bias, statistics == "batch") + residual * with_residual
        if away_from_kinks(z):
            break
    inputs = (x, weight, bias, residual) if with_residual else (x, weight, bias)
    inputs = [each.clone().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_epilogue_of_parameters_that_want_no_gradient():
    """Each combination of wishes; what is not wanted is None."""
    x, residual, dy = torch.randn(3, 6, 4, 3)
    for wants in itertools.product((False, True), repeat=4):
        if not any(wants):
            continue
        found = []
        for library in (LIBRARIES["torch.nn"], bnext.torch):
            torch.manual_seed(2)
            weight, bias = torch.rand(2, 4)
            leaves = [x.clone(), weight, bias, residual.clone()]
            for leaf, wanted in zip(leaves, wants, strict=True):
                leaf.requires_grad_(wanted)
            of = leaves[:3]
            if library is bnext.torch:
                y = OURS(of[0], None, None, *of[1:], True, activation="relu", residual=leaves[3])
            else:
                y = torch.nn.functional.batch_norm(of[0], None, None, *of[1:], True) + leaves[3]
                y = y.relu()
            y.backward(dy)
            found.append([leaf.grad for leaf in leaves])
        for name, expected, actual in zip(("x", "weight", "bias", "residual"), *found, strict=True):
            assert_close(actual, expected, f"{name}, {wants}", 10.0)


@pytest.mark.parametrize("activation", ["relu", "silu", None], ids=str)
def test_epilogue_in_every_layout(activation):
    """Of x, of the residual and of dy, each in its own."""
    shape = (4, 5, 3, 6)
    x, residual, dy = torch.randn(3, *shape)
    weight, bias = torch.rand(2, 5)
    results = {}
    for name, lay in MEMORIES.items():
        for other, lay_other in list(MEMORIES.items())[:4]:
            leaves = [lay(x).detach().requires_grad_(), lay_other(residual).detach()]
            leaves[1].requires_grad_()
            y = OURS(leaves[0], None, None, weight, bias, True, activation=activation,
                     residual=leaves[1])  # fmt: skip
            assert_same_format(
                y, torch.nn.functional.batch_norm(leaves[0], None, None, None, None, True)
            )
            y.backward(lay_other(dy))
            results[name, other] = [y, *(leaf.grad for leaf in leaves)]
    first = results["contiguous", "contiguous"]
    for key, found in results.items():
        for expected, actual in zip(first, found, strict=True):
            assert_close(actual, expected, key, 10.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=name_of_dtype)
@pytest.mark.parametrize("parameters", ["own", "float32"])
def test_epilogue_in_other_dtypes(dtype, parameters, kernel_calls):
    if dtype is torch.float64 and parameters == "float32":
        return
    of_layer = dtype if parameters == "own" else torch.float32
    theirs, ours = layer_pair((8, 5, 4), "silu", dtype=of_layer)
    x, residual, dy = torch.randn(3, 8, 5, 4).to(dtype)
    leaves = [[each.clone().requires_grad_() for each in (x, residual)] for _ in range(2)]
    y, gradients = step(ours, leaves[0], dy)
    exact = copy.deepcopy(theirs).double()
    expected, expected_gradients = step(
        lambda x, r: after(exact(x.double()), "silu", r.double()), leaves[1], dy.double()
    )
    assert y.dtype == dtype
    for actual, wanted in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert_close(actual, wanted.to(dtype), "result", 4.0)
    assert kernel_calls["forward"] == kernel_calls["backward"] == 1


def test_epilogue_leaves_residuals_of_other_kinds_to_pytorch():
    """Broadcast, promoted, a subclass; under a transform of functions."""

    class Own(torch.Tensor):
        pass

    x = torch.randn(6, 4, 3)
    others = {
        "broadcast": torch.randn(4, 1), "promoted": torch.randn(6, 4, 3).double(),
        "larger": torch.randn(2, 6, 4, 3), "subclass": torch.randn(6, 4, 3).as_subclass(Own),
    }  # fmt: skip
    for name, residual in others.items():
        y = OURS(x, None, None, training=True, activation="silu", residual=residual)
        expected = after(
            torch.nn.functional.batch_norm(x, None, None, training=True), "silu", residual
        )
        assert y.shape == expected.shape, name
        assert y.dtype == expected.dtype, name
        assert_close(torch.Tensor(y).float(), torch.Tensor(expected).float(), name, 10.0)
    mean, var = torch.zeros(4), torch.ones(4)
    call = lambda x, r: OURS(x, mean, var, activation="tanh", residual=r)  # noqa: E731
    both = torch.randn(2, 5, 6, 4, 3)
    assert_close(torch.vmap(call)(*both), torch.stack([*map(call, *both)]), "vmap", 10.0)


def test_epilogue_layers_keep_what_layers_have():
    """State dicts, copies, pickles, representation; and forward takes the residual by name."""
    _, layer = layer_pair((4, 5, 3, 3), "leaky_relu")
    assert [*layer.state_dict()] == [*torch.nn.BatchNorm2d(5).state_dict()]
    assert "activation=leaky_relu, negative_slope=0.2" in repr(layer)
    assert "activation" not in repr(bnext.torch.BatchNorm2d(5))
    x, residual = torch.randn(2, 4, 5, 3, 3)
    expected = layer(x, residual=residual)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, residual=residual), expected)
    alone = bnext.torch.BatchNorm2d(5)
    assert torch.equal(alone(x, residual=residual), OURS(x, None, None, alone.weight, alone.bias,
                                                         True, residual=residual))  # fmt: skip


def test_epilogue_errors():
    for function in (bnext.torch.BatchNorm1d, bnext.torch.SyncBatchNorm):
        with pytest.raises(ValueError, match=r"activation: expected .*relu.*got 'relu7'"):
            function(3, activation="relu7")
        with pytest.raises(TypeError, match="activation: expected"):
            function(3, activation=torch.nn.ReLU())
        with pytest.raises(ValueError, match="negative_slope: expected"):
            function(3, activation="leaky_relu", negative_slope=float("nan"))
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="activation: expected"):
        OURS(x, None, None, training=True, activation="swish")
    layer = bnext.torch.BatchNorm1d(3, activation="relu")
    with pytest.raises(RuntimeError):
        layer(x, residual=torch.randn(4, 2))  # PyTorch's, of shapes that do not broadcast


def test_epilogue_notices_what_was_changed():
    """In place, between the passes."""
    for name in ("x", "residual"):
        x, residual = torch.randn(2, 6, 4, requires_grad=True)
        inner = x * 1, residual * 1
        y = OURS(inner[0], None, None, training=True, activation="silu", residual=inner[1])
        inner[name == "residual"].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "silu", None], ids=str)
def test_epilogue_with_hooks_on_saved_tensors(activation):
    """What hooks give back may be close to what was saved, and not the same."""
    x, residual = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    gradients = []
    for rounds in (False, True):
        leaves = [each.clone().requires_grad_() for each in (x, residual)]
        pack = (lambda t: t.float().double()) if rounds else (lambda t: t)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = OURS(
                leaves[0], None, None, training=True, activation=activation, residual=leaves[1]
            )
        y.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for exact, rounded in zip(*gradients, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(gradients[0][0], gradients[1][0])


@pytest.mark.parametrize("activation", ["relu", "silu", None], ids=str)
def test_epilogue_gradients_of_many_outputs_at_once(activation):
    x, residual = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    dys = torch.randn(4, 6, 3, dtype=torch.float64)
    leaves = [each.detach().requires_grad_() for each in (x, residual)]
    y = OURS(leaves[0], None, None, training=True, activation=activation, residual=leaves[1])
    at_once = torch.autograd.grad(y, leaves, dys, is_grads_batched=True, retain_graph=True)
    for number, dy in enumerate(dys):
        one = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        for actual, expected in zip(at_once, one, strict=True):
            torch.testing.assert_close(actual[number], expected)


def test_epilogue_in_a_graph_of_fx():
    """As a layer, and as a function; with what follows."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = bnext.torch.BatchNorm1d(4, activation="silu")

        def forward(self, x):
            y = self.norm(x, residual=x)
            return OURS(y, None, None, training=True, activation="relu", residual=x)

    block = Block()
    graph = torch.fx.symbolic_trace(block)
    assert [n.op for n in graph.graph.nodes].count("call_module") == 1
    x = torch.randn(6, 4)
    assert torch.equal(graph(x), block(x))


@pytest.mark.parametrize("activation", ["relu", "gelu", None], ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_epilogue_in_a_group(activation, with_residual):
    """Shards in threads beside the whole batch; also where PyTorch adds, by broadcasting."""
    x, residual, dy = torch.randn(3, 10, 4, 3)
    whole = bnext.torch.BatchNorm1d(4, activation=activation)
    leaves = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
    y = whole(leaves[0], leaves[1] if with_residual else None)
    y.backward(dy)
    group = bnext.sync.ThreadGroup(2, timeout=60)

    def member(rank, shard):
        layer = bnext.torch.SyncBatchNorm(4, process_group=group, activation=activation)
        mine = [each[shard].clone().requires_grad_() for each in (x, residual)]
        y = layer(mine[0], mine[1] if with_residual else None)
        y.backward(dy[shard])
        flat = layer(mine[0].detach(), torch.ones(4, 1)) if with_residual else None
        return y, mine[0].grad, mine[1].grad, layer.running_var, flat

    parts = group.run(member, [slice(0, 3), slice(3, 10)])
    assert_close(torch.cat([part[0] for part in parts]), y, "y", 10.0)
    assert_close(torch.cat([part[1] for part in parts]), leaves[0].grad, "dx", 10.0)
    if with_residual:
        assert_close(torch.cat([part[2] for part in parts]), leaves[1].grad, "dresidual", 10.0)
        expected = after(OURS(x, None, None, training=True), activation, torch.ones(4, 1))
        assert_close(torch.cat([part[4] for part in parts]), expected, "broadcast", 10.0)
    else:
        for part in parts:
            assert_close(part[3], whole.running_var, "running_var", 1.0)
