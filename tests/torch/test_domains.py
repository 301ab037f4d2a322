"""bnext.torch.Domains: running statistics of several domains."""

import copy

import pytest

import bnext

from .support import torch

NAMES = ("running_mean", "running_var", "num_batches_tracked")


def model_of(kind=torch.nn):
    return torch.nn.Sequential(kind.BatchNorm1d(3), torch.nn.ReLU(), kind.BatchNorm1d(3))


def batch_of(shift, seed=0):
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)) + shift


def assert_same_statistics(model, other):
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name


@pytest.mark.parametrize("kind", [torch.nn, bnext.torch], ids=["torch.nn", "bnext.torch"])
def test_each_domain_has_its_statistics_and_all_one_weight(kind):
    model, photo, sketch = (model_of(kind) for _ in range(3))
    domains = bnext.torch.Domains(model, ["photo", "sketch"])
    assert list(domains.layers) == ["0", "2"]
    for seed in range(2):
        for alone, name, shift in ((photo, "photo", 1), (sketch, "sketch", -3)):
            alone(batch_of(shift, seed))
            with domains(name):
                model(batch_of(shift, seed)).sum().backward()
    assert_same_statistics(model, photo)
    domains.current = "sketch"
    assert_same_statistics(model, sketch)
    assert list(model.state_dict()) == list(photo.state_dict())
    assert len(list(model.parameters())) == 4


def test_compiled():
    torch.compiler.reset()
    model, photo, sketch = (model_of(bnext.torch) for _ in range(3))
    domains = bnext.torch.Domains(model, ["photo", "sketch"])
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    for alone, name, shift in ((photo, "photo", 1), (sketch, "sketch", -3)):
        with domains(name):
            call(batch_of(shift))
        alone(batch_of(shift))
        with domains(name):
            for layer, expected in zip(model[::2], alone[::2], strict=True):
                torch.testing.assert_close(layer.running_mean, expected.running_mean)


def test_state_dicts_and_dtypes():
    model = model_of(bnext.torch)
    model[0].skip_nonfinite = True
    domains = bnext.torch.Domains(model, ["a", "b"])
    with domains("b"):
        model(batch_of(4))
    state = domains.state_dict()
    assert list(state)[:3] == [f"a.0.{name}" for name in NAMES]
    assert len(state) == 12
    other = copy.deepcopy(model_of())
    copies = bnext.torch.Domains(other, ["a", "b"])
    copies.load_state_dict(state)
    other.double()
    copies.current = "b"
    assert other[0].running_mean.dtype == torch.float64
    torch.testing.assert_close(other[0].running_mean.float(), state["b.0.running_mean"])
    assert other[0].num_batches_tracked.dtype == torch.int64


def test_a_batch_that_is_not_finite_is_counted_in_its_domain():
    model = bnext.torch.BatchNorm1d(3, skip_nonfinite=True)
    domains = bnext.torch.Domains(model, ["a", "b"])
    with domains("b"):
        model(torch.full((4, 3), float("nan")))
        assert model.num_batches_skipped == 1
    assert model.num_batches_skipped == 0


def test_errors():
    with pytest.raises(ValueError, match=r"^model: expected a layer with running statistics"):
        bnext.torch.Domains(torch.nn.Linear(2, 2), ["a"])
    with pytest.raises(TypeError, match=r"^model: expected"):
        bnext.torch.Domains(3, ["a"])
    domains = bnext.torch.Domains(model_of(), ["a", "b"])
    with pytest.raises(ValueError, match=r"^domain: expected one of a, b, got 'c'"):
        domains.current = "c"
    state = domains.state_dict()
    state["b.0.running_mean"] = [0.0] * 3
    state["a.0.running_mean"] = torch.ones(3)
    with pytest.raises(TypeError, match=r"^b.0.running_mean: expected a tensor, got list"):
        domains.load_state_dict(state)
    assert (domains.state_dict()["a.0.running_mean"] == 0).all()
