"""Whole trainings beside torch.nn's: optimizers, averaged weights, statistics made anew."""

import copy
import functools

import pytest

import bnext

from .support import torch

swa_utils = torch.optim.swa_utils
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-3),
    "AdamW-foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, foreach=True),
}


def new_model(dtype):
    """Without what a layer after it takes away: gradients that are all rounding, for Adam."""
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3, bias=False), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(6, 4, 3, bias=False), torch.nn.BatchNorm2d(4, momentum=None),
        torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 8, bias=False),
        torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3),
    ).to(dtype)  # fmt: skip


def batches(count, dtype, size=16):
    torch.manual_seed(5)
    for _ in range(count):
        target = torch.randint(3, (size,))
        yield (torch.randn(size, 2, 8, 8) + target.view(-1, 1, 1, 1)).to(dtype), target


def fit(model, optimizer, steps, dtype, call=None, after=lambda: None):
    losses = []
    for x, target in batches(steps, dtype):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy((call or model)(x), target)
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_follows_torch_s(name, memory_format):
    """Forty steps in float64, where roundings have not grown; then evaluation."""
    results = []
    for convert in (lambda model: model, bnext.torch.convert):
        model = convert(new_model(torch.float64)).to(memory_format=memory_format)
        losses = fit(model, OPTIMIZERS[name](model.parameters()), 40, torch.float64)
        x = next(batches(1, torch.float64))[0]
        results.append((losses, model.state_dict(), model.eval()(x)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)
    losses = results[1][0]
    assert losses[-1] < 0.5 * losses[0], "nothing was learnt"


def test_training_in_float32_ends_where_torch_s_does():
    ends = []
    for convert in (lambda model: model, bnext.torch.convert):
        model = convert(new_model(torch.float32))
        losses = fit(model, OPTIMIZERS["SGD"](model.parameters()), 40, torch.float32)
        ends.append(sum(losses[-5:]) / 5)
        assert model[1].num_batches_tracked == 40
    assert abs(ends[1] - ends[0]) < 0.2 * ends[0] + 0.02


def test_training_in_16_bits_with_autocast():
    model = bnext.torch.convert(new_model(torch.float32))

    def call(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x).float()

    losses = fit(model, OPTIMIZERS["Adam"](model.parameters()), 40, torch.float32, call)
    assert losses[-1] < 0.5 * losses[0]
    assert model[1].running_mean.dtype == model[1].weight.grad.dtype == torch.float32


def test_accumulated_gradients_and_clipping():
    results = []
    for convert in (lambda model: model, bnext.torch.convert):
        model = convert(new_model(torch.float64))
        for x, target in batches(4, torch.float64):
            (torch.nn.functional.cross_entropy(model(x), target) / 4).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        results.append((norm, [p.grad for p in model.parameters()], model.state_dict()))
    torch.testing.assert_close(results[1], results[0])


def test_averaged_models_and_update_bn():
    """swa_utils looks for instances of PyTorch's class, resets them and lets them count."""
    results = []
    for convert in (lambda model: model, bnext.torch.convert):
        model = convert(new_model(torch.float64))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        averaged = swa_utils.AveragedModel(
            model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        update = functools.partial(averaged.update_parameters, model)
        fit(model, optimizer, 10, torch.float64, after=update)
        before = copy.deepcopy(averaged.state_dict())
        swa_utils.update_bn(batches(5, torch.float64), averaged)
        results.append((before, averaged.state_dict()))
        assert averaged.module[1].num_batches_tracked == 5
        assert averaged.module[1].momentum == 0.1
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)
    assert type(averaged.module[1]) is bnext.torch.BatchNorm2d


def test_frozen_statistics_in_fine_tuning():
    """Layers in evaluation within a model in training, with parameters that are learnt or not."""
    for learnt in (True, False):
        results = []
        for convert in (lambda model: model, bnext.torch.convert):
            model = convert(new_model(torch.float64))
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval().requires_grad_(learnt)
            wanted = [p for p in model.parameters() if p.requires_grad]
            losses = fit(model, torch.optim.SGD(wanted, lr=0.01), 10, torch.float64)
            results.append((losses, model.state_dict()))
            assert model[1].num_batches_tracked == 0
        torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)
