"""The two roads of PyTorch's tensors on a GPU: in C++ (`_cuda.TensorCalls`), and the general one.

Without a GPU: tensors on the CPU stand for tensors there (benchmarks/pretended_gpu.py), and the
kernels are compiled for the CPU. Both roads launch the same kernels, so all bits are equal.
"""

import gc
import resource
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnext
from bnext.devices import cuda_arrays, engine_of

from ..optional import import_emulated, import_torch
from . import gpu

torch = import_torch()
import bnext.torch  # noqa: E402 - of which there is nothing without PyTorch
from benchmarks import call_path_gpu  # noqa: E402
from benchmarks.pretended_gpu import pretended_gpu  # noqa: E402
from bnext.torch import kernels  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(7, 3), (2, 1), (5, 300), (3, 5, 11), (4, 17, 5, 3), (3, 64, 9, 7), (2, 3, 2, 5, 3)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = [(s, False) for s in SHAPES] + [(s, True) for s in SHAPES if len(s) in LAST]


@pytest.fixture(autouse=True, scope="module")
def module():
    """The emulated kernels, on a GPU that all tensors are on."""
    module = import_emulated()
    with pretended_gpu(module):
        yield module


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def param(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def arguments(shape, dtype, last=False):
    """x, dy, weight, bias, running mean and variance, counter."""
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    if last:
        x, dy = (t.to(memory_format=LAST[len(shape)]) for t in (x, dy))
    vectors = [torch.randn(shape[1]).to(param(dtype)) for _ in range(3)]
    return x, dy, *vectors, torch.rand(shape[1]).to(param(dtype)), torch.tensor(5)


class Roads:
    """Which road calls take; `entered` counts launches of the general one."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch
        self.entered = 0
        launch = cuda_arrays.CudaArrays._launch

        def counted(*given, **options):
            self.entered += 1
            return launch(*given, **options)

        monkeypatch.setattr(cuda_arrays.CudaArrays, "_launch", counted)

    def general(self, function, *given, **options):
        with self.patch.context() as patch:
            patch.setattr(engine_of(torch.ones(2, 2)), "_calls", None)
            patch.setattr(kernels, "_THERE", [None])
            before = self.entered
            result = outcome(function, *given, **options)
            return result, self.entered - before

    def short(self, function, *given, **options):
        before = self.entered
        result = outcome(function, *given, **options)
        return result, self.entered - before


@pytest.fixture
def roads(monkeypatch):
    return Roads(monkeypatch)


def outcome(function, *given, **options):
    """What a call returns, as tensors and plain values; or its error."""
    try:
        return flat(function(*given, **options))
    except Exception as error:
        return [type(error), str(error)]


def flat(result):
    if isinstance(result, tuple | list):
        return [value for each in result for value in flat(each)]
    if isinstance(result, bnext.devices.DeviceSaved):
        values = [getattr(result, name) for name in type(result).__slots__]
        return [type(result), repr(result), *flat(values)]
    return [result]


def assert_equal(first, second):
    assert len(first) == len(second), (first, second)
    for a, b in zip(first, second, strict=True):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert a.requires_grad == b.requires_grad
            assert torch.equal(bits(a), bits(b))
        else:
            assert type(a) is type(b)
            assert a == b


def bits(tensor):
    tensor = tensor.detach().contiguous()
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(size)


def both_ways(roads, call, *, short=True):
    """The same by either road; `short`: nothing of the general one ran."""
    first, launches = roads.short(call)
    second, _ = roads.general(call)
    assert (launches == 0) == short
    assert_equal(first, second)
    return first


# --- functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "last"), LAYOUTS, ids=str)
@pytest.mark.parametrize("affine", [(True, True), (False, False), (True, False), (False, True)])
def test_functions(roads, shape, last, dtype, affine):
    x, dy, weight, bias, mean, var, _ = arguments(shape, dtype, last)
    weight, bias = (
        v if given_one else None for v, given_one in zip((weight, bias), affine, strict=True)
    )

    def everything():
        y, saved = bnext.batch_norm_forward(x, weight, bias, eps=1e-3)
        wide = bnext.normalize(x, saved.mean, saved.var, weight, bias)
        narrow = bnext.normalize(x, mean, var, weight, bias)
        return y, saved, wide, narrow, bnext.batch_norm_backward(dy, x, saved, weight)

    both_ways(roads, everything)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -4])
@pytest.mark.parametrize("last", [False, True])
def test_axes(roads, axis, last):
    x, dy, *_ = arguments((3, 4, 2, 5), torch.float32, last)
    weight = torch.randn(x.shape[axis])

    def everything():
        y, saved = bnext.batch_norm_forward(x, weight, channel_axis=axis)
        return y, saved, bnext.batch_norm_backward(dy, x, saved, weight)

    both_ways(roads, everything)


@pytest.mark.parametrize("last", [False, True])
def test_out(roads, last):
    x, dy, weight, bias, mean, var, _ = arguments((3, 4, 2, 5), torch.float32, last)
    out = torch.empty_like(x)

    def everything():
        out.fill_(float("nan"))
        version = out._version
        y, saved = bnext.batch_norm_forward(x, weight, bias, out=out)
        assert y is out
        assert out._version == version + 1
        found = [y.clone(), saved]
        found.append(bnext.normalize(x, mean, var, weight, out=out).clone())
        dx, *others = bnext.batch_norm_backward(dy, x, saved, weight, out=out)
        assert dx is out
        assert out._version == version + 3
        return [*found, dx.clone(), *others]

    both_ways(roads, everything)


def test_where_out_may_not_be(roads):
    """Of another layout it is written through a copy; what overlaps an input is refused."""
    x, dy, *_ = arguments((3, 4, 2, 5), torch.float32)
    other = torch.empty_like(x, memory_format=torch.channels_last)
    both_ways(roads, lambda: bnext.batch_norm_forward(x, out=other), short=False)
    memory = torch.randn(1000)
    first, second = memory[:120].view(3, 4, 2, 5), memory[100:220].view(3, 4, 2, 5)
    beside = memory[118:122]
    _, saved = bnext.batch_norm_forward(x)
    for call in (
        lambda: bnext.batch_norm_forward(x, out=x),
        lambda: bnext.batch_norm_forward(first, out=second),
        lambda: bnext.batch_norm_forward(x, beside, out=first),
        lambda: bnext.batch_norm_backward(dy, x, saved, out=dy),
        lambda: bnext.batch_norm_forward(x, out=torch.empty(120)),
        lambda: bnext.batch_norm_forward(x, out=x.double()),
    ):
        before = memory.clone()
        (kind, text), launches = roads.short(call)
        assert launches == 0
        assert_equal([kind, text], roads.general(call)[0])
        assert issubclass(kind, ValueError | TypeError)
        assert text.startswith("out: ")
        assert torch.equal(memory, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_autograd_and_functions(roads):
    """Functions record nothing, and refuse what autograd would have to record."""
    x, _, weight, *_ = arguments((7, 3), torch.float32)
    leaf, parameter = x.clone().requires_grad_(), torch.nn.Parameter(weight)
    for call in (
        lambda: bnext.batch_norm_forward(leaf),
        lambda: bnext.batch_norm_forward(x, parameter),
        lambda: bnext.normalize(x, weight, parameter),
    ):
        (kind, text), _ = roads.short(call)
        assert kind is TypeError
        assert "requires no gradient" in text
        assert_equal([kind, text], roads.general(call)[0])
    with torch.no_grad():
        both_ways(roads, lambda: bnext.batch_norm_forward(leaf, parameter))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        (kind, text), _ = roads.short(bnext.batch_norm_forward, dual)
        assert kind is TypeError
        assert "tangent" in text
        both_ways(roads, lambda: bnext.batch_norm_forward(x), short=False)


def test_modes_that_fake_tensors_leave_nothing_behind(module):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(7, 3)
    calls = module.FunctionCalls(torch, bnext.devices.DeviceSaved, lambda device: "")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert calls.forward(x, None, None, None, None, None, 1e-5, 1, None, True) is None
    y, saved = calls.forward(x, None, None, None, None, None, 1e-5, 1, None, True)
    assert type(y) is type(saved.rows) is torch.Tensor


class Subclass(torch.Tensor):
    pass


def unusual():
    """Arguments of which one is unusual, each by what is the matter with it."""
    x, _, w, b, mean, _, counter = usual = arguments((4, 6, 3, 5), torch.float32)
    columns = torch.randn(6, 2)[:, 0]
    for name, position, wrong in [
        ("transposed", 0, x.transpose(2, 3)),
        ("every other", 0, torch.randn(4, 12, 3, 5)[:, ::2]),
        ("expanded", 0, torch.randn(4, 6, 1, 1).expand(4, 6, 3, 5)),
        ("integers", 0, torch.ones(4, 6, 3, 5, dtype=torch.int32)),
        ("sparse", 0, x.to_sparse()),
        ("subclass", 0, x.as_subclass(Subclass)),
        ("one axis", 0, torch.randn(6)),
        ("nine axes", 0, torch.randn(4, 6, *[1] * 7)),
        ("empty", 0, torch.empty(0, 6, 3, 5)),
        ("one value per channel", 0, torch.randn(1, 6)),
        ("negated", 0, torch._neg_view(x)),
        ("zeros without memory", 0, torch._efficientzerotensor(x.shape)),
        ("negated weight", 2, torch._neg_view(w)),
        ("wide weight", 2, w.double()),
        ("short weight", 2, w[:5]),
        ("weight of steps", 2, columns),
        ("weight of two axes", 2, w[None]),
        ("array as weight", 2, w.numpy()),
        ("bias of another dtype", 3, b.half()),
        ("negated mean", 4, torch._neg_view(mean)),
        ("mean of another dtype", 4, mean.double()),
        ("no mean beside a variance", 4, None),
        ("variance of steps", 5, torch.rand(6, 2)[:, 0]),
        ("long variance", 5, torch.rand(7)),
        ("counter of 32 bits", 6, counter.int()),
        ("counter with an axis", 6, counter[None]),
    ]:
        yield pytest.param(
            tuple(wrong if k == position else t for k, t in enumerate(usual)), id=name
        )


@pytest.mark.parametrize("given", list(unusual()))
def test_unusual_tensors(roads, given):
    """The calls in C++ leave them alone; functions do by the general road what they did."""
    x, _, w, b, mean, var, counter = given
    buffers = [t for t in (mean, var, counter) if t is not None]
    before = [t.clone() for t in buffers]
    calls = kernels.calls_there()
    for call in (calls.forward, calls.forward_only):
        assert call(x, w, b, mean, var, 0.1, counter, 1e-5) is None
    assert all(map(torch.equal, buffers, before))
    first, _ = roads.short(bnext.batch_norm_forward, x, w, b)
    second, _ = roads.general(bnext.batch_norm_forward, x, w, b)
    assert_equal(first, second)
    first, _ = roads.short(bnext.normalize, x, mean, var, w, b)
    second, _ = roads.general(bnext.normalize, x, mean, var, w, b)
    assert_equal(first, second)


@pytest.mark.parametrize(
    "options",
    [
        {"eps": -1.0}, {"eps": float("nan")}, {"eps": 0}, {"eps": "1"}, {"eps": None},
        {"channel_axis": 2}, {"channel_axis": -3}, {"channel_axis": 1.0}, {"channel_axis": 10**30},
        {"channel_axis": True},
    ],
    ids=str,
)  # fmt: skip
def test_numbers(roads, options):
    x, _, weight, *_ = arguments((7, 3), torch.float32)
    first, _ = roads.short(bnext.batch_norm_forward, x, weight, **options)
    second, _ = roads.general(bnext.batch_norm_forward, x, weight, **options)
    assert_equal(first, second)


@pytest.mark.parametrize("momentum", [float("nan"), float("inf"), None, "0.1"])
def test_momentum_that_is_wrong_moves_nothing(momentum):
    x, _, w, b, mean, var, counter = arguments((4, 6), torch.float32)
    before = mean.clone()
    calls = kernels.calls_there()
    assert calls.forward(x, w, b, mean, var, momentum, counter, 1e-5) is None
    assert torch.equal(mean, before)
    assert counter == 5


def test_what_backward_refuses(roads):
    x, dy, weight, *_ = arguments((4, 6, 3, 5), torch.float32)
    _, saved = bnext.batch_norm_forward(x, weight)
    _, narrow = bnext.batch_norm_forward(x.half())
    on_the_cpu = bnext.batch_norm_forward(x.numpy())[1]
    for call in (
        lambda: bnext.batch_norm_backward(dy[:2], x, saved, weight),
        lambda: bnext.batch_norm_backward(dy.double(), x, saved, weight),
        lambda: bnext.batch_norm_backward(dy[:2], x[:2], saved, weight),
        lambda: bnext.batch_norm_backward(dy, x, narrow, weight),
        lambda: bnext.batch_norm_backward(dy, x, on_the_cpu, weight),
        lambda: bnext.batch_norm_backward(dy, x, None, weight),
        lambda: bnext.batch_norm_backward(dy, x, saved, weight[:5]),
        lambda: bnext.batch_norm_backward(dy, x.clone().requires_grad_(), saved, weight),
        lambda: engine_of(dy).backward_constant(dy, saved, None, None),
    ):
        first, launches = roads.short(call)
        assert launches == 0
        assert issubclass(first[0], ValueError | TypeError)
        assert_equal(first, roads.general(call)[0])
    other = dy.to(memory_format=torch.channels_last)  # is copied
    both_ways(roads, lambda: bnext.batch_norm_backward(other, x, saved, weight), short=False)


SIZES = st.lists(st.integers(1, 6), min_size=2, max_size=5)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_call(data):
    """Whatever is passed, both roads return the same or raise the same, and change the same."""
    shape = data.draw(SIZES)
    dtype = data.draw(st.sampled_from(DTYPES))
    axis = data.draw(st.sampled_from([1, 1, 1, -1, 0, 7]))
    x = data.draw(tensors(shape, dtype))
    channels = shape[axis] if -len(shape) <= axis < len(shape) else shape[1]
    vector = st.one_of(st.none(), st.just(torch.rand(channels).to(param(dtype))), vectors(channels))
    weight, bias = data.draw(vector), data.draw(vector)
    mean, var = data.draw(vector), data.draw(vector)
    momentum = data.draw(st.sampled_from([0.1, 0.1, None, 1, float("nan")]))
    eps = data.draw(st.sampled_from([1e-5, 1e-5, 0.0, -1.0, 1]))
    bessel = data.draw(st.booleans())
    count = data.draw(st.sampled_from([None, 3, -1]))

    def call():
        running = [None if t is None else t.clone() for t in (mean, var)]
        counter = None if count is None else torch.tensor(count).numpy()
        versions = [None if t is None else t._version for t in running]
        result = outcome(
            engine_of(x).forward, x, weight, bias, *running, momentum, counter, eps, axis, None,
            bessel,
        )  # fmt: skip
        changed = [t is not None and t._version > v for t, v in zip(running, versions, strict=True)]
        return [*result, *running, *changed, None if counter is None else int(counter)]

    with pytest.MonkeyPatch.context() as patch:
        roads = Roads(patch)
        first, _ = roads.short(call)
        second, _ = roads.general(call)
    assert_equal(first, second)


@st.composite
def tensors(draw, shape, dtype):
    rank = len(shape)
    made = torch.randn(shape).to(dtype)
    kind = draw(st.sampled_from(["dense", "dense", "last", "sliced", "permuted", "neg", "other"]))
    if kind == "last" and rank in LAST:
        return made.to(memory_format=LAST[rank])
    if kind == "sliced":
        return torch.randn([n + 2 for n in shape]).to(dtype)[tuple(slice(1, n + 1) for n in shape)]
    if kind == "permuted":
        order = draw(st.permutations(range(rank)))
        return (
            torch.randn([shape[a] for a in order])
            .to(dtype)
            .permute([order.index(a) for a in range(rank)])
        )
    if kind == "neg":
        return torch._neg_view(made)
    if kind == "other":
        return made.to(draw(st.sampled_from([torch.int64, torch.complex64, *DTYPES])))
    return made


@st.composite
def vectors(draw, channels):
    size = channels + draw(st.sampled_from([0, 0, 1]))
    made = torch.rand(size, 2)[:, 0] if draw(st.booleans()) else torch.rand(size)
    return made.to(draw(st.sampled_from(DTYPES)))


# --- layers ---------------------------------------------------------------------------------------


def layer(shape, dtype, **options):
    made = getattr(bnext.torch, f"BatchNorm{max(len(shape) - 2, 1)}d")(shape[1], **options)
    if dtype == torch.float64:
        made.double()
    with torch.no_grad():
        for t in (made.weight, made.bias, made.running_mean):
            if t is not None:
                t.normal_()
    return made


STATE = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "last"), LAYOUTS, ids=str)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_layers(roads, shape, last, dtype, recorded, training):
    x, dy, *_ = arguments(shape, dtype, last)

    def everything():
        torch.manual_seed(1)
        bn = layer(shape, dtype, momentum=0.3).train(training)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(recorded)
        versions = [getattr(bn, name)._version for name in STATE]
        with torch.set_grad_enabled(recorded):
            y = bn(leaf)
        found = [y]
        if recorded:
            found += torch.autograd.grad(y, (leaf, *bn.parameters()), dy)
        for name, version in zip(STATE, versions, strict=True):
            found += [getattr(bn, name), getattr(bn, name)._version > version]
        return found

    first = both_ways(roads, everything)
    assert first[-2] == int(training)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_layers_without(roads, options, training):
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6, **options).train(training)
        leaf = x.clone().requires_grad_()
        y = bn(leaf)
        return y, torch.autograd.grad(y, leaf, dy), list(bn.buffers())

    both_ways(roads, everything)


@pytest.mark.parametrize("momentum", [None, 1, 0.0])
def test_layers_of_any_momentum(roads, momentum):
    x, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6, momentum=momentum)
        return bn(x), bn(x), list(bn.buffers())

    first, _ = roads.short(everything)
    assert_equal(first, roads.general(everything)[0])
    assert first[-1] == 2


def test_frozen_parameters(roads):
    """No gradient of parameters is wanted: by batch statistics, and by constants."""
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)
    for training in (True, False):

        def everything(training=training):
            torch.manual_seed(1)
            bn = layer(x.shape, x.dtype).train(training).requires_grad_(False)
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(bn(leaf), leaf, dy)

        both_ways(roads, everything)


def test_only_parameters_want_gradients(roads):
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6)
        return torch.autograd.grad(bn(x), tuple(bn.parameters()), dy)

    both_ways(roads, everything)


def test_gradients_of_expanded_and_zero_tensors(roads):
    """What sums and undefined outputs send back has strides of 0, or no memory."""
    x, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.torch.BatchNorm2d(6)
        leaf = x.clone().requires_grad_()
        bn(leaf).sum().backward()
        return leaf.grad, [p.grad for p in bn.parameters()]

    both_ways(roads, everything, short=False)


def test_checkpointing_moves_running_statistics_once():
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(4, 6, 3, 5, requires_grad=True)
    bn = bnext.torch.BatchNorm2d(6)
    checkpoint(bn, x, use_reentrant=False).square().sum().backward()
    assert bn.num_batches_tracked == 1
    once = bnext.torch.BatchNorm2d(6)
    once(x.detach())
    assert torch.equal(bn.running_mean, once.running_mean)


def test_in_place_changes_of_x_are_noticed():
    x = torch.randn(4, 6, 3, 5)
    bn = bnext.torch.BatchNorm2d(6)
    leaf = x.clone().requires_grad_()
    inner = leaf * 1
    y = bn(inner)
    inner.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_evaluation_after_training_notices_moved_statistics():
    """Autograd keeps no running statistics, and a write to them is counted all the same."""
    bn = bnext.torch.BatchNorm1d(3)
    before = bn.running_mean._version
    bn(torch.randn(7, 3))
    assert bn.running_mean._version > before


def test_inference_tensors(roads):
    x = torch.randn(7, 3)
    with torch.inference_mode():
        inside = bnext.torch.BatchNorm1d(3)
        y = inside(x)
        assert inside.num_batches_tracked == 1
        assert y.is_inference()

    def outside():
        with torch.inference_mode():
            bn = bnext.torch.BatchNorm1d(3)
        with torch.no_grad():
            return [*outcome(bn, x), bn.running_mean.clone(), bn.num_batches_tracked.clone()]

    first, _ = roads.short(outside)
    assert_equal(first, roads.general(outside)[0])
    assert first[0] is RuntimeError


def test_a_launch_that_fails_counts_nothing(monkeypatch, module):
    class Failing:
        def __getattr__(self, name):
            return getattr(kernels_before, name)

        def forward(self, *arguments):
            raise RuntimeError("CUDA: cudaLaunchKernelExC: out of luck")

        forward_only = forward

    kernels_before = kernels.calls_there()
    monkeypatch.setattr(kernels, "_THERE", [Failing()])
    bn = bnext.torch.BatchNorm1d(3)
    versions = [getattr(bn, name)._version for name in STATE]
    for x in (torch.randn(7, 3), torch.randn(7, 3, requires_grad=True)):
        with pytest.raises(RuntimeError, match="out of luck"):
            bn(x)
    assert bn.num_batches_tracked == 0
    assert versions == [getattr(bn, name)._version for name in STATE]


def test_own_layers_of_arrays(roads):
    """`bnext.BatchNorm` on PyTorch's tensors: its count of batches is NumPy's."""
    x, dy, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        bn = bnext.BatchNorm2d(6).to(x)
        found = [bn(x), bn.backward(dy), bn.weight_grad, bn.running_mean, bn.running_var]
        found.append(int(bn.num_batches_tracked))
        bn.freeze()
        return [*found, bn(x), bn.backward(dy)]

    both_ways(roads, everything)


# --- B4: without kernels --------------------------------------------------------------------------


def test_without_kernels_the_short_way_is_left_at_once(monkeypatch):
    """Also the CPU's calls are not asked about a tensor on a GPU."""
    monkeypatch.setattr(kernels, "_THERE", [None])
    for name in ("_CALLS", "forward_plain", "inference_plain", "evaluate_plain"):
        monkeypatch.setattr(kernels, name, None)  # to ask them is an error
    from bnext.torch import gradients

    monkeypatch.setattr(gradients, "record_plain", None)
    monkeypatch.setattr(gradients, "record_plain_by_running", None)
    for training in (True, False):
        bn = bnext.torch.BatchNorm1d(3).train(training)
        for x in (torch.randn(7, 3), torch.randn(7, 3, requires_grad=True)):
            y = bn(x)
            if x.requires_grad:
                y.sum().backward()


# --- work -----------------------------------------------------------------------------------------


def functions_entered(call):
    """How many functions of Python a call runs; all that is in C counts as nothing."""
    entered = 0

    def profile(frame, event, argument):
        nonlocal entered
        entered += event == "call"

    call()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered - 1  # the call itself


def test_functions_run_little_python():
    """Times depend on the machine; this is what they come from (benchmarks.call_path_gpu)."""
    x, dy, weight, bias, *_ = arguments((64, 20), torch.float32)
    _, saved = bnext.batch_norm_forward(x, weight, bias)
    assert functions_entered(lambda: bnext.batch_norm_forward(x, weight, bias)) <= 12
    assert functions_entered(lambda: bnext.batch_norm_backward(dy, x, saved, weight)) <= 12


def test_the_measurement_runs(monkeypatch, capsys):
    monkeypatch.setattr(call_path_gpu, "TURNS", 2)
    monkeypatch.setattr(call_path_gpu, "CALLS", 2)
    assert call_path_gpu.main([]) == 0
    assert "layer, forward and backward" in capsys.readouterr().out


def test_layers_run_little_python():
    bn = bnext.torch.BatchNorm1d(20)
    x = torch.randn(64, 20)
    leaf = x.clone().requires_grad_()
    assert functions_entered(lambda: bn(leaf)) <= 20
    bn.requires_grad_(False)
    assert functions_entered(lambda: bn(x)) <= 20


# --- plans ----------------------------------------------------------------------------------------


def test_a_call_is_planned_once(module):
    x = torch.empty(4096).view(torch.uint8)
    offset = -x.data_ptr() % 256
    x = x[offset : offset + 4 * 7 * 3].view(torch.float32).view(7, 3).normal_()
    out = torch.empty(4096).view(torch.uint8)
    offset = -out.data_ptr() % 256
    out = out[offset : offset + 4 * 7 * 3].view(torch.float32).view(7, 3)
    module.forget_plans()
    bnext.batch_norm_forward(x, out=out)
    made = module.plan_figures()["made"]
    for _ in range(3):
        bnext.batch_norm_forward(x, torch.ones(3), out=out)
    assert module.plan_figures()["made"] == made
    bnext.batch_norm_forward(x[:5], out=out[:5])
    bnext.normalize(x, torch.ones(3), torch.ones(3), out=out)
    assert module.plan_figures()["made"] == made + 2
    module.forget_plans()
    assert module.plan_figures()["kept"] == 0
    bnext.batch_norm_forward(x, out=out)
    assert module.plan_figures()["made"] == made + 3


def test_alignment_is_part_of_the_plan(roads):
    """An address of a smaller alignment takes smaller units, whatever was planned before."""
    memory = torch.randn(64 + 8 * 64)
    for start in (0, 1, 2, 3, 4, 0, 1):
        x = memory[start : start + 8 * 64].view(8, 4, 16)
        both_ways(roads, lambda x=x: bnext.batch_norm_forward(x))


def test_a_forced_path_is_part_of_the_plan(roads, module):
    x, dy, weight, *_ = arguments((4, 6, 3, 5), torch.float32)

    def everything():
        y, saved = bnext.batch_norm_forward(x, weight)
        return y, saved, bnext.batch_norm_backward(dy, x, saved, weight)

    both_ways(roads, everything)
    for path in module.paths("forward"):
        with bnext.cuda._forced_path(path):
            before = module.plan_figures()["made"]
            both_ways(roads, everything)
            assert module.plan_figures()["made"] > before
    before = module.plan_figures()["made"]
    both_ways(roads, everything)
    big = torch.randn(64, 2, 40, 40)
    with bnext.cuda._forced_path("block"):
        first, _ = roads.short(bnext.batch_norm_forward, big)
        assert_equal(first, roads.general(bnext.batch_norm_forward, big)[0])
    assert first[0] is ValueError
    assert first[1].startswith("path:")


def test_plans_are_bounded(module):
    most = module.plan_figures()["most"]
    module.run_kernels(False)
    try:
        for n in range(2, most + 100):
            bnext.batch_norm_forward(torch.empty(n, 1))
            assert 0 < module.plan_figures()["kept"] <= most
    finally:
        module.run_kernels(True)


def test_threads_share_the_plans(module):
    """Each thread has shapes of its own and one that all have, in any order; plans are dropped."""
    module.forget_plans()
    wrong = []

    def work(number):
        for turn in range(40):
            for x in (torch.full((3 + number, 2), 2.0), torch.full((9, 2), 2.0)):
                x[0] = 5
                y, saved = bnext.batch_norm_forward(x)
                if saved.count != len(x) or not torch.allclose(
                    y.mean(0), torch.zeros(2), atol=1e-5
                ):
                    wrong.append((number, turn))
            if turn % 10 == number:
                module.forget_plans()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- memory ---------------------------------------------------------------------------------------


def test_results_are_memory_of_pytorchs():
    """Whose allocator knows streams and graphs; memory that is lent cannot be resized."""
    x, dy, weight, *_ = arguments((4, 6, 3, 5), torch.float32)
    for w in (weight, None):
        y, saved = bnext.batch_norm_forward(x, w)
        for result in (y, saved.rows, *bnext.batch_norm_backward(dy, x, saved, w)):
            assert type(result) is torch.Tensor
            assert result.untyped_storage().resizable()


def test_calls_leave_nothing_behind():
    tensors = x, dy, w, b, mean, var, counter = arguments((40, 20), torch.float32)
    calls = kernels.calls_there()
    saved_type = bnext.devices.DeviceSaved

    def run(number):
        for _ in range(number):
            y, saved = calls.forward(x, w, b, mean, var, 0.1, counter, 1e-5)
            calls.backward(dy, x, saved, w)
            calls.forward_only(x, w, b, mean, var, 0.1, counter, 1e-5)
            bnext.batch_norm_forward(x, w, b, out=y)
            _, given_ones = calls.normalize_by_running(x, mean, var, w, b, 1e-5)
            calls.backward_constant(dy, given_ones, None)
            calls.forward(x, w, b.double(), mean, var, 0.1, counter, 1e-5)

    def figures():
        gc.collect()
        alive = sum(type(o) is saved_type for o in gc.get_objects())
        tensors_alive = sum(type(o) is torch.Tensor for o in gc.get_objects())
        return [sys.getrefcount(t) for t in (*tensors, None.__class__)], alive, tensors_alive

    run(3)
    before = figures()
    run(30)
    assert figures() == before


def test_the_workspace_is_given_back(module):
    """Two kernels take one: 24 KB for 500 channels, 480 MB for all calls if it were kept."""
    x = torch.randn(2, 500)
    with bnext.cuda._forced_path("two_kernels"):
        for _ in range(3):
            bnext.batch_norm_forward(x)
        module.run_kernels(False)
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(20_000):
                bnext.batch_norm_forward(x)
        finally:
            module.run_kernels(True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KB


@pytest.mark.parametrize("shape", [(6, 5, 7), (9, 5)])
@pytest.mark.parametrize("path", ["block", "cluster", "cooperative", "chunked", "two_kernels"])
def test_batches_are_counted_once_on_every_path(module, path, shape):
    """By the kernel that moves the running statistics."""
    bn = layer(shape, torch.float32)
    with torch.no_grad():
        for expected in (1, 2, 3):
            assert gpu.forced(path, lambda: bn(torch.randn(shape))).shape == shape
            assert bn.num_batches_tracked == expected
