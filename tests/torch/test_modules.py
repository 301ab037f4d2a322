"""The layers as modules: their classes, states, copies and what users do with them."""

import copy
import inspect
import io
import pickle

import pytest

import bnext

from .support import BUFFERS, LIBRARIES, PARAMETERS, assert_close, layers, step, torch

NAMES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"]
OPTIONS = [
    {}, {"eps": 1e-3, "momentum": None}, {"affine": False}, {"track_running_stats": False},
    {"dtype": torch.float64}, {"device": "meta"},
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_torch_s_for_whoever_looks(name):
    ours, theirs = getattr(bnext.torch, name), getattr(torch.nn, name)
    layer = ours(5)
    assert isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    # DistributedDataParallel refuses every instance of that one on the CPU.
    assert isinstance(layer, theirs) == (name != "SyncBatchNorm")
    assert type(layer).__name__ == theirs.__name__
    assert ours.__module__.startswith("bnext.torch")
    ours_take, theirs_take = (inspect.signature(kind).parameters for kind in (ours, theirs))
    for parameter in theirs_take:
        known = parameter in ours_take or "more" in ours_take
        assert known, f"{parameter} is not taken"
    shared = [parameter for parameter in ours_take if parameter in theirs_take]
    assert shared == list(theirs_take)[: len(shared)]
    assert all(ours_take[each].default == theirs_take[each].default for each in shared)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_layers_have_the_same_repr_and_state(name, options):
    theirs, ours = (getattr(library, name)(5, **options) for library in LIBRARIES.values())
    assert repr(ours) == f"{repr(theirs)[:-1]}, kernels=bnext)"
    assert ours.extra_repr() == f"{theirs.extra_repr()}, kernels=bnext"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    for key, value in theirs.state_dict().items():
        other = ours.state_dict()[key]
        assert (other.dtype, other.shape, other.device) == (value.dtype, value.shape, value.device)
        assert value.is_meta or torch.equal(other, value)
    public = {key for key in vars(theirs) if not key.startswith("_")}
    assert {key for key in vars(ours) if not key.startswith("_")} == public


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_go_both_ways(name, options):
    """Strictly, and through a file of which nothing but weights may be loaded."""
    theirs, ours = (getattr(library, name)(5, **options) for library in LIBRARIES.values())
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for tensor in source.state_dict().values():
                tensor.copy_(torch.randint(1, 9, tensor.shape))
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert str(target.load_state_dict(loaded, strict=True)) == "<All keys matched successfully>"
        for key, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], value)


def test_state_dicts_of_version_1_lack_the_counter():
    state = torch.nn.BatchNorm1d(5).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layer = bnext.torch.BatchNorm1d(5)
    layer.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"running_var\""):
        layer.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "running_var"})


def copies_of(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(layer), "pickle": pickle.loads(pickle.dumps(layer)),
        "file": torch.load(file, weights_only=False),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_by_themselves(name):
    """Also after a forward pass, and within a graph that was not gone back through."""
    _, layer = layers(name)
    shape = {"BatchNorm2d": (4, 5, 3, 3), "BatchNorm3d": (4, 5, 2, 3, 3)}.get(name, (4, 5))
    x, dy = torch.randn(2, *shape)
    step(layer, x, dy)
    y = layer(x.clone().requires_grad_())
    copies = copies_of(layer)
    after = step(layer, x, dy)
    for how, other in copies.items():
        assert type(other) is type(layer)
        assert other.weight.data_ptr() != layer.weight.data_ptr()
        if how != "pickle" or other.weight.grad is None:
            other.weight.grad = other.bias.grad = None
        again = step(other, x, dy)
        assert torch.equal(again.y, after.y), how
        for key in BUFFERS:
            assert torch.equal(again.buffers[key], after.buffers[key]), how
    y.sum().backward()
    shallow = copy.copy(layer)
    shallow(x)
    assert layer.num_batches_tracked == shallow.num_batches_tracked


@pytest.mark.parametrize("name", ["BatchNorm2d", "BatchNorm3d"])
def test_layers_go_where_they_are_sent(name):
    formats = {"BatchNorm2d": torch.channels_last, "BatchNorm3d": torch.channels_last_3d}
    for theirs, ours in (layers(name), layers(name)):
        for layer in (theirs, ours):
            layer.to(torch.float64, memory_format=formats[name]).to("cpu")
            layer.share_memory()
            layer.requires_grad_(False)
        shape = (4, 5, 3, 3) if name == "BatchNorm2d" else (4, 5, 2, 3, 3)
        x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=formats[name])
        y = ours(x)
        assert_close(y, theirs(x), "y")
        assert y.is_contiguous(memory_format=formats[name])
        assert ours.running_mean.is_shared()
        assert_close(ours.running_mean, theirs.running_mean, "running_mean")
    with torch.device("meta"):
        layer = getattr(bnext.torch, name)(5)
    assert layer.weight.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.running_var, torch.ones(5))


def test_layers_as_parts_of_models():
    model = torch.nn.Sequential(bnext.torch.BatchNorm1d(5), torch.nn.ModuleDict())
    model[1]["inner"] = bnext.torch.BatchNorm2d(3)
    assert [name for name, _ in model.named_modules()] == ["", "0", "1", "1.inner"]
    assert [name for name, _ in model.named_buffers()][:3] == [f"0.{name}" for name in BUFFERS]
    assert [name for name, _ in model[0].named_parameters()] == list(PARAMETERS)
    visited = []
    model.apply(lambda module: visited.append(type(module).__name__))
    assert visited.count("BatchNorm2d") == 1
    assert model.train(False)[0].training is False


def test_parametrized_weight():
    """The weight is then a plain tensor that is made anew for every call."""

    class Positive(torch.nn.Module):
        def forward(self, weight):
            return weight.exp()

    x, dy = torch.randn(2, 4, 5)
    results = []
    for layer in layers("BatchNorm1d"):
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Positive())
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        results.append((y, leaf.grad, layer.parametrizations.weight.original.grad))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected, "parametrized", 10.0)
    assert isinstance(layer, bnext.torch.BatchNorm1d)


def test_data_parallel_on_the_cpu():
    theirs, ours = layers("BatchNorm1d")
    x = torch.randn(4, 5)
    assert_close(torch.nn.DataParallel(ours)(x), torch.nn.DataParallel(theirs)(x), "y")
    assert ours.num_batches_tracked == 4


def test_subclasses_of_a_user():
    class Checked(bnext.torch.BatchNorm1d):
        def _check_input_dim(self, input):
            if input.dim() != 4:
                raise ValueError("four, please")

    layer = Checked(5)
    with pytest.raises(ValueError, match="four, please"):
        layer(torch.randn(4, 5))
    assert layer.num_batches_tracked == 0
    assert layer(torch.randn(4, 5, 2, 2)).shape == (4, 5, 2, 2)
    assert type(pickle.loads(pickle.dumps(bnext.torch.BatchNorm1d(2)))) is bnext.torch.BatchNorm1d


@pytest.mark.parametrize("momentum", [0.1, None])
def test_counters_count(momentum):
    for layer in layers("BatchNorm1d", momentum=momentum):
        layer.reset_running_stats()
        for number in range(1, 4):
            layer(torch.randn(4, 5))
            assert layer.num_batches_tracked == number
        layer.eval()(torch.randn(4, 5))
        assert layer.num_batches_tracked == 3
        assert layer.num_batches_tracked.dtype == torch.int64
