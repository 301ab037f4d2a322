"""The report: layers that are exchanged in a model, layers that stay, and why."""

import dataclasses

import pytest

import bnext

from .support import torch

convert, report = bnext.torch.convert, bnext.torch.report


class Own(torch.nn.BatchNorm2d):
    pass


class Itself(torch.nn.BatchNorm2d):
    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None, training=True)


class FrozenBatchNorm2d(torch.nn.Module):
    pass


def new_model():
    own = Own(4)
    return torch.nn.Sequential(
        torch.nn.BatchNorm1d(4),
        torch.nn.ModuleDict({"own": own, "again": own, "itself": Itself(4)}),
        torch.nn.Linear(2, 2), torch.nn.SyncBatchNorm(4), torch.nn.LazyBatchNorm1d(),
        FrozenBatchNorm2d(),
    )  # fmt: skip


HERE = __name__
NN = "torch.nn.modules.batchnorm"
REASON = "Itself.forward does not call super().forward, and is of no known form"
FROZEN = bnext.torch.Layer(
    "5", f"{HERE}.FrozenBatchNorm2d", reason="no subclass of PyTorch's layers"
)


def test_report_lists_layers_in_order():
    model = new_model()
    with pytest.warns(bnext.torch.ConversionWarning):
        convert(model)
    layer = bnext.torch.Layer
    assert report(model) == bnext.torch.Report(
        exchanged=(
            layer("0", f"{NN}.BatchNorm1d"),
            layer("1.own", f"{HERE}.Own"),
            layer("3", f"{NN}.SyncBatchNorm", synchronized=True),
            layer("4", f"{NN}.LazyBatchNorm1d"),
        ),
        left=(layer("1.itself", f"{HERE}.Itself", reason=REASON), FROZEN),
    )
    with pytest.warns(bnext.torch.ConversionWarning):
        convert(model, sync=True)
    listed = report(model)
    assert [each.synchronized for each in listed.exchanged] == [True] * 4
    assert [each.name for each in listed.left] == ["1.itself", "5"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        listed.left = ()


def test_report_can_be_read():
    model = torch.nn.Sequential(*[Own(4) for _ in range(5)], torch.nn.BatchNorm1d(4), Itself(4))
    with pytest.warns(bnext.torch.ConversionWarning) as said:
        convert(model)
    assert str(report(model)).splitlines() == [
        "6 of 7 layers of batch normalization are bnext's",
        f"  5 x {HERE}.Own: 0, 1, 2, ...",
        f"  1 x {NN}.BatchNorm1d: 5",
        "1 stays as it is",
        f"  1 x {HERE}.Itself ({REASON}): 6",
    ]
    assert str(said[0].message).splitlines() == [
        "convert: 1 layer of batch normalization stays PyTorch's",
        f"  1 x {HERE}.Itself ({REASON}): 6",
        "bnext.torch.report(model) lists all layers",
    ]
    assert str(report(torch.nn.Linear(2, 2))) == "0 of 0 layers of batch normalization are bnext's"
    single = report(convert(torch.nn.BatchNorm1d(4), sync=True))
    assert str(single).splitlines()[1] == f"  1 x {NN}.BatchNorm1d, synchronized: the model itself"


def test_report_of_a_model_that_is_not_converted():
    listed = report(torch.nn.Sequential(torch.nn.BatchNorm1d(4), Itself(4)))
    assert not listed.exchanged
    assert [each.reason for each in listed.left] == [
        "not converted yet: bnext.torch.convert exchanges it", REASON,
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_report_tells_of_compiled_and_traced_models():
    """They have no layers any more, and `convert` finds none in them."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    scripted = convert(torch.jit.script(model))
    assert [(each.name, each.reason) for each in report(scripted).left] == [
        ("1", "compiled by TorchScript: convert the model before")
    ]
    exported = convert(torch.export.export(model, (torch.randn(2, 3, 4, 4),)).module())
    (left,) = report(exported).left
    assert (left.name, left.reason) == (
        "", "its graph calls batch_norm as a function: convert the model before it is traced",
    )  # fmt: skip
    assert not report(torch.fx.symbolic_trace(convert(model))).left


@pytest.mark.parametrize("wrong", [torch.nn.BatchNorm1d, None, "model"])
def test_report_takes_modules(wrong):
    text = f"^model: expected a torch.nn.Module, got {type(wrong).__name__}$"
    with pytest.raises(TypeError, match=text):
        report(wrong)
