"""Tools that look layers up by their classes: each finds converted layers, or says what to do."""

import copy
import subprocess
import sys
import textwrap

import pytest

import bnext

from ..optional import import_extra
from .support import assert_close, torch
from .tool_models import Own, X, new_model

from bnext.torch import classes, tools  # isort: skip - of which there is nothing without PyTorch

convert, revert, report = bnext.torch.convert, bnext.torch.revert, bnext.torch.report
IGNORED = [
    pytest.mark.filterwarnings("ignore:.*is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.ao"),
]
pytestmark = IGNORED


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
