"""Fusing and quantization by PyTorch's tools: converted layers give what PyTorch's give."""

import copy

import pytest

import bnext

from .support import assert_close, torch
from .tool_models import X, new_model

from bnext.torch import classes  # isort: skip - of which there is nothing without PyTorch

convert, report = bnext.torch.convert, bnext.torch.report
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.ao"),
]


@pytest.mark.parametrize("names", [["0", "1"], ["0", "1", "2"], ["3", "4"], ["6", "7"]], ids=str)
def test_fuse_modules_finds_converted_layers(names):
    from torch.ao.quantization import fuse_modules

    expected = fuse_modules(new_model().eval(), [names])
    model = convert(new_model()).eval()
    fused = fuse_modules(model, [names])
    assert [type(module) for module in fused[: int(names[-1]) + 1]][int(names[0]) :] == [
        type(module) for module in expected[: int(names[-1]) + 1]
    ][int(names[0]) :]
    assert_close(fused(X), expected(X), "fused", 20.0)
    assert_close(fused(X), model(X), "fused", 20.0)
    assert type(model[1]) is bnext.torch.BatchNorm2d, "the model that was given has changed"


def test_fuse_modules_for_training():
    from torch.ao.quantization import fuse_modules_qat

    fused = [
        fuse_modules_qat(each, [["0", "1", "2"]]) for each in (new_model(), convert(new_model()))
    ]
    assert type(fused[1][0]) is type(fused[0][0])
    assert type(fused[1][0][1]) is torch.nn.BatchNorm2d
    assert_close(fused[1](X), fused[0](X), "fused", 20.0)


def test_fusing_on_a_graph_finds_converted_layers():
    from torch.fx.experimental import optimization

    expected = optimization.fuse(new_model().eval())
    model = convert(new_model()).eval()
    fused = optimization.fuse(model)
    targets = [node.target for node in fused.graph.nodes]
    assert targets == [node.target for node in expected.graph.nodes]
    assert "1" not in targets
    assert_close(fused(X), expected(X), "fused", 20.0)
    assert type(model[1]) is bnext.torch.BatchNorm2d


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is without oneDNN")
def test_onednn_takes_converted_layers():
    from torch.fx.experimental import optimization
    from torch.utils import mkldnn

    whole = convert(new_model()).eval()
    assert_close(optimization.optimize_for_inference(whole)(X), whole(X), "y", 20.0)
    model = convert(new_model())[:5].eval()
    dense = mkldnn.to_mkldnn(copy.deepcopy(model))
    assert_close(dense(X.to_mkldnn()).to_dense(), model(X), "y", 20.0)


@pytest.mark.parametrize("function", ["prepare_fx", "prepare_qat_fx", "fuse_fx"])
def test_quantization_of_graphs_takes_converted_layers(function):
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    def prepared(model):
        model.train("qat" in function)
        if function == "fuse_fx":
            return quantize_fx.fuse_fx(model)
        return getattr(quantize_fx, function)(model, get_default_qconfig_mapping(), (X,))

    expected = prepared(new_model())
    model = convert(new_model())
    graph = prepared(model)
    assert [type(module) for module in graph.modules()][1:] == [
        type(module) for module in expected.modules()
    ][1:]
    assert_close(graph(X), expected(X), "y", 20.0)
    assert classes.is_ours(model[1])
    assert not report(model).left


def quantized(model, qat, fused, by_graph):
    """A model that is quantized, in training or after it, and calibrated by X."""
    from torch.ao import quantization as q
    from torch.ao.quantization import quantize_fx

    model.train(qat)
    if by_graph:
        mapping = q.get_default_qat_qconfig_mapping if qat else q.get_default_qconfig_mapping
        prepare = quantize_fx.prepare_qat_fx if qat else quantize_fx.prepare_fx
        prepared = prepare(model, mapping("fbgemm"), (X,))
    else:
        model = torch.nn.Sequential(q.QuantStub(), model, q.DeQuantStub()).train(qat)
        names = [[f"1.{name}" for name in each] for each in fused]
        if names:
            model = (q.fuse_modules_qat if qat else q.fuse_modules)(model, names)
        of = q.get_default_qat_qconfig if qat else q.get_default_qconfig
        model.qconfig = of("fbgemm")
        prepared = (q.prepare_qat if qat else q.prepare)(model)
    prepared(X)
    prepared.eval()
    return (quantize_fx.convert_fx if by_graph else q.convert)(prepared)


HAS_ENGINE = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="PyTorch is without FBGEMM"
)


@HAS_ENGINE
@pytest.mark.parametrize("by_graph", [True, False], ids=["fx", "eager"])
@pytest.mark.parametrize("qat", [True, False], ids=["while-training", "after-training"])
@pytest.mark.parametrize("options", [{}, {"fuse": True}], ids=str)
def test_quantized_models_are_those_of_torch_s_layers(options, qat, by_graph):
    """To the bit."""
    fused = [["0", "1", "2"], ["3", "4"], ["6", "7"]]
    expected = quantized(new_model(), qat, fused, by_graph)
    ours = quantized(convert(new_model(), **options), qat, fused, by_graph)
    kinds = [
        [(type(module).__module__, type(module).__qualname__) for module in each.modules()]
        for each in (ours, expected)
    ]
    assert kinds[0] == kinds[1]
    assert torch.equal(ours(X), expected(X))


@HAS_ENGINE
def test_quantization_of_layers_that_have_an_activation():
    """It is kept where a graph is quantized, and layers alone are refused: none is lost."""
    parts = [bnext.torch.BatchNorm2d(3, activation="sigmoid"), torch.nn.Conv2d(3, 2, 1)]
    model = torch.nn.Sequential(*parts)
    model(X)
    expected = copy.deepcopy(model).eval()(X).detach()
    step = float(expected.max() - expected.min()) / 127
    graph = quantized(copy.deepcopy(model), False, [], True)
    torch.testing.assert_close(graph(X), expected, atol=3 * step, rtol=0)
    with pytest.raises(ValueError, match="with activation='sigmoid': make it of two modules"):
        quantized(model, False, [], False)


@HAS_ENGINE
@pytest.mark.parametrize("by_graph", [True, False], ids=["fx", "eager"])
def test_quantization_aware_training_of_frozen_layers(by_graph):
    """They cannot train; afterwards, they are quantized."""
    model = bnext.torch.freeze(convert(new_model()))
    fused = [["0", "1", "2"], ["3", "4"], ["6", "7"]]
    with pytest.raises(ValueError, match=r"got a frozen one: call bnext\.torch\.unfreeze first"):
        quantized(copy.deepcopy(model), True, fused, by_graph)
    y = quantized(copy.deepcopy(model), False, fused, by_graph)(X)
    assert torch.equal(y, quantized(new_model(), False, fused, by_graph)(X))
