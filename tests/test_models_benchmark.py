"""The benchmark of whole models: networks, what is trained, what is compared, the report."""

import copy
import dataclasses
import json

import pytest

from benchmarks.models import __main__ as command
from benchmarks.models.cases import FULL, LOSSES, QUICK, Case

from .command_lines import refusal_of

TINY = Case("resnet18", 4, 64)
LEAST = Case("resnet18", 4, 32)  # of which the last stage has one value of a channel and example
MLP = Case("mlp", 6, 28)


@pytest.fixture
def training(torch):
    from benchmarks.models import training

    return training


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [("resnet18", 11_689_512, 20), ("resnet50", 25_557_032, 53), ("mlp", 100_010, 3)],
)
def test_networks_are_the_published_ones(torch, training, name, parameters, layers):
    from benchmarks.models.networks import BUILDERS

    network = BUILDERS[name]().eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(training.normalizations(network)) == layers
    case = Case(name, 2, 64)
    assert network(torch.zeros(case.shape)).shape == (2, 10 if name == "mlp" else 1000)


@pytest.mark.parametrize(("name", "expansion"), [("resnet18", 1), ("resnet50", 4)])
def test_extents_halve_from_stage_to_stage(torch, name, expansion):
    """As table 1 has them, for images of 224 x 224."""
    from benchmarks.models.networks import BUILDERS, WIDTHS

    with torch.device("meta"):  # shapes alone
        network = BUILDERS[name]().eval()
        y = network.stem(torch.empty(1, 3, 224, 224))
        assert y.shape == (1, 64, 56, 56)
        extents = {}
        for block in network.stages:
            y = block(y)
            extents[y.shape[1]] = y.shape[2]
    channels = [expansion * width for width in WIDTHS]
    assert extents == dict(zip(channels, (56, 28, 14, 7), strict=True))


def test_layers_are_those_that_are_asked_for(torch, training):
    import bnext.torch

    for layers, expected in (
        ("torch", {torch.nn.BatchNorm2d}),
        ("bnext", {bnext.torch.BatchNorm2d}),
        ("none", set()),
    ):
        found = training.normalizations(training.Training(TINY, layers).network)
        assert {type(module) for module in found} == expected
        assert len(found) == (20 if expected else 0)


@pytest.mark.parametrize(
    "case", [LEAST, dataclasses.replace(LEAST, channels_last=True), MLP], ids=str
)
def test_first_losses_agree(torch, case):
    from benchmarks.models import losses

    found = losses.measure(case, "float64", 3)
    assert losses.agree(found)
    assert max(losses.differences(found, found["bnext"])) < 1e-9
    assert len(set(found["torch"])) == 3  # something is learned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_first_losses_agree_within_rounding(torch, dtype):
    from benchmarks.models import losses

    assert losses.agree(losses.measure(dataclasses.replace(LEAST, dtype=dtype), dtype, 2))


def test_losses_that_differ_are_told(torch):
    from benchmarks.models import losses

    found = losses.measure(MLP, "float32", 4)
    assert losses.agree(found)
    for step, factor in ((0, 1 + 1e-5), (3, 1 + 1e-4), (2, float("nan"))):
        wrong = copy.deepcopy(found)
        wrong["bnext"][step] *= factor
        assert not losses.agree(wrong)


def test_memory_is_that_of_training(torch):
    from benchmarks.models import memory

    found = memory.measure(TINY, "bnext", 1)
    if found is not None:  # where the system tells: gradients and momentum at least
        assert found["most"] - found["before"] > 2 * 4 * 11_689_512


def test_memory_says_what_went_wrong(torch):
    from benchmarks.models import memory

    with pytest.raises(KeyError, match="vgg"):
        memory.measure(Case("vgg", 1, 64), "bnext", 1)


def test_turns(torch):
    from benchmarks.kit.turns import Turns, in_turns

    found = Turns({"a": [2.0, 4.0, 8.0], "b": [1.0, 2.0, 2.0]})
    assert found.ratio("a", "b")[0] == 2.0
    assert found.saved_share("a", "b") == 0.5
    assert found.packed()["b"] == [2.0, 1.2, 2.0, 3]
    calls = []
    in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0)
    assert {"a", "b"} == set(calls)


def test_promises_are_measured_twice_before_they_are_broken(torch, monkeypatch):
    from benchmarks.models import promises

    figures = iter([0.9, 1.1, 0.8, 0.7, 5.0])
    made = [(text, 1.0, lambda: next(figures)) for text in ("second", "neither", "first")]
    monkeypatch.setattr(promises, "PROMISES", made)
    found = [(v.text, v.figure, v.word) for v in promises.verdicts()]
    assert found == [("second", 1.1, "kept"), ("neither", 0.8, "NOT KEPT"), ("first", 5.0, "kept")]
    assert next(figures, None) is None


def test_command_measures_and_reports(torch, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "QUICK", (MLP,))
    monkeypatch.setattr(command, "LOSSES", (MLP,))
    words = ["--quick", "--steps", "2", "--seconds", "0", "--threads", "1", "--batch", "5"]
    assert command.main([*words, "--out", str(tmp_path)]) == 0
    assert "agree" in capsys.readouterr().out
    document = command.FORMAT.read(tmp_path / "results.json")
    (row,) = document["rows"]
    assert (row["batch"], row["threads"], row["normalizations"]) == (5, 1, 3)
    assert set(row["seconds"]) == {"torch", "bnext", "none"}
    assert all(0 < p10 <= median <= p90 for median, p10, p90, _ in row["seconds"].values())
    assert [found["dtype"] for found in document["losses"]] == ["float32", "float64"]
    report = (tmp_path / "report.md").read_text()
    # The same again from the file alone; and losses that differ fail.
    again, file = tmp_path / "again", tmp_path / "results.json"
    assert command.main(["--report", str(file), "--out", str(again)]) == 0
    assert (again / "report.md").read_text() == report
    document["losses"][0]["bnext"][1] += 1
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    assert command.main(["--report", str(tmp_path / "wrong.json"), "--out", str(again)]) == 1
    assert "**DIFFER**" in (again / "report.md").read_text()


def test_options_change_cases():
    parse = command.main.parse
    words = ["--batch", "3", "--size", "40", "--channels-last", "--networks", "resnet18,mlp"]
    found = command.cases(parse(words))
    assert Case("resnet18", 3, 40, channels_last=True) in found
    assert Case("mlp", 3, 28) in found  # whose images are what they are
    assert len(found) == len(set(found)) == 3  # one of them in bfloat16
    assert command.cases(parse([])) == list(FULL)
    assert command.chosen(LOSSES, parse([])) == list(LOSSES)
    assert command.cases(parse(["--quick"])) == list(QUICK)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "resnet18,vgg"], "expected some of resnet18, resnet50, mlp, got vgg"),
        (["--batch", "0"], "expected an integer >= 1, got 0"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_wrong_options(words, message, capsys):
    assert message in refusal_of(command.main, words, capsys)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="expected results of whole models, version 1"):
        command.FORMAT.read(tmp_path / "other.json")


def test_devices_that_are_missing_are_said(torch, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--device", "cuda", "--check"]) == 2
    assert "--device cuda: PyTorch finds no GPU" in capsys.readouterr().err


def test_cost_of_norms(torch):
    from benchmarks.kit.turns import Turns
    from benchmarks.models import norms

    for build in norms.NETWORKS.values():
        for norm in (None, *norms.NORMS):
            model, shape = build(torch, norm)
            assert model(torch.zeros(2, *shape[1:])).shape == (2, norms.CLASSES)
            found = [m for m in model if norm and type(m).__name__.lower().startswith(norm)]
            assert len(found) == (
                0 if norm is None else sum(type(m) is torch.nn.ReLU for m in model)
            )
    samples = {"none": [1.0]} | {
        (norm, library): [time]
        for norm in norms.NORMS
        for library, time in (("PyTorch", 2.0), ("bnext", 1.0))
    }
    assert norms.table(Turns(samples)) == [[norm, 2.0, 0.5, 1.0, 0.0] for norm in norms.NORMS]


def test_chains_name_what_is_slower_beside_a_layer(capsys):
    """Convolutions and page faults beyond PyTorch's, and nothing else."""
    from benchmarks.models.chains import told

    def side(convolutions, faults):
        parts = {"convolutions": convolutions, "normalization": 1.0, "rest": 1.0}
        return {"all": sum(parts.values()), **parts, "faults": faults}

    found = {
        "inference": {"torch": side(10.0, 100.0), "converted": side(10.2, 100.0),
                      "fused": side(12.0, 90.0)},
        "step": {"torch": side(10.0, 100.0), "converted": side(20.0, 104.0),
                 "fused": side(10.0, 105.0)},
    }  # fmt: skip
    assert told(found, "a chain") == [
        "a chain: inference, fused: convolutions of 12.00, PyTorch's 10.00",
        "a chain: step, fused: page faults of 105.00, PyTorch's 100.00",
    ]
    assert "inference, converted" in capsys.readouterr().out


@pytest.mark.parametrize("channels_last", [False, True])
def test_chains_are_measured(torch, channels_last, monkeypatch):
    """All variants give the same; times have their parts."""
    from benchmarks.models import chains
    from bnext.torch import kernels

    for owner, name in ((torch.nn.functional, "conv2d"), (torch.nn.functional, "batch_norm"),
                        (kernels, "evaluate_layer")):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # exchanged, and put back
    threads = torch.get_num_threads()
    chain = chains.Chain((2, 4, 6, 6), channels_last)
    clock, x, variants = chains.prepared(chain, ("torch", "converted", "fused"))
    torch.set_num_threads(threads)
    (_, calls), (_, steps) = chains.passes_of(torch, variants, x)
    assert calls.keys() == steps.keys() == variants.keys()
    for model in variants.values():
        model.eval()
    expected = calls["torch"]()
    for call in calls.values():
        found = chains.sample(call, clock)
        torch.testing.assert_close(call(), expected)
        assert 0 < found["convolutions"] < found["all"]
        assert 0 < found["normalization"] < found["all"]
        assert found["rest"] > 0
