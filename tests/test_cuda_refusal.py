"""Arrays on a GPU where bnext cannot compute there: refused, with the reason and what helps."""

import sys
import types

import numpy as np
import pytest

import bnext

from .cuda.stand_in import StandIn
from .fake_cuda import Array, InterfaceArray
from .subprocesses import output_of

F4 = np.float32
X, VECTOR = np.arange(12, dtype=F4).reshape(4, 3), np.ones(3, F4)
NOT_BUILT = (
    "this build of bnext has no CUDA kernels; build with BNEXT_CUDA=ON: "
    "pip install . -C cmake.define.BNEXT_CUDA=ON"
)
NO_CODE = "this build has code for sm_90, and the device is an sm_70"


class Library:
    """Makes arrays without a namespace, of a library that nobody knows."""

    def __init__(self, values):
        self.values = values
        self.__cuda_array_interface__ = InterfaceArray(values).__cuda_array_interface__


@pytest.fixture(params=[Array, InterfaceArray, Library], ids=["dlpack", "interface", "unknown"])
def make(request):
    return request.param


@pytest.fixture
def not_built(monkeypatch):
    """As in most builds: there is no `bnext._cuda`."""
    monkeypatch.setitem(sys.modules, "bnext._cuda", None)
    bnext.cuda._load.cache_clear()
    yield
    bnext.cuda._load.cache_clear()


def calls_on(x):
    """Every call that takes data, on `x`."""
    vector = type(x)(VECTOR)
    layer = bnext.BatchNorm1d(3)
    return {
        "forward": lambda: bnext.batch_norm_forward(x),
        "backward": lambda: bnext.batch_norm_backward(x, x, bnext.batch_norm_forward(X)[1]),
        "normalize": lambda: bnext.normalize(x, vector, vector),
        "moments": lambda: bnext.moments(x),
        "layer": lambda: layer(x),
    }


def assert_all_refuse(x, text):
    for name, call in calls_on(x).items():
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == text, name


def where(make):
    return "cuda:0" if make is Array else "a CUDA device"


@pytest.mark.usefixtures("not_built")
def test_without_kernels(make):
    text = f"x: got an array on {where(make)}, and bnext cannot compute there: {NOT_BUILT}"
    assert_all_refuse(make(X), text)
    assert not bnext.cuda.is_available()
    assert bnext.cuda.reason() == NOT_BUILT
    assert bnext.cuda.device_count() == 0
    assert bnext.show_config(mode="dicts")["cuda"] == {
        "available": False, "reason": NOT_BUILT, "devices": [], "architectures": [],
        "synchronous": False, "reserved_multiprocessors": 0,
    }  # fmt: skip


@pytest.mark.usefixtures("not_built")
def test_moving_a_layer_without_kernels():
    bn = bnext.BatchNorm1d(3)
    with pytest.raises(RuntimeError, match=r"^like: got an array on cuda:0, and bnext cannot"):
        bn.to(Array(X))
    assert type(bn.weight) is np.ndarray


def test_kernels_that_do_not_load(monkeypatch):
    """A module that is there and broken is another reason than none."""

    def broken(name):
        assert name == "bnext._cuda"
        raise ImportError("libthing.so.1: cannot open shared object file")

    monkeypatch.setattr(bnext.cuda.importlib, "import_module", broken)
    bnext.cuda._load.cache_clear()
    reason = "the CUDA kernels of bnext cannot be loaded: libthing.so.1: cannot open shared object"
    assert bnext.cuda.reason() == f"{reason} file"
    assert_all_refuse(
        Array(X), f"x: got an array on cuda:0, and bnext cannot compute there: {reason} file"
    )
    bnext.cuda._load.cache_clear()


def test_without_a_driver(monkeypatch, make):
    kernels = StandIn(devices=0)
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    reason = "no CUDA driver was found"
    assert (bnext.cuda.is_available(), bnext.cuda.reason()) == (False, reason)
    text = f"x: got an array on {where(make)}, and bnext cannot compute there: {reason}"
    assert_all_refuse(make(X), text)


def test_without_code_for_the_device(monkeypatch):
    kernels = StandIn(devices=2, problems={0: NO_CODE})
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    text = f"x: got an array on cuda:0, and bnext cannot compute there: {NO_CODE}"
    assert_all_refuse(Array(X), text)
    y, _ = bnext.batch_norm_forward(Array(X, 1))
    assert y.device == 1
    assert (bnext.cuda.is_available(), bnext.cuda.reason()) == (True, "")
    text = "x: got an array on cuda:2, and bnext cannot compute there: "
    assert_all_refuse(Array(X, 2), text + "the CUDA runtime sees 2 devices")


def test_with_no_device_that_it_has_code_for(monkeypatch):
    kernels = StandIn(devices=1, problems={0: NO_CODE})
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    assert (bnext.cuda.is_available(), bnext.cuda.reason()) == (False, NO_CODE)
    config = bnext.show_config(mode="dicts")["cuda"]
    assert config["devices"] == ["stand-in 0"]
    assert config["architectures"] == ["sm_00"]


def test_memory_of_the_host_behind_the_interface(monkeypatch):
    kernels = StandIn()
    kernels.device_of = lambda address: -1
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    text = "x: got an array on a CUDA device, and bnext cannot compute there: its memory is the"
    assert_all_refuse(InterfaceArray(X), f"{text} host's")


def test_results_need_a_namespace(monkeypatch):
    kernels = StandIn()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    text = (
        f"x: got an array of {Library.__module__.partition('.')[0]}, and nothing to make results "
        "with: expected one of PyTorch, CuPy, or of a library whose arrays have "
        "__array_namespace__, or that array-api-compat knows (pip install 'bnext[arrays]')"
    )
    with pytest.raises(RuntimeError) as caught:
        bnext.batch_norm_forward(Library(X))
    assert str(caught.value) == text


class OnAMD(Array):
    def __dlpack_device__(self):
        return (10, 1)


class Elsewhere(Array):
    def __dlpack_device__(self):
        return (12, 0)


class Immutable(Array):
    """As JAX's arrays: its namespace says whose it is."""

    def __array_namespace__(self):
        return jax_like


jax_like = types.SimpleNamespace(__name__="jax.numpy")


def test_other_devices():
    start = "x: expected an array on the CPU or on a CUDA device, got one on "
    assert_all_refuse(OnAMD(X), start + "rocm:1")
    assert_all_refuse(Elsewhere(X), start + "a device of DLPack's type 12")


def test_arrays_that_cannot_be_written():
    assert_all_refuse(
        Immutable(X),
        "x: expected an array on the CPU, got one on cuda:0; there bnext would have to write to "
        "arrays of jax, which cannot be written",
    )


def test_arrays_there_beside_x_on_the_cpu(make):
    there = make(VECTOR)
    x = X.copy()
    _, saved = bnext.batch_norm_forward(x)
    layer = bnext.BatchNorm1d(3)
    layer.running_mean = there
    for name, call in {
        "weight": lambda: bnext.batch_norm_forward(x, there),
        "bias": lambda: bnext.batch_norm_forward(x, VECTOR, there),
        "mean": lambda: bnext.normalize(x, there, VECTOR),
        "var": lambda: bnext.normalize(x, VECTOR, there),
        "dy": lambda: bnext.batch_norm_backward(make(X), x, saved),
        "out": lambda: bnext.batch_norm_forward(x, out=make(X)),
        "running_mean": lambda: layer(x),
    }.items():
        with pytest.raises(TypeError) as caught:
            call()
        text = f"{name}: expected an array on the CPU, like x, got one on {where(make)}"
        assert str(caught.value) == text
    assert layer.num_batches_tracked == 0


def test_kernels_are_loaded_when_they_are_wanted():
    program = """
        import sys
        import bnext, numpy
        bnext.BatchNorm1d(3)(numpy.ones((4, 3), "f4"))
        before = "bnext._cuda" in sys.modules
        try:
            import bnext._cuda
            del sys.modules["bnext._cuda"]
            there = True
        except ImportError:
            there = False
        bnext.cuda.is_available()
        print(before, ("bnext._cuda" in sys.modules) == there)
    """
    assert output_of(program) == "False True"
