"""convert(model, fuse=True, fold=True): the layer before does the normalization in evaluation."""

import copy
import io
import pickle

import pytest

import bnext

from .support import torch

nn = torch.nn
F32 = {"rtol": 2e-5, "atol": 2e-5}

# Each with the shape of an input; the results outnumber the weight.
PAIRS = {
    "conv1d": (lambda: [nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5)], (2, 3, 40)),
    "conv2d": (lambda: [nn.Conv2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6)], (2, 4, 31, 31)),
    "groups": (lambda: [nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)], (1, 6, 9, 9)),
    "reflected": (
        lambda: [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)],
        (3, 3, 11, 12),
    ),
    "conv3d": (lambda: [nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 2, 7, 8, 9)),
    "linear": (lambda: [nn.Linear(7, 5), nn.BatchNorm1d(5)], (50, 7)),
    "transposed1d": (lambda: [nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)], (2, 4, 30)),
    "transposed2d": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)], (2, 4, 9, 9)
    ),
    "transposed3d": (lambda: [nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d(4)], (2, 2, 5, 6, 7)),
    "plain affine": (
        lambda: [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False, eps=0.1)], (2, 3, 8, 8)
    ),
}  # fmt: skip
ACTIVATIONS = {
    None: [], "relu": [nn.ReLU()], "relu6": [nn.ReLU6(inplace=True)], "silu": [nn.SiLU()],
    "leaky_relu": [nn.LeakyReLU(0.2)], "hardswish": [nn.Hardswish()], "gelu": [nn.GELU()],
    "sigmoid": [nn.Sigmoid()], "tanh": [nn.Tanh()],
}  # fmt: skip


def trained(model):
    """Parameters and statistics that are no zeros and ones."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.3, 3.0)
                if layer.affine:
                    layer.weight.normal_()
                    layer.bias.normal_()
    return model.eval()


def chain(name="conv2d", activation="relu", seed=3):
    torch.manual_seed(seed)
    pair, shape = PAIRS[name]
    model = trained(nn.Sequential(*pair(), *copy.deepcopy(ACTIVATIONS[activation])))
    return model, torch.randn(shape)


def converted(model, **options):
    return bnext.torch.convert(copy.deepcopy(model), fuse=True, **options)


def made(model):
    """How many weights the layers of a model keep now."""
    kept = [vars(each).get("_merged") for each in model.modules()]
    return sum(getattr(each, "made", None) is not None for each in kept)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torch_merging_gives_the_values_of_both_layers(name, dtype):
    model, x = chain(name)
    model, x = model.to(dtype), x.to(dtype)
    expected = copy.deepcopy(model).double()(x.double())
    ours = converted(model)
    y = ours(x)
    assert made(ours) == 1
    assert y.dtype is dtype
    assert y.stride() == model(x).stride()
    bound = F32 if dtype is torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(y.double(), expected, **bound)
    if dtype is torch.float32:
        error, theirs = ((each.double() - expected).abs().max() for each in (y, model(x)))
        assert error <= 4 * theirs + torch.finfo(dtype).eps


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_torch_merging_applies_what_follows(activation):
    model, x = chain(activation=activation)
    ours = converted(model)
    torch.testing.assert_close(ours(x), model(x), **F32)
    assert made(ours) == 1
    x[0, 0, 0, 0] = torch.nan
    assert torch.equal(ours(x).isnan(), model(x).isnan())


def test_torch_merging_is_reported_and_can_be_left_out():
    model, x = chain(activation=None)
    ours = converted(model)
    report = bnext.torch.report(ours)
    assert report.merged == (bnext.torch.Merged("1", "", "0"),)
    assert report.fused == ()
    assert len(report.apart) == 1
    assert "1 is part of the layer before it in evaluation" in str(report)
    for other in (converted(model, fold=False), bnext.torch.convert(copy.deepcopy(model))):
        assert bnext.torch.report(other).merged == ()
        other(x)
        assert made(other) == 0
    assert bnext.torch.convert(ours, fuse=True, fold=False) is ours
    assert bnext.torch.report(ours).merged == ()
    bnext.torch.convert(ours, fuse=True)
    assert len(bnext.torch.report(ours).merged) == 1
    ours(x)
    bnext.torch.revert(ours)
    assert made(ours) == 0
    assert torch.equal(ours(x), model(x))


def through_data(layer, name):
    getattr(layer, name).data.mul_(-1.5)


def one_value(layer, name):
    getattr(layer, name).data.view(-1)[-1] = 3.0


def by_numpy(layer, name):
    getattr(layer, name).detach().numpy()[...] *= -1.5


def by_version(layer, name):
    getattr(layer, name).mul_(-1.5)


def another_memory(layer, name):
    getattr(layer, name).data = getattr(layer, name).data * 2 - 1


def another_tensor(layer, name):
    value = getattr(layer, name)
    changed = (value * 2 - 1).detach()
    setattr(layer, name, nn.Parameter(changed) if isinstance(value, nn.Parameter) else changed)


def reversed_order(layer, name):
    tensor = getattr(layer, name)
    tensor.data.copy_(tensor.data.flip(tensor.dim() - 1))


@pytest.mark.parametrize("place", [(0, "weight"), (0, "bias"), (1, "running_mean"), (1, "weight"),
                                   (1, "bias"), (1, "running_var")])  # fmt: skip
@pytest.mark.parametrize("write", [through_data, one_value, by_numpy, by_version, another_memory,
                                   another_tensor, reversed_order])  # fmt: skip
def test_torch_merging_notices_every_write(write, place):
    model, x = chain("conv1d")
    ours = converted(model)
    ours(x)
    index, tensor = place
    for each in (model, ours):
        write(each[index], tensor)
        if tensor == "running_var":
            each[index].running_var.data.abs_()
    expected = model(x)
    for _ in range(12):  # by turns in two steps and in one
        torch.testing.assert_close(ours(x), expected, **F32)
    assert made(ours) == 1


def test_torch_merging_notices_eps_and_writes_of_kernels():
    model, x = chain()
    ours = converted(model)
    ours(x)
    for each in (model, ours):
        each[1].eps = 0.7
    torch.testing.assert_close(ours(x), model(x), **F32)
    for each in (model, ours):  # the kernels move the statistics, and nothing else is called
        each[1].train()
        each(x)
        each[1].eval()
    torch.testing.assert_close(ours(x), model(x), **F32)


def test_torch_merging_makes_no_weights_for_values_that_do_not_last():
    model, x = chain()
    ours = converted(model)
    ours(x)
    assert made(ours) == 1
    for _ in range(3):
        ours[1].running_mean.add_(0.1)
        ours(x)
        assert made(ours) == 0
    for _ in range(10):
        ours(x)
    assert made(ours) == 1
    ours[1].running_mean.add_(0.1)
    ours(x)
    assert made(ours) == 1


def test_torch_merging_gives_memory_back():
    model, x = chain()
    ours = converted(model)
    for change in (lambda: ours.train(), lambda: ours.double().float()):
        for _ in range(10):
            ours.eval()(x)
        assert made(ours) == 1
        change()
        assert made(ours) == 0
    torch.testing.assert_close(ours.eval()(x), model(x), **F32)


def test_torch_merging_trains_as_without_it():
    model, x = chain()
    ours, other = converted(model), converted(model, fold=False)
    with torch.enable_grad():
        for each in (ours, other):
            each.train()(x).square().sum().backward()
            each.eval()(x).square().sum().backward()
    for one, two in zip(ours.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
    assert made(ours) == 0


@pytest.mark.parametrize("recorded", ["input", "weight"])
def test_torch_merging_is_not_done_where_autograd_records(recorded):
    model, x = chain()
    ours = converted(model)
    for parameter in ours.parameters():
        parameter.requires_grad_(recorded == "weight")
    with torch.enable_grad():
        x.requires_grad_(recorded == "input")
        assert ours(x).requires_grad
        assert made(ours) == 0
        ours.requires_grad_(False)
        assert not ours(x.detach()).requires_grad
        assert made(ours) == 1


def test_torch_merging_in_inference_mode():
    model, x = chain()
    ours = converted(model)
    with torch.inference_mode():
        y = ours(x)
    assert y.is_inference()
    assert made(ours) == 1
    torch.testing.assert_close(ours(x), y, rtol=0, atol=0)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_torch_merging_leaves_layers_with_hooks_alone(index):
    model, x = chain()
    ours = converted(model)
    seen = []
    for each in (model, ours):
        each[index].register_forward_hook(lambda *given: seen.append(given[2].clone()))
    torch.testing.assert_close(ours(x), model(x), **F32)
    assert len(seen) == 2
    assert made(ours) == 0
    torch.testing.assert_close(*seen, **F32)


def test_torch_merging_leaves_other_calls_alone():
    model, x = chain()
    ours, reference = converted(model), converted(model, fold=False)
    with torch.autocast("cpu"):
        assert torch.equal(ours(x), reference(x))
    half, theirs = copy.deepcopy(ours).bfloat16(), copy.deepcopy(reference).bfloat16()
    assert torch.equal(half(x.bfloat16()), theirs(x.bfloat16()))
    parametrized = copy.deepcopy(ours)
    nn.utils.parametrizations.weight_norm(parametrized[0])
    torch.testing.assert_close(parametrized(x), model(x), **F32)
    mapped = torch.func.vmap(ours)(x[:, None])
    torch.testing.assert_close(mapped[:, 0], model(x), **F32)
    assert made(ours) == made(half) == made(parametrized) == 0
    for wrong in (x[:, :2], x[0, 0], x.double()):
        with pytest.raises(RuntimeError) as error:
            ours(wrong)
        with pytest.raises(RuntimeError) as expected:
            model(wrong)
        assert str(error.value) == str(expected.value)
    with pytest.raises(ValueError, match="4D input"):
        ours(x[0])


def test_torch_merging_keeps_the_memory_format():
    model, x = chain()
    x = x.to(memory_format=torch.channels_last)
    for each in (model, copy.deepcopy(model).to(memory_format=torch.channels_last)):
        ours = converted(each)
        y = ours(x)
        assert y.stride() == each(x).stride()
        assert made(ours) == 1
        torch.testing.assert_close(y, each(x), **F32)


def test_torch_merging_refuses_weights_that_are_not_finite():
    model, x = chain()
    model[1].running_var[0] = torch.nan
    model[1].weight[1] = 1e38
    model[0].weight[1] = 1e10
    ours = converted(model)
    torch.testing.assert_close(ours(x), model(x), equal_nan=True, **F32)
    assert vars(ours[1])["_merged"].refused
    assert made(ours) == 0


def test_torch_merging_is_not_done_where_the_weight_outnumbers_the_results():
    model, x = chain("linear")
    ours = converted(model)
    torch.testing.assert_close(ours(x[:6]), model(x[:6]), **F32)
    assert made(ours) == 0
    torch.testing.assert_close(ours(x[:7]), model(x[:7]), **F32)
    assert made(ours) == 1


def test_torch_merging_in_copies_pickles_and_state_dicts():
    model, x = chain()
    ours = converted(model)
    y = ours(x)
    assert [*ours.state_dict()] == [*model.state_dict()]
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded):
        assert made(other) == 0
        torch.testing.assert_close(other(x), y, **F32)
        other.train()
    assert made(ours) == 1


def test_torch_merging_of_what_is_added_or_shared_is_not_done():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)) + x)

    class Shared(Added):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) * y

    class Twice(Added):
        def forward(self, x):
            return self.bn(self.conv(self.bn(self.conv(x))))

    class Between(Added):
        def forward(self, x):
            y = self.conv(x)
            x = x.relu_()
            return self.bn(y) * x

    for kind in (Added, Shared, Twice, Between):
        model = trained(kind())
        ours = converted(model)
        assert bnext.torch.report(ours).merged == ()
        x = torch.randn(2, 3, 5, 5)
        torch.testing.assert_close(ours(x.clone()), model(x.clone()), **F32)


def test_torch_merging_compiled_and_exported():
    model, x = chain()
    ours = converted(model)
    ours(x)
    exported = torch.export.export(ours, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), **F32)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), **F32)


def test_torch_merging_of_frozen_layers():
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self, channels):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.rand(channels) + 0.5)

        def forward(self, x):
            w, b, rv, rm = (
                each.reshape(1, -1, 1, 1)
                for each in (self.weight, self.bias, self.running_var, self.running_mean)
            )
            scale = w * (rv + 1e-5).rsqrt()
            return x * scale + (b - rm * scale)

    model = nn.Sequential(nn.Conv2d(3, 5, 1), FrozenBatchNorm2d(5), nn.ReLU()).eval()
    ours, x = converted(model), torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(ours(x), model(x), **F32)
    assert made(ours) == 1
    for each in (model, ours):
        each[1].running_mean.add_(1)
    torch.testing.assert_close(ours(x), model(x), **F32)
