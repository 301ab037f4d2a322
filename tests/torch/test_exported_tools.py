"""What takes an exported graph, and knows PyTorch's operators alone: ONNX, quantizers, Inductor."""

import copy
import io

import pytest

import bnext

from ..optional import import_extra
from ..subprocesses import run_python
from .support import LIBRARIES, torch

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TRACKED = pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "not-tracked"])
BOTH = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def new_model(library, training, tracked=True):
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), library.BatchNorm2d(4, track_running_stats=tracked),
        torch.nn.ReLU(),
    ).train(training)  # fmt: skip


@TRACKED
@BOTH
def test_onnx_export(training, tracked):
    """By the exporter that is based on torch.export; run by ONNX Runtime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name)
    import onnxruntime

    x = torch.randn(4, 3, 8, 8) * 2 + 1
    results = []
    for library in LIBRARIES.values():
        model = new_model(library, training, tracked)
        program = torch.onnx.export(copy.deepcopy(model), (x,), dynamo=True, verbose=False)
        file = io.BytesIO()
        program.save(file)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        y = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        # With running statistics a training graph gives evaluation's results with either library:
        # onnxscript (0.7.2 with PyTorch 2.13.0) leaves out training_mode, and folds the layer into
        # the convolution (findings/onnx_export_of_training.sh).
        if not (training and tracked):
            torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
        results.append(y)
    assert torch.equal(results[1], results[0])


@pytest.mark.timeout(900)  # a compiler of C++ runs, for a minute on a busy machine
def test_aot_inductor_packages_are_run_without_bnext(tmp_path):
    """A frozen model of fused layers, one that makes activations again, as compiled code."""
    x = torch.randn(4, 3, 8, 8)
    model = bnext.torch.convert(new_model(torch.nn, True), fuse=True, recompute=True)
    model.append(bnext.torch.BatchNorm2d(4, activation="gelu"))
    model(x)
    model = bnext.torch.freeze(model).train()
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    )
    package = tmp_path / "model.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    torch.save(x, tmp_path / "x.pt")
    run_python(f"""
        import sys
        import warnings
        warnings.simplefilter("ignore")
        sys.modules["bnext"] = None
        import torch
        model = torch._inductor.aoti_load_package({str(package)!r})
        x = torch.load({str(tmp_path / "x.pt")!r})
        torch.save(model(torch.cat([x, x + 1])), {str(tmp_path / "y.pt")!r})
    """).check_returncode()
    expected = model(torch.cat([x, x + 1])).detach()
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
def test_exported_training_graph_moved_to_evaluation(strict):
    """An example's output is its own then, and running statistics stay."""
    pt2e = import_extra("torchao.quantization.pt2e")
    x = torch.randn(4, 3, 8, 8)
    graph = torch.export.export(new_model(bnext.torch, True), (x,), strict=strict).module()
    graph(x)
    pt2e.move_exported_model_to_eval(graph)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    others = torch.cat([x[:1], 9 * x[1:]])
    torch.testing.assert_close(graph(x)[0], graph(others)[0])
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(graph.state_dict()[name], before[name])
        assert before[name].std() > 0


@pytest.mark.timeout(900)  # it compiles patterns, for a minute on a busy machine
@pytest.mark.parametrize("qat", [True, False], ids=["while-training", "after-training"])
def test_pt2e_quantization(qat):
    """Operator by operator, and to the bit, what comes of PyTorch's layers.

    X86InductorQuantizer looks for convolution, normalization and activation by the classes that
    torch.export writes beside the nodes (``nn_module_stack``).
    """
    pt2e = import_extra("torchao.quantization.pt2e.quantize_pt2e")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    base = new_model(torch.nn, True)
    x = torch.randn(4, 3, 12, 12)
    for _ in range(20):
        base(torch.randn(8, 3, 12, 12) * 2 + 1)

    def quantized(model):
        program = torch.export.export(model.train(qat), (x,)).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=qat))
        prepare = pt2e.prepare_qat_pt2e if qat else pt2e.prepare_pt2e
        prepared = prepare(program, quantizer)
        for _ in range(2):
            prepared(x)
        if qat:
            move_exported_model_to_eval(prepared)
        return pt2e.convert_pt2e(prepared)

    theirs = quantized(copy.deepcopy(base))
    ours = quantized(bnext.torch.convert(copy.deepcopy(base), fuse=True))
    called = [[str(node.target) for node in each.graph.nodes] for each in (theirs, ours)]
    assert called[1] == called[0]
    assert not any("batch_norm" in target for target in called[1])
    assert torch.equal(ours(x), theirs(x))
