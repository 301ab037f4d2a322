"""Where masks meet ghosts, batches that are skipped, adaptation and statistics for inference."""

import numpy as np
import pytest

import bnext

from .support import torch


def batch(seed=0):
    """x with NaN where a mask is False, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand((6, 8), generator=generator) < 0.6
    x = torch.randn((6, 3, 8), generator=generator)
    return x.masked_fill(~mask[:, None], torch.nan), mask


def test_ghosts_and_masks_meet_in_training_only():
    x, mask = batch()
    layer = bnext.torch.BatchNorm1d(3, ghost_batch_size=2)
    with pytest.raises(ValueError, match=r"^mask: expected None for a layer that normalizes by gh"):
        layer(x, mask=mask)
    assert layer.num_batches_tracked == 0
    plain = bnext.torch.BatchNorm1d(3).eval()
    torch.testing.assert_close(layer.eval()(x, mask=mask), plain(x, mask=mask), rtol=0, atol=0)
    with (
        bnext.torch.adapt(layer),
        pytest.raises(ValueError, match=r"^mask: expected None for .* or adapts"),
    ):
        layer(x, mask=mask)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_hidden_values_skip_no_batch(momentum):
    x, mask = batch()
    layer = bnext.torch.BatchNorm1d(3, momentum=momentum, skip_nonfinite=True)
    plain = bnext.torch.BatchNorm1d(3, momentum=momentum)
    for each in (layer, plain):
        each(x, mask=mask)
    shown = x.clone()
    shown[0, 0, mask[0].nonzero()[0]] = torch.inf
    layer(shown, mask=mask)
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_weights_that_want_gradients_are_refused():
    x, _ = batch()
    weights = torch.ones(6, requires_grad=True)
    for call in (bnext.torch.BatchNorm1d(3), lambda x, **of: bnext.moments(x.numpy(), **of)):
        with pytest.raises(TypeError, match=r"^sample_weight: .* requires no gradient"):
            call(x, sample_weight=weights)
        with torch.no_grad():
            call(x, sample_weight=weights)


class Masked(torch.nn.Module):
    """Takes x and a mask."""

    def __init__(self, by_name):
        super().__init__()
        self.bn, self.by_name = bnext.torch.BatchNorm1d(3), by_name

    def forward(self, x, mask):
        return self.bn(input=x, mask=mask) if self.by_name else self.bn(x, mask=mask)


@pytest.mark.parametrize("method", ["exact", "pooled", "average"])
@pytest.mark.parametrize("by_name", [False, True])
def test_statistics_for_inference_are_of_what_counts(method, by_name):
    batches = [batch(0), batch(1)]
    model = Masked(by_name)
    bnext.torch.update_statistics(model, batches, method)
    parts = [x.movedim(1, 2)[mask].double().numpy() for x, mask in batches]
    rows = np.concatenate(parts)
    mean, var = rows.mean(0), rows.var(0, ddof=1)
    if method == "average":
        mean = np.mean([part.mean(0) for part in parts], 0)
        var = np.mean([part.var(0, ddof=1) for part in parts], 0)
    np.testing.assert_allclose(model.bn.running_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.bn.running_var, var, rtol=1e-5)
