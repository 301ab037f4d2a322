"""bnext.torch.functional.batch_norm under PyTorch's own name: ways back to PyTorch end there."""

import copy

import pytest

import bnext

from .support import Failure, assert_close, buffers_of, layers, outcome_of, torch

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")


def dual(layer, x):
    return torch.func.jvp(layer.eval(), (x,), (x.cos(),))


WAYS = {
    "eager": lambda layer, x: layer(x),
    "evaluation": lambda layer, x: layer.eval()(x),
    "vmap": lambda layer, x: torch.vmap(layer.eval())(torch.stack([x, 2 * x])),
    "jvp": dual,
    "jit.trace": lambda layer, x: torch.jit.trace(layer, x, check_trace=False)(x),
    "empty": lambda layer, x: layer.eval()(x[:0]),
    "compiled training": lambda layer, x: torch.compile(layer, backend="aot_eager")(x),
    "compiled inference": lambda layer, x: torch.compile(layer.eval(), backend="aot_eager")(x),
    "exported": lambda layer, x: torch.export.export(layer, (x,)).module()(x),
    "integers": lambda layer, x: layer(x.long()),
    "one value": lambda layer, x: layer(x[:1]),
    "channels": lambda layer, x: layer(x[:, :4]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", ["torch.nn", "bnext.torch"])
def test_function_in_place_of_torch_s(library, way, monkeypatch):
    x = torch.randn(6, 5)
    theirs, ours = layers("BatchNorm1d")
    layer = ours if library == "bnext.torch" else copy.deepcopy(theirs)
    expected = outcome_of(WAYS[way], theirs, x)
    torch.compiler.reset()
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "batch_norm", bnext.torch.functional.batch_norm)
        actual = outcome_of(WAYS[way], layer, x)
    torch.compiler.reset()
    if isinstance(expected, Failure):
        assert actual.type is expected.type
        assert actual.text.splitlines()[0] == expected.text.splitlines()[0]
        return
    torch.testing.assert_close(actual, expected)
    if way not in ("exported", "jit.trace"):  # buffers of a copy
        for name, value in buffers_of(theirs).items():
            assert_close(buffers_of(layer)[name], value, name)


def test_function_in_place_of_torch_s_runs_the_kernels(monkeypatch, kernel_calls):
    monkeypatch.setattr(torch.nn.functional, "batch_norm", bnext.torch.functional.batch_norm)
    torch.nn.BatchNorm1d(5)(torch.randn(6, 5))
    assert kernel_calls["forward"] == 1
