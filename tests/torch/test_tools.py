"""Tools that look layers up by their classes: each finds converted layers, or says what to do."""

import copy
import subprocess
import sys
import textwrap

import pytest

import bnext

from ..optional import import_extra
from .support import assert_close, torch

from bnext.torch import classes, tools  # isort: skip - of which there is nothing without PyTorch

convert, revert, report = bnext.torch.convert, bnext.torch.revert, bnext.torch.report
IGNORED = [
    pytest.mark.filterwarnings("ignore:.*is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.ao"),
]
pytestmark = IGNORED


class Own(torch.nn.BatchNorm2d):
    pass


def new_model(second=torch.nn.BatchNorm2d):
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 1), second(4),
        torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.BatchNorm1d(5),
    )  # fmt: skip
    model(torch.randn(5, 3, 6, 6))  # moves the running statistics
    return model


X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(4))


# --- synchronization under PyTorch's name ---------------------------------------------------------


def test_pytorch_s_conversion_keeps_layers_ours():
    """As Lightning calls it for ``sync_batchnorm=True``."""
    model = convert(new_model(Own))
    layers = [model[1], model[4], model[7]]
    hooked = []
    layers[0].register_forward_hook(lambda *call: hooked.append(type(call[0])))
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert [model[1], model[4], model[7]] == layers
    assert all(isinstance(layer, bnext.torch.SyncBatchNorm) for layer in layers)
    assert isinstance(model[4], Own)
    assert all(layer.process_group is None for layer in layers)
    assert_close(model(X), new_model(Own)(X), "y", 20.0)
    assert hooked == [bnext.torch.SyncBatchNorm]
    single = convert(torch.nn.BatchNorm1d(3))
    assert torch.nn.SyncBatchNorm.convert_sync_batchnorm(single) is single
    revert(model)
    assert [type(model[index]) for index in (1, 4, 7)] == [
        torch.nn.BatchNorm2d, Own, torch.nn.BatchNorm1d,
    ]  # fmt: skip


def test_pytorch_s_conversion_of_pytorch_s_layers_is_as_before():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Sequential(Own(3)))
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model, "group")
    layers = [converted[0], converted[1][0]]
    assert [type(layer) for layer in layers] == [torch.nn.SyncBatchNorm] * 2
    assert [layer.process_group for layer in layers] == ["group"] * 2


def test_pytorch_s_conversion_checks_groups():
    model = convert(new_model())
    before = [type(module) for module in model]
    with pytest.raises(TypeError, match=r"^sync: expected a bnext\.sync group"):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model, "group")
    assert [type(module) for module in model] == before


# --- fusing and quantization ----------------------------------------------------------------------


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


def test_symbolic_trace_of_layers():
    model = convert(torch.nn.Sequential(torch.nn.BatchNorm2d(3), Own(3)))
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes] == ["input", "0", "1", "output"]
    assert_close(traced(X), model(X), "y", 20.0)


# --- functions that exchange parts of layers ------------------------------------------------------


def test_functional_call_and_vmap_of_converted_models():
    model = convert(new_model()).eval()
    state = {name: value * 2 for name, value in model.state_dict().items()}
    expected = torch.func.functional_call(new_model().eval(), state, (X,))
    assert_close(torch.func.functional_call(model, state, (X,)), expected, "y", 100.0)
    without = torch.func.replace_all_batch_norm_modules_(convert(new_model()))
    assert without[1].running_mean is None
    mapped = torch.func.vmap(without, randomness="same")(torch.stack([X, X]))
    assert_close(mapped[1], without(X), "y", 20.0)


def test_swapped_tensors_and_averaged_models():
    model = convert(new_model())
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert model.double()(X.double()).dtype == torch.float64
        model.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.optim.swa_utils.update_bn([X], averaged)
    assert averaged.module[1].num_batches_tracked == 1
    theirs = torch.optim.swa_utils.AveragedModel(revert(model))
    torch.optim.swa_utils.update_bn([X], theirs)
    for name, value in theirs.module.state_dict().items():
        assert_close(averaged.module.state_dict()[name], value, name, 1.0)


# --- the profiler ---------------------------------------------------------------------------------


def seen(call):
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return {event.key: event.count for event in profile.key_averages()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_profiler_sees_layers(training, recorded, kernel_calls):
    model = convert(new_model(Own)).train(training)
    with torch.set_grad_enabled(recorded):
        events = seen(lambda: model(X))
        assert events["bnext::batch_norm"] == 3
        assert "aten::native_batch_norm" not in events
        assert seen(lambda: convert(model, sync=True)(X))["bnext::batch_norm"] == 3
    assert sum(kernel_calls.values()) == 6


def test_profiler_makes_no_compiled_model_compile_again():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = torch.compile(convert(new_model()).eval(), backend=backend)
    model(X)
    graphs = len(compiled)
    seen(lambda: model(X))
    assert len(compiled) == graphs


# --- other packages -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm2d, Own])
@pytest.mark.parametrize("sync", [None, True])
def test_opacus_reports_and_replaces_layers(kind, sync):
    import_extra("opacus")
    from opacus.validators import ModuleValidator

    model = new_model(kind)
    expected = [type(error) for error in ModuleValidator.validate(model)]
    converted = convert(copy.deepcopy(model), sync)
    errors = [type(error) for error in ModuleValidator.validate(converted)]
    assert errors[: len(expected)] == expected
    assert len(errors) == 3, "also subclasses mix examples"
    fixed = ModuleValidator.fix(converted)
    theirs = ModuleValidator.fix(model)
    assert [type(fixed[index]) for index in (1, 7)] == [type(theirs[index]) for index in (1, 7)]
    assert type(fixed[4]) is (
        torch.nn.GroupNorm if kind is torch.nn.BatchNorm2d else type(fixed[4])
    )
    assert len(ModuleValidator.validate(fixed)) == (0 if kind is torch.nn.BatchNorm2d else 1)
    assert classes.is_ours(converted[1])


def test_thop_counts_layers():
    thop = import_extra("thop")
    expected = thop.profile(new_model(), (X,), verbose=False)
    assert thop.profile(convert(new_model()), (X,), verbose=False) == expected


def test_fvcore_finds_layers():
    import_extra("fvcore")
    import_extra("fvcore.nn")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.precise_bn import get_bn_modules

    model = convert(new_model(Own))
    counts = [FlopCountAnalysis(each, X) for each in (new_model(Own), model)]
    totals = [count.unsupported_ops_warnings(False).total() for count in counts]
    assert totals[0] == totals[1]
    assert get_bn_modules(convert(model, sync=True)) == [model[1], model[4], model[7]]


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
def test_ptflops_counts_layers(backend):
    ptflops = import_extra("ptflops")

    def counted(model):
        return ptflops.get_model_complexity_info(
            model.eval(), (3, 6, 6), as_strings=False, print_per_layer_stat=False, backend=backend
        )

    assert counted(convert(new_model())) == counted(new_model())


def test_timm_s_layers_are_exchanged():
    timm = import_extra("timm")
    torch.manual_seed(5)
    reference = timm.create_model("mobilenetv3_small_050", drop_rate=0.0)
    model = convert(copy.deepcopy(reference))
    listed = report(model)
    assert not listed.left
    assert {layer.kind for layer in listed.exchanged} == {"timm.layers.norm_act.BatchNormAct2d"}
    x = torch.randn(4, 3, 32, 32)
    for training in (True, False):
        assert_close(model.train(training)(x), reference.train(training)(x), "y", 100.0)
    synchronized = timm.layers.convert_sync_batchnorm(model)
    assert all(layer.synchronized for layer in report(synchronized).exchanged)
    assert not report(synchronized).left
    assert_close(synchronized(x), reference(x), "y", 100.0)
    assert {type(module) for module in revert(model).modules()} == {
        type(module) for module in reference.modules()
    }
    split = timm.layers.convert_splitbn_model(convert(copy.deepcopy(reference)))
    assert not report(split).left
    expected = timm.layers.convert_splitbn_model(copy.deepcopy(reference))
    assert_close(split.train()(x), expected.train()(x), "y", 100.0)
    theirs = convert(timm.layers.convert_sync_batchnorm(reference))
    assert {layer.kind for layer in report(theirs).exchanged} == {
        "timm.layers.norm_act.SyncBatchNormAct"
    }


# Packages of the tools' form, for where they are not installed.
STAND_INS = {
    "thop/__init__.py": "from .profile import profile",
    "thop/profile.py": """
        import torch
        register_hooks = {torch.nn.BatchNorm2d: "counted"}
        def profile(model):
            return register_hooks.get(type(model))
        """,
    "ptflops/__init__.py": "",
    "ptflops/pytorch_ops.py": """
        import torch
        MODULES_MAPPING = {torch.nn.BatchNorm2d: "counted"}
        """,
    "opacus/__init__.py": "from . import validators",
    "opacus/validators/__init__.py": """
        import torch
        from .module_validator import ModuleValidator
        ModuleValidator.VALIDATORS[torch.nn.BatchNorm2d] = lambda layer: [type(layer)]
        ModuleValidator.FIXERS[torch.nn.BatchNorm2d] = lambda layer, **named: (type(layer), named)
        """,
    "opacus/validators/module_validator.py": """
        class ModuleValidator:
            VALIDATORS = {}
            FIXERS = {}
        """,
}

CHECK = """
    class Own(torch.nn.BatchNorm2d):
        pass

    layer, own = bnext.torch.convert(torch.nn.BatchNorm2d(3)), bnext.torch.convert(Own(3))
    table = opacus.validators.ModuleValidator
    assert thop.profile(layer) == "counted"
    assert thop.profile(own) is None, "as it does with Own itself"
    assert pytorch_ops.MODULES_MAPPING[type(layer)] == "counted"
    assert table.VALIDATORS[type(layer)](layer) == [torch.nn.BatchNorm2d]
    assert table.VALIDATORS[type(own)](own) == [Own]
    assert table.FIXERS[type(layer)](layer, groups=2) == (torch.nn.BatchNorm2d, {"groups": 2})
    assert table.FIXERS[type(own)](own) is own
    table.FIXERS[torch.nn.BatchNorm2d] = lambda layer: "another"  # of a user, afterwards
    assert table.FIXERS[type(layer)](layer) == "another"
    table.FIXERS[Own] = lambda layer: "own"
    assert table.FIXERS[type(own)](own) == "own"
    print("checked", thop.__spec__.loader.__class__.__name__)
    """
THEIRS = "import thop, ptflops, opacus\nfrom ptflops import pytorch_ops\n"
OURS = "import torch, bnext.torch\n"


@pytest.mark.parametrize("first", ["tools", "bnext"])
def test_tools_are_told_whichever_is_imported_first(first, tmp_path):
    for name, text in STAND_INS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    order = [f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n", OURS, THEIRS]
    if first == "tools":
        order[1:] = reversed(order[1:])
    program = "".join(order) + textwrap.dedent(CHECK)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "checked SourceFileLoader", done.stderr


def test_tools_of_another_version_are_told_of_once(monkeypatch):
    monkeypatch.setattr(tools, "_UNKNOWN", set())
    name, enter = tools.TABLES[0]
    text = rf"of {name} .*bnext\.torch\.revert\(model\)"
    with pytest.warns(bnext.torch.ConversionWarning, match=text) as said:
        tools._enter_all(name, enter, sys)
    assert len(said) == 1
