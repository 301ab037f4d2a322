"""recompute=True: outputs are not kept, and gradients are the same to the bit."""

import copy
import pickle
from functools import partial

import pytest

import bnext

from .architectures import ARCHITECTURES, IMAGE, Basic
from .known_forms import Activated
from .support import buffers_of, torch

from bnext.torch import recomputation  # isort: skip - of which there is nothing without PyTorch
from bnext.torch.recomputation import is_recomputing  # isort: skip

nn, functional = torch.nn, torch.nn.functional
convert, recomputing = bnext.torch.convert, bnext.torch.recomputing
hooks = torch.autograd.graph.saved_tensors_hooks
pytestmark = pytest.mark.filterwarnings("ignore::bnext.torch.ConversionWarning")


def step(model, x):
    """The loss, all gradients and the state."""
    leaf = x.clone().requires_grad_()
    loss = model(leaf).square().sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss, "dx": leaf.grad, **gradients, **model.state_dict()}


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def bytes_kept(model, x):
    """Bytes that autograd keeps for a backward pass: storages, each once, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {}

    class Noted(recomputation.Kept):
        def __init__(self, tensor):
            note(tensor)
            super().__init__(tensor)

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recomputation, "Kept", Noted)
        if is_recomputing(model):
            y = model(x)
        else:
            with hooks(note, lambda tensor: tensor):
                y = model(x)
    y.sum().backward()  # what was made again is let go
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "not"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_recomputed_architectures_have_the_same_bits(name, fuse, dtype):
    build, shape, *_ = ARCHITECTURES[name]
    plain = convert(build().to(dtype), fuse=fuse)
    ours = convert(copy.deepcopy(plain), fuse=fuse, recompute=True)
    for _ in range(2):
        x = torch.randn(shape).to(dtype)
        assert_same_bits(step(ours, x), step(plain, x))
    assert is_recomputing(ours)
    assert type(ours).__name__ == type(plain).__name__
    ours.eval(), plain.eval()
    assert_same_bits(step(ours, x), step(plain, x))
    bnext.torch.revert(ours)
    assert not is_recomputing(ours)
    assert not any("_recompute" in vars(each) for each in ours.modules())


@pytest.mark.parametrize(
    ("name", "most"), [("vgg", 0.60), ("residual", 0.80), ("bottleneck", 0.80), ("unet", 0.70)]
)
def test_recomputed_outputs_are_not_kept(name, most):
    build, shape, *_ = ARCHITECTURES[name]
    theirs = build()
    x = torch.randn(shape)
    before = bytes_kept(copy.deepcopy(theirs), x)
    fused = bytes_kept(convert(copy.deepcopy(theirs), fuse=True), x)
    ours = bytes_kept(convert(copy.deepcopy(theirs), fuse=True, recompute=True), x)
    assert ours < 0.9 * fused
    assert ours <= most * before


def test_recomputed_layers_in_a_context():
    """Layers that were made by hand, with operations of all kinds behind them."""
    torch.manual_seed(1)
    layer = bnext.torch.BatchNorm2d(4, activation="relu", recompute=True)
    assert "recompute=True" in repr(layer)
    conv = nn.Conv2d(4, 4, 3)
    x, matrix = torch.randn(5, 4, 6, 6), torch.randn(144, 3)
    leaves = [x.requires_grad_(), matrix.requires_grad_(), layer.weight, conv.weight]

    def run():
        y = layer(x)
        z = functional.max_pool2d(y, 2).sum() + conv(y).square().sum()
        z = z + (y.flatten(1) @ matrix).sum() + (y * y).sum() + y[:, 1:3].square().sum()
        return z, *torch.autograd.grad(z, leaves)

    expected = run()
    kept, plain = [], recomputation.Kept
    with pytest.MonkeyPatch.context() as patch, recomputing():
        patch.setattr(recomputation, "Kept", lambda t: kept.append(t.clone()) or plain(t))
        actual = run()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    y = layer(x).detach()
    assert not any(each.shape == y.shape and torch.equal(each, y) for each in kept)
    assert any(torch.equal(each, x) for each in kept)


def test_recomputed_outputs_are_written_to():
    """What has changed by an operation in place is kept as it is."""
    layer = bnext.torch.BatchNorm2d(4, recompute=True)
    conv = nn.Conv2d(4, 4, 1)
    x = torch.randn(5, 4, 3, 3, requires_grad=True)

    def run():
        y = layer(x)
        y += 1
        functional.relu_(y)
        z = conv(y).square().sum()
        return torch.autograd.grad(z, (x, conv.weight))

    expected = run()
    with recomputing():
        actual = run()
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)
        z = conv(x).square()
        y = layer(z)
        w = conv(y)
        z.detach().mul_(2)  # shares its version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


def test_recomputed_outputs_that_change_after_they_were_asked_for():
    """PyTorch refuses a tensor that was written to; made again, it is what it was."""
    layer = bnext.torch.BatchNorm2d(4, recompute=True)
    conv = nn.Conv2d(4, 4, 1)
    x = torch.randn(5, 4, 3, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(conv(layer(x)).square().sum(), conv.weight)
    with recomputing():
        y = layer(x)
        z = conv(y).square().sum()
        y.detach().zero_()
    (actual,) = torch.autograd.grad(z, conv.weight)
    assert torch.equal(actual, expected)


def test_recomputed_with_optimizers_between():
    """y is the forward call's, whatever the parameters are by then."""
    layer = bnext.torch.BatchNorm2d(4, activation="silu", recompute=True)
    conv = nn.Conv2d(4, 4, 1)
    x = torch.randn(5, 4, 3, 3)
    (expected,) = torch.autograd.grad(conv(layer(x)).square().sum(), conv.weight)
    with recomputing():
        z = conv(layer(x)).square().sum()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(3)
    (actual,) = torch.autograd.grad(z, conv.weight)
    assert torch.equal(actual, expected)


def test_recomputed_outputs_let_go_of_inputs_with_the_graph():
    layer = bnext.torch.BatchNorm2d(4, recompute=True)
    conv = nn.Conv2d(4, 4, 1)
    x = torch.randn(5, 4, 3, 3, requires_grad=True)
    with recomputing():
        y = layer(x)
        one, two = conv(y).square().sum(), conv(y).sum()
    again = y._bnext_recomputed
    assert torch.equal(again.value(), y)
    one.backward()
    assert again.x() is None, "x is kept as long as somebody has y"
    with pytest.raises(RuntimeError, match="retain_graph=True keeps it"):
        two.backward()


def test_recomputed_layers_that_keep_no_input():
    """A frozen layer's x may be kept by another operation, which is through with it earlier."""
    layer = bnext.torch.freeze(bnext.torch.BatchNorm2d(4, recompute=True))
    conv, other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    x = torch.randn(5, 4, 3, 3, requires_grad=True)

    def run():
        z = x * 2
        y = layer(z)
        return torch.autograd.grad((other(z) * conv(y)).sum(), [x, conv.weight, other.weight])

    expected = run()
    with recomputing():
        z = x * 2
        other(z)
        assert not hasattr(layer(z), "_bnext_recomputed")
        actual = run()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_recomputed_models_under_transforms():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    plain = convert(copy.deepcopy(model).eval(), fuse=True)
    ours = convert(model.eval(), fuse=True, recompute=True)
    x = torch.randn(IMAGE)
    actual, expected = (torch.func.grad(lambda x, m=m: m(x).sum())(x) for m in (ours, plain))
    torch.testing.assert_close(actual, expected)


def test_recomputed_models_in_other_contexts():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plain = convert(copy.deepcopy(model), fuse=True)
    convert(model, fuse=True, recompute=True)
    x = torch.randn(IMAGE)
    expected = step(plain, x)
    with torch.autograd.graph.save_on_cpu():
        assert_same_bits(step(model, x), expected)
    checkpoint = torch.utils.checkpoint.checkpoint
    for reentrant in (True, False):
        for each in (model, plain):
            each.zero_grad()
        actual, expected = (
            step_of(each, partial(checkpoint, each, use_reentrant=reentrant), x)
            for each in (model, plain)
        )
        assert_same_bits(actual, expected)
    with pytest.raises(RuntimeError, match="channels"):
        model(x[:, :2])
    assert recomputation._STATE.depth == 0
    outer = []
    with hooks(lambda t: outer.append(t) or t, lambda t: t):
        nn.Linear(2, 2)(torch.ones(2, 2))
    assert outer, "the hooks of a call that ended in an error are still there"


def step_of(model, call, x):
    leaf = x.clone().requires_grad_()
    loss = call(leaf).square().sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss, "dx": leaf.grad, **gradients}


def test_recomputed_models_are_copied_pickled_compiled_and_traced():
    model = convert(nn.Sequential(Basic(3, 4), nn.Conv2d(4, 2, 1)), fuse=True, recompute=True)
    x = torch.randn(IMAGE)
    y = copy.deepcopy(model)(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_recomputing(other)
        torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(torch.fx.symbolic_trace(copy.deepcopy(model))(x), y)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)
    root = convert(Basic(3, 4), fuse=True, recompute=True)
    assert is_recomputing(pickle.loads(pickle.dumps(root)))
    assert bnext.torch.report(root).fused
    assert type(bnext.torch.revert(root)) is Basic


def test_recomputed_gradients_of_gradients():
    model = convert(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)).double(),
                    fuse=True)  # fmt: skip
    ours = convert(copy.deepcopy(model), recompute=True)
    x = torch.randn(IMAGE).double()

    def twice(model):
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [leaf, *model.parameters()])

    for actual, expected in zip(twice(ours), twice(model), strict=True):
        torch.testing.assert_close(actual, expected)


def test_recomputed_synchronized_layers():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    group = bnext.sync.ThreadGroup(1)
    plain = convert(copy.deepcopy(model), sync=group, fuse=True)
    ours = convert(model, sync=bnext.sync.ThreadGroup(1), fuse=True, recompute=True)
    x = torch.randn(IMAGE)
    with group.member(0), ours[0].process_group.member(0):
        assert_same_bits(step(ours, x), step(plain, x))
        assert bytes_kept(ours, x) < bytes_kept(plain, x)


def test_recomputed_activations_of_layers_own():
    model = nn.Sequential(Activated(3, nn.ReLU()), nn.Conv2d(3, 2, 1))
    plain = convert(copy.deepcopy(model), fuse=True)
    ours = convert(model, fuse=True, recompute=True)
    x = torch.randn(IMAGE)
    assert_same_bits(step(ours, x), step(plain, x))
    assert bytes_kept(ours, x) < bytes_kept(plain, x)
    assert buffers_of(ours[0]).keys() == buffers_of(plain[0]).keys()


def test_recomputed_residuals_are_not_followed_for_ever():
    """A chain of blocks: every second output is kept."""
    torch.manual_seed(2)
    blocks = [Basic(4, 4) for _ in range(6)]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *blocks)
    plain = convert(copy.deepcopy(model), fuse=True)
    ours = convert(model, fuse=True, recompute=True)
    x = torch.randn(IMAGE)
    assert_same_bits(step(ours, x), step(plain, x))
    made = []
    run = recomputation.spine.recompute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recomputation.spine, "recompute", lambda *given: made.append(1) or run(*given)
        )
        ours(x).sum().backward()
    # The first layer of each block, and the last ones of the first, third and fifth.
    assert len(made) == 6 + 3
