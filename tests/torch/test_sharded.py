"""Parameters of 16 bits beside float32 statistics, as FSDP2's mixed precision makes them."""

import copy

import pytest

import bnext

from .support import assert_close, torch

nn = torch.nn
WAYS = ["eager", "compiled"]


def pair(kind, fuse, dtype):
    reference = nn.Sequential(kind(3), nn.ReLU())
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.rand(3).to(dtype))
    model = bnext.torch.convert(copy.deepcopy(reference), fuse=fuse)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return reference, model


def assert_like(actual, expected, dtype):
    assert_close(actual, expected.to(dtype), "value", 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_parameters_of_16_bits_beside_float32_statistics(dtype, fuse, training, way):
    torch._dynamo.reset()
    reference, model = pair(nn.BatchNorm2d, fuse, dtype)
    calls = {
        "eager": model, "compiled": torch.compile(model, backend="aot_eager", fullgraph=True),
    }  # fmt: skip
    for module in (reference, model):
        module.train(training)
    x = torch.randn(4, 3, 5, 5).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    y, expected = calls[way](x), reference(wide)
    assert_like(y, expected, dtype)
    dy = torch.randn_like(x)
    y.backward(dy)
    expected.backward(dy.float())
    assert_like(x.grad, wide.grad, dtype)
    for name in ("weight", "bias"):
        gradient = getattr(model[0], name).grad
        assert gradient.dtype == dtype
        assert_close(gradient, getattr(reference[0], name).grad.to(dtype), name, 20.0)
    for name in ("running_mean", "running_var"):
        assert_close(getattr(model[0], name), getattr(reference[0], name), name, 1.0)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert_like(calls[way](x), reference(wide), dtype)


def test_other_mixtures_have_pytorch_s_errors():
    for parameters, statistics in [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)]:
        errors = []
        for layer in (nn.BatchNorm2d(3), bnext.torch.BatchNorm2d(3)):
            for name in ("weight", "bias"):
                getattr(layer, name).data = getattr(layer, name).data.to(parameters)
            for name in ("running_mean", "running_var"):
                setattr(layer, name, getattr(layer, name).to(statistics))
            try:
                layer(torch.randn(4, 3, 5, 5))
                errors.append(None)
            except Exception as error:
                errors.append((type(error), str(error)))
        assert errors[0] == errors[1]
        assert errors[0] is not None


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone, with gloo."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("PyTorch is without gloo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def sharded(model, **options):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("PyTorch is without FSDP2")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    if options:
        options = {"mp_policy": fsdp.MixedPrecisionPolicy(**options)}
    return fsdp.fully_shard(model, mesh=mesh, **options)


def new_model():
    return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU())


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        y = model(torch.randn(5, 6))
        y.float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return y, optimizer


@pytest.mark.parametrize("fuse", [False, True])
def test_fsdp2_with_parameters_of_16_bits(one_process, fuse):
    model = bnext.torch.convert(new_model(), fuse=fuse)
    sharded(model, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    y, _ = trained(model)
    assert y.dtype == torch.bfloat16
    assert model[1].running_mean.dtype == torch.float32
    assert int(model[1].num_batches_tracked) == 2
    assert model[1].weight.dtype == torch.float32
    assert model.eval()(torch.randn(5, 6)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_distributed_checkpoints_go_either_way(one_process, tmp_path):
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    ours = [bnext.torch.convert(new_model(), fuse=True, recompute=True) for _ in range(2)]
    x = torch.randn(5, 6)
    for source, target in ((ours[0], new_model()), (new_model(), ours[1])):
        states = []
        for model in (source, target):
            _, optimizer = trained(sharded(model))
            parts = get_state_dict(model, optimizer)
            states.append((optimizer, dict(zip(("model", "optimizer"), parts, strict=True))))
        place = tmp_path / type(source[1]).__module__
        checkpoint.save(states[0][1], checkpoint_id=place)
        optimizer, state = states[1]
        checkpoint.load(state, checkpoint_id=place)
        set_state_dict(
            target, optimizer, model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )  # fmt: skip
        assert_close(target.eval()(x), source.eval()(x), "y", 20.0)
