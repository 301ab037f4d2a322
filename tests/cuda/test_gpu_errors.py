"""On a GPU: arguments that lie elsewhere or are of another make; nothing is written then."""

import numpy as np
import pytest

import bnext

from . import gpu

pytestmark = pytest.mark.gpu

X, VECTOR = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(3, np.float32)
HERE = "expected an array on cuda:0, like x, got one on the CPU"


def test_parameters_on_the_host(library):
    x = library.put(X)
    _, saved = bnext.batch_norm_forward(x)
    there = library.put(VECTOR)
    for name, call in {
        "weight": lambda: bnext.batch_norm_forward(x, VECTOR),
        "bias": lambda: bnext.batch_norm_forward(x, there, VECTOR),
        "mean": lambda: bnext.normalize(x, VECTOR, there),
        "dy": lambda: bnext.batch_norm_backward(X, x, saved),
        "out": lambda: bnext.batch_norm_forward(x, out=np.empty_like(X)),
    }.items():
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"{name}: {HERE}"


def test_tensors_on_the_host(tensors):
    torch = tensors.xp
    x, here = tensors.put(X), torch.ones(3)
    with pytest.raises(TypeError) as caught:
        bnext.batch_norm_forward(x, here)
    assert str(caught.value) == f"weight: {HERE}"
    text = r"^weight: expected an array on the CPU, like x, got one on cuda:0$"
    for on_the_cpu in (torch.from_numpy(X.copy()), X):
        with pytest.raises(TypeError, match=text):
            bnext.batch_norm_forward(on_the_cpu, tensors.put(VECTOR))


def test_layer_on_the_host(library):
    bn = bnext.BatchNorm1d(3)
    with pytest.raises(TypeError) as caught:
        bn(library.put(X))
    assert str(caught.value) == f"weight: {HERE}; the layer's to(x) moves it"
    assert bn.num_batches_tracked == 0
    assert bn.to(library.put(X))(library.put(X)).shape == (4, 3)


def test_two_devices(tensors):
    if tensors.xp.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    first, second = (tensors.xp.ones(4, 3, device=f"cuda:{i}") for i in range(2))
    _, saved = bnext.batch_norm_forward(first)
    text = r"^weight: expected an array on cuda:0, like x, got one on cuda:1$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(first, second[0])
    with pytest.raises(TypeError, match=r"^saved: expected an array on cuda:1, like x, got one on"):
        bnext.batch_norm_backward(second, second, saved)
    y, _ = bnext.batch_norm_forward(second)
    assert y.device == second.device
    assert tensors.xp.cuda.current_device() == 0


def test_two_libraries():
    tensors, cupy = (gpu.with_a_gpu(name) for name in gpu.LIBRARIES)
    text = r"^weight: expected an array of torch, like x, got one of cupy$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(tensors.put(X), cupy.put(VECTOR))


def test_wrong_arguments(library):
    x = library.put(X)
    for call, kind, text in (
        (lambda: bnext.batch_norm_forward(library.put(X.astype(np.int32))), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got int32"),
        (lambda: bnext.batch_norm_forward(x, library.put(np.ones(4, np.float32))), ValueError,
         "weight: expected shape (3,), got (4,)"),
        (lambda: bnext.batch_norm_forward(x, library.put(np.ones(3))), TypeError,
         "weight: expected dtype float32, got float64"),
        (lambda: bnext.batch_norm_forward(x, out=x), ValueError,
         "out: expected memory of its own, got an array that overlaps x"),
        (lambda: bnext.batch_norm_forward(x[:1]), ValueError,
         "Expected more than 1 value per channel when training, got input size (1, 3)"),
        (lambda: bnext.batch_norm_forward(x, eps=-1.0), ValueError,
         "eps: expected a finite number >= 0, got -1.0"),
        (lambda: bnext.batch_norm_forward(x, channel_axis=2), ValueError,
         "channel_axis: expected an axis of a 2-dimensional array (-2 to 1), got 2"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == text
    np.testing.assert_array_equal(library.get(x), X)


def test_saved_from_the_host(library):
    _, saved = bnext.batch_norm_forward(X)
    with pytest.raises(TypeError, match=r"^saved: made from an input on the CPU, got x on cuda:0$"):
        bnext.batch_norm_backward(library.put(X), library.put(X), saved)


def test_tensors_that_require_gradients(tensors):
    x = tensors.put(X).requires_grad_()
    with pytest.raises(
        TypeError, match=r"^x: expected a tensor that requires no gradient, got one"
    ):
        bnext.batch_norm_forward(x)
    with tensors.xp.no_grad():
        y, _ = bnext.batch_norm_forward(x)
    assert not y.requires_grad


def test_configuration(tensors):
    config = bnext.show_config(mode="dicts")["cuda"]
    assert config["available"] is True
    assert config["reason"] == ""
    assert len(config["devices"]) == bnext.cuda.device_count() == tensors.xp.cuda.device_count()
    assert config["architectures"]
