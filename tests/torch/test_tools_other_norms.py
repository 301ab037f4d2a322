"""Tools that look layers up by their classes, and norms besides batch normalization."""

import copy

import pytest

import bnext

from ..optional import import_extra
from .support import assert_close, torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.ao"),
]
nn = torch.nn


class Own(nn.InstanceNorm2d):
    pass


def new_model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True), Own(4), nn.LayerNorm([4, 4]),
    )  # fmt: skip


def convert(model):
    return bnext.torch.convert(model, norms="all")


X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(4))


def test_opacus_reports_what_keeps_statistics():
    import_extra("opacus")
    from opacus.validators import ModuleValidator

    def kinds(model):
        return [type(error) for error in ModuleValidator.validate(model)]

    expected = kinds(new_model())
    assert expected, "instance normalization that tracks statistics"
    assert kinds(convert(new_model())) == expected
    fixed = ModuleValidator.fix(convert(new_model()))
    assert not ModuleValidator.validate(fixed)
    assert_close(fixed(X), ModuleValidator.fix(new_model())(X), "y", 20.0)


def test_opacus_reports_batch_renormalization():
    import_extra("opacus")
    from opacus.validators import ModuleValidator

    model = nn.Sequential(bnext.torch.BatchRenorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    assert len(ModuleValidator.validate(model)) == 1
    fixed = ModuleValidator.fix(model)
    assert isinstance(fixed[0], nn.GroupNorm)
    assert not ModuleValidator.validate(fixed)


def test_thop_counts_other_norms():
    thop = import_extra("thop")
    expected = thop.profile(new_model(), (X,), verbose=False)
    assert thop.profile(convert(new_model()), (X,), verbose=False) == expected


def test_ptflops_counts_other_norms():
    ptflops = import_extra("ptflops")

    def counted(model):
        return ptflops.get_model_complexity_info(
            model.eval(), (3, 6, 6), as_strings=False, print_per_layer_stat=False, backend="pytorch"
        )

    assert counted(convert(new_model())) == counted(new_model())


def test_quantization_of_graphs_knows_other_norms():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    def quantized(model):
        prepared = quantize_fx.prepare_fx(model.eval(), get_default_qconfig_mapping(), (X,))
        prepared(X)
        return quantize_fx.convert_fx(prepared)

    def traceable():  # PyTorch traces into subclasses, whose checks are of values
        return nn.Sequential(*(each for each in new_model() if not isinstance(each, Own)))

    expected, actual = quantized(traceable()), quantized(convert(traceable()))
    names = [[type(each).__name__ for each in model.modules()] for model in (actual, expected)]
    assert names[0] == names[1]
    assert_close(actual(X), expected(X), "y", 20.0)


def test_models_stay_as_they_are():
    model = convert(new_model())
    before = [type(each) for each in model]
    test = copy.deepcopy(model)
    assert [type(each) for each in test] == before
    assert not bnext.torch.report(model).left


# --- layers with an activation of their own, of which these tools know nothing --------------------


def activated_model():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), bnext.torch.BatchNorm2d(4, activation="relu"), nn.AvgPool2d(2),
        bnext.torch.BatchNorm2d(4, activation="leaky_relu", negative_slope=0.3),
        bnext.torch.GroupNorm(2, 4, activation="silu"),
    )  # fmt: skip
    model(X)
    return model.eval()


def graph_tools():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
    from torch.fx.experimental import optimization

    return {
        "fuse": optimization.fuse,
        "optimize_for_inference": optimization.optimize_for_inference,
        "fuse_fx": quantize_fx.fuse_fx,
        "prepare_fx": lambda m: quantize_fx.prepare_fx(m, get_default_qconfig_mapping(), (X,)),
        "fold": lambda m: bnext.torch.fold(m).model,
    }


@pytest.mark.parametrize(
    "tool", ["fuse", "optimize_for_inference", "fuse_fx", "prepare_fx", "fold"]
)
def test_tools_for_graphs_keep_activations(tool):
    model = activated_model()
    expected = model(X)
    assert_close(graph_tools()[tool](model)(X), expected, "y", 20.0)
    assert_close(model(X), expected, "the model itself", 0.0)


def test_tools_that_lose_activations_are_refused():
    from torch.ao.quantization import fuse_modules
    from torch.utils import mkldnn

    text = r"^model: expected layers that PyTorch has as well, got \w+ with activation='\w+'"
    model = activated_model()
    expected, before = model(X), [type(each) for each in model]
    for call in (
        bnext.torch.revert,
        lambda each: fuse_modules(each, [["0", "1"]]),
        lambda each: mkldnn.MkldnnBatchNorm(each[1]),
    ):
        with pytest.raises(ValueError, match=text):
            call(model)
    with pytest.raises(ValueError, match=r"at 1: make it of two modules"):
        bnext.torch.revert(model)
    assert [type(each) for each in model] == before
    assert_close(model(X), expected, "y", 0.0)


def test_opacus_keeps_activations():
    import_extra("opacus")
    from opacus.validators import ModuleValidator

    fixed = ModuleValidator.fix(activated_model().train())
    assert isinstance(fixed[1][1], nn.ReLU)
    assert not ModuleValidator.validate(fixed)
