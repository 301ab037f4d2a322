"""Functions on PyTorch's tensors on a GPU: plain tensors beside the general road."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnext
from bnext.arrays import engine_of

from ..torch.plain import unusual
from .roads import (
    DTYPES,
    LAST,
    LAYOUTS,
    Roads,
    arguments,
    assert_equal,
    both_ways,
    outcome,
    param,
    torch,
)

pytestmark = pytest.mark.usefixtures("pretended", "seeded")


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
    both_ways(roads, lambda: bnext.batch_norm_forward(x, out=other))
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
        (kind, text), _ = roads.short(call)
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


def test_modes_that_fake_tensors_leave_nothing_behind(pretended):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(7, 3)
    calls = bnext._core.calls_on(pretended, bnext.arrays.library_of(x), 0)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(TypeError, match="FakeTensor"):
        calls.forward(x, None, None, 1e-5, 1, None)
    y, saved = calls.forward(x, None, None, 1e-5, 1, None)
    assert type(y) is type(saved.rows) is torch.Tensor


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_saved_is_copied(roads, again):
    x, dy, weight, *_ = arguments((3, 4, 2, 5), torch.bfloat16, True)
    _, saved = bnext.batch_norm_forward(x, weight)
    other = again(saved)
    assert type(other) is bnext.DeviceSaved
    assert repr(other) == repr(saved)
    for name in ("count", "eps", "shape", "dtype", "channel_axis", "batch_statistics"):
        assert getattr(other, name) == getattr(saved, name)
    assert torch.equal(other.rows, saved.rows)
    expected = bnext.batch_norm_backward(dy, x, saved, weight)
    assert_equal(bnext.batch_norm_backward(dy, x, other, weight), expected)


def unusual_of_a_gpu():
    names = ("x", "dy", "weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    usual = dict(zip(names, arguments((4, 6, 3, 5), torch.float32), strict=True))
    return unusual(
        usual,
        ("empty", "x", torch.empty(0, 6, 3, 5)),
        ("array as weight", "weight", usual["weight"].numpy()),
    )


@pytest.mark.parametrize("given", list(unusual_of_a_gpu()))
def test_unusual_tensors(roads, given):
    """Calls for plain tensors refuse them, and have changed nothing; functions take them."""
    x, _, w, b, mean, var, counter = given
    buffers = [t for t in (mean, var, counter) if t is not None]
    before = [t.clone() for t in buffers]
    for keeps in (True, False):
        options = {"plain": True, "keeps": keeps}
        with pytest.raises((TypeError, ValueError)):
            engine_of(x).forward(
                x, w, b, 1e-5, 1, None, running_mean=mean, running_var=var, momentum=0.1,
                num_batches_tracked=counter, **options,
            )  # fmt: skip
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
    with pytest.raises((TypeError, ValueError), match="momentum"):
        engine_of(x).forward(
            x, w, b, 1e-5, 1, None, running_mean=mean, running_var=var, momentum=momentum,
            num_batches_tracked=counter, plain=True,
        )  # fmt: skip
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
    both_ways(roads, lambda: bnext.batch_norm_backward(other, x, saved, weight))


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
            engine_of(x).forward, x, weight, bias, eps, axis, None, running_mean=running[0],
            running_var=running[1], momentum=momentum, num_batches_tracked=counter,
            bessel=bessel,
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
