"""Members whose shards are CPU arrays of other libraries: as NumPy's to the bit, and of theirs.

PyTorch and JAX are tested where they are installed; a small library over DLPack, always.
"""

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from ..array_libraries import (
    Producer,
    Small,
    as_jax,
    as_torch,
    from_jax,
    from_nothing,
    from_small,
    from_torch,
)
from ..compare import assert_same_bits
from ..optional import marked
from .support import CUTS, layer_step, members, new_group, shards_of

# How an array becomes one of the library, and how it comes back.
LIBRARIES = {
    "torch": (as_torch, from_torch),
    "jax": (as_jax, from_jax),
    "small": (Small, from_small),
    "producer": (Producer, from_nothing),  # of no library: NumPy's answer, as to a list
}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
OF_LIBRARIES = [
    pytest.param((*name.values, dtype), id=f"{name.id}-{np.dtype(dtype).name}", marks=name.marks)
    for name in marked(LIBRARIES)
    for dtype in DTYPES
    if (name.id, dtype) != ("jax", np.float64)  # which it has by an option alone
]
SHAPE = (11, 6, 5, 4)


@pytest.fixture(params=OF_LIBRARIES)
def library_and_dtype(request):
    name, dtype = request.param
    return LIBRARIES[name], dtype


@pytest.fixture(params=marked(LIBRARIES))
def library(request):
    return LIBRARIES[request.param]


def parameters_of(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def drawn(rng, dtype):
    x, dy = (rng.normal(0.5, 2, SHAPE).astype(dtype) for _ in range(2))
    weight, bias = rng.uniform(0.5, 2, (2, SHAPE[1])).astype(parameters_of(dtype))
    return x, dy, weight, bias


def both_passes(xs, dys, weight, bias, outs=None, **options):
    """y, saved, gradients of three members."""
    group = new_group(len(xs))

    def member(rank, x):
        out = {} if outs is None else {"out": outs[rank]}
        y, saved = bnext.batch_norm_forward(x, weight, bias, group=group, **out)
        if outs is not None:
            assert y is outs[rank]
            y = np.array(y if isinstance(y, np.ndarray) else y.numpy())
        return y, saved, bnext.batch_norm_backward(dys[rank], x, saved, weight, **out, **options)

    return group.run(member, xs)


@pytest.mark.parametrize("cut", CUTS)
def test_results_are_numpy_s_to_the_bit(rng, library_and_dtype, cut):
    (make, values_of), dtype = library_and_dtype
    x, dy, weight, bias = drawn(rng, dtype)
    xs, dys = shards_of(x, cut), shards_of(dy, cut)
    expected = both_passes(xs, dys, weight, bias)
    actual = both_passes([*map(make, xs)], [*map(make, dys)], make(weight), make(bias))
    for (y_, saved_, gradients_), (y, saved, gradients) in zip(actual, expected, strict=True):
        assert_same_bits(values_of(y_), y)
        for actual_one, value in zip(gradients_, gradients, strict=True):
            assert_same_bits(values_of(actual_one), value)
        assert saved_.count == saved.count
        assert (saved_.shape, saved_.dtype) == (saved.shape, saved.dtype)
        for name in ("mean", "m2", "var", "rstd"):
            assert_same_bits(getattr(saved_, name), getattr(saved, name), name)


@pytest.mark.parametrize("total", [False, True])
def test_numpy_parameters_may_stand_beside(rng, library_and_dtype, total):
    """Gradients of parameters are as the parameters; where there are none, as x."""
    (make, values_of), dtype = library_and_dtype
    x, dy, weight, _ = drawn(rng, dtype)
    xs, dys = shards_of(x, "unequal"), shards_of(dy, "unequal")
    options = {"parameter_gradients": "total" if total else "local"}
    for parameter, of_gradients in ((weight, from_nothing), (None, values_of)):
        expected = both_passes(xs, dys, parameter, None, **options)
        actual = both_passes([*map(make, xs)], [*map(make, dys)], parameter, None, **options)
        for (*_, gradients_), (*_, (dx, *gradients)) in zip(actual, expected, strict=True):
            assert_same_bits(values_of(gradients_[0]), dx)
            for one, value in zip(gradients_[1:], gradients, strict=True):
                assert_same_bits(of_gradients(one), value)


@pytest.mark.torch
@pytest.mark.parametrize("of_numpy", [False, True])
def test_out_is_written_in_place_by_torch_members(rng, of_numpy):
    x, dy, weight, bias = drawn(rng, np.float32)
    xs, dys = shards_of(x, "unequal"), shards_of(dy, "unequal")
    expected = both_passes(xs, dys, weight, bias)
    values = [np.full_like(shard, np.nan) for shard in xs]
    outs = values if of_numpy else [*map(as_torch, values)]
    actual = both_passes([*map(as_torch, xs)], [*map(as_torch, dys)], weight, bias, outs)
    for out, value, (y_, _, (dx_, *_)), (y, _, (dx, *_)) in zip(
        outs, values, actual, expected, strict=True
    ):
        assert_same_bits(y_, y)
        assert dx_ is out
        assert_same_bits(value, dx)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("replicas", [False, True], ids=["shared", "replicas"])
def test_layers(rng, library, momentum, replicas):
    """Parameters and running statistics stay NumPy's, also for what cannot be written."""
    make, values_of = library
    batches = rng.normal(1, 2, (3, *SHAPE)).astype(np.float32)

    def trained(made):
        group = new_group(3)
        layers = [bnext.BatchNorm2d(SHAPE[1], momentum=momentum, group=group)]
        layers *= 1 if replicas else 3
        layers += [bnext.BatchNorm2d(SHAPE[1], momentum=momentum, group=group)
                   for _ in range(3 - len(layers))]  # fmt: skip

        def member(rank, shards):
            return [layer_step(layers[rank], made(x), made(x[::-1].copy())) for x in shards]

        cut = [shards_of(x, "unequal") for x in batches]
        results = group.run(member, [*zip(*cut, strict=True)])
        evaluated = layers[0].eval()(made(batches[0]))
        return layers, results, evaluated

    ours, expected, evaluated = trained(lambda x: x)
    theirs, actual, evaluated_ = trained(make)
    assert_same_bits(values_of(evaluated_), evaluated)
    for one, other in zip(theirs, ours, strict=True):
        for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            assert type(getattr(one, name)) is np.ndarray
            assert_same_bits(getattr(one, name), getattr(other, name), name)
        assert one.num_batches_tracked == 3
    for of_one, of_other in zip(actual, expected, strict=True):
        for steps in zip(of_one, of_other, strict=True):
            for result, value in zip(*steps, strict=True):
                assert_same_bits(values_of(result), value)


@pytest.mark.parametrize("replicas", [False, True], ids=["shared", "replicas"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_torch_layers_of_tensors(torch, rng, dtype, replicas):
    """Running statistics that are tensors move in place, to the bits of NumPy's."""
    batches = rng.normal(1, 2, (3, *SHAPE)).astype(dtype)
    groups = [new_group(3), new_group(3)]
    of_numpy, of_torch = (
        [bnext.BatchNorm2d(SHAPE[1], dtype=dtype, group=group) for _ in range(3)]
        for group in groups
    )
    for layer in of_torch:
        layer.to(torch.zeros(0))
    running = [layer.running_mean for layer in of_torch]
    which = [0, 1, 2] if replicas else [0, 0, 0]

    def member(layers, made):
        return lambda rank, x: layer_step(layers[which[rank]], made(x), made(x))

    for batch in batches:
        shards = shards_of(batch, "equal")
        expected = groups[0].run(member(of_numpy, lambda x: x), shards)
        actual = groups[1].run(member(of_torch, as_torch), shards)
        for results in zip(actual, expected, strict=True):
            for result, value in zip(*results, strict=True):
                assert_same_bits(from_torch(result), value)
    for rank in set(which):
        assert of_torch[rank].running_mean is running[rank]
        for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            actual, expected = getattr(of_torch[rank], name), getattr(of_numpy[rank], name)
            assert_same_bits(from_torch(actual), expected, name)


def test_members_may_be_of_different_libraries(rng, library_and_dtype):
    """Only moments and sums are exchanged, and they are the same whatever the array is."""
    (make, values_of), dtype = library_and_dtype
    x, dy, weight, bias = drawn(rng, dtype)
    xs, dys = shards_of(x, "unequal"), shards_of(dy, "unequal")
    expected = both_passes(xs, dys, weight, bias)
    xs[1], dys[1] = make(xs[1]), make(dys[1])
    actual = both_passes(xs, dys, weight, bias)
    for rank, back in enumerate((from_nothing, values_of, from_nothing)):
        (y_, _, gradients_), (y, _, gradients) = actual[rank], expected[rank]
        assert_same_bits(back(y_), y)
        assert_same_bits(back(gradients_[0]), gradients[0])


# --- errors ---------------------------------------------------------------------------------------


def told(calls, kind, text):
    """The first member's call raises `kind` with that text; the other one is told of it."""
    group = new_group(2, 60.0)
    results = members(group, lambda rank: calls[rank](group), patience=10.0)
    assert type(results[0]) is kind, results
    assert str(results[0]).startswith(text), results[0]
    assert isinstance(results[1], GroupError), results
    assert results[1].reason == f"rank 0 raised {kind.__name__}: {results[0]}"


def forward(x, *parameters, **options):
    return lambda group: bnext.batch_norm_forward(x, *parameters, group=group, **options)


GOOD = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_torch_tensors_that_require_gradients_are_announced(torch):
    x, parameter = torch.ones(4, 3), torch.ones(3, requires_grad=True)
    requiring = "expected a tensor that requires no gradient, got one that does"
    told([forward(torch.ones(4, 3, requires_grad=True)), forward(GOOD)], TypeError,
         f"x: {requiring}")  # fmt: skip
    told([forward(x, parameter), forward(GOOD)], TypeError, f"weight: {requiring}")


def test_torch_tensors_elsewhere_are_announced(torch):
    text = "x: expected an array on the CPU or on a CUDA device, got one on meta"
    told([forward(torch.ones(4, 3, device="meta")), forward(GOOD)], RuntimeError, text)


@pytest.mark.torch
def test_torch_out_that_overlaps_is_announced():
    """Before anything is exchanged, let alone written."""
    memory = as_torch(np.concatenate([GOOD, GOOD]))
    x = memory[: len(GOOD)]
    values = np.zeros((4, 3), np.float32)
    text = "out: expected memory of its own, got an array that overlaps x"
    told([forward(x, out=memory[1 : len(GOOD) + 1]), forward(GOOD, out=values)], ValueError, text)
    assert not values.any()
    assert_same_bits(from_torch(x), GOOD)


@pytest.mark.torch
def test_two_libraries_in_one_torch_call_are_announced():
    weight = as_torch(np.ones(3, np.float32))
    text = "weight: expected an array of small, like x, or of NumPy, got one of torch"
    told([forward(Small(GOOD), weight), forward(GOOD)], TypeError, text)


def test_dtypes_of_torch_and_numpy_must_agree(torch):
    group = new_group(2, 60.0)
    shards = [torch.ones(4, 3, dtype=torch.float64), GOOD]
    results = members(group, lambda rank: forward(shards[rank])(group), patience=10.0)
    assert all(isinstance(error, GroupError) for error in results)
    assert "float" in group.broken


@pytest.mark.torch
def test_torch_running_statistics_need_torch_shards_of_all_members():
    """Whoever comes first would move them: so all are asked."""
    group = new_group(2, 60.0)
    layer = bnext.BatchNorm1d(3, group=group).to(as_torch(GOOD.copy()))
    shards = [GOOD, as_torch(GOOD.copy())]
    results = members(group, lambda rank: layer(shards[rank]), patience=10.0)
    text = "running_mean: expected an array of shape (3,), got Tensor"
    assert str(results[0]) == text
    assert isinstance(results[1], GroupError)
    assert layer.num_batches_tracked == 0
    assert not layer.running_mean.any()


@pytest.mark.jax
def test_jax_arrays_cannot_be_written():
    x = as_jax(GOOD)
    text = "out: expected an array that can be written, got one of jax"
    told([forward(x, out=x + 1), forward(GOOD)], TypeError, text)

    def layer_of_jax(group):
        layer = bnext.BatchNorm1d(3, group=group)
        layer.running_mean = as_jax(np.zeros(3, np.float32))
        return layer(x)

    def layer(group):
        return bnext.BatchNorm1d(3, group=group)(x)

    text = "running_mean: expected an array that can be written, got one of jax"
    told([layer_of_jax, layer], TypeError, text)


def test_one_value_per_channel(library):
    make, _ = library
    one = np.ones((1, 3), np.float32)
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    for rank, error in enumerate(members(group, lambda rank: layer(make(one[rank:])))):
        assert type(error) is ValueError
        assert str(error) == (
            "Expected more than 1 value per channel when training, got 1 in the whole batch of 2 "
            f"shards (input size ({1 - rank}, 3) here)"
        )
    assert layer.num_batches_tracked == 0


def test_saved_of_another_library_s_group(library):
    """Backward with a NumPy x that has the same values: nothing but memory makes the difference."""
    make, _ = library
    group = new_group(1)
    with group.member(0):
        _, saved = bnext.batch_norm_forward(make(GOOD), group=group)
        dx, _, _ = bnext.batch_norm_backward(GOOD, GOOD, saved)
    assert type(dx) is np.ndarray
    text = f"<bnext.sync.SyncSaved of a float32 shard of shape (4, 3) in {group!r}>"
    assert repr(saved) == text
    assert not saved.m2.flags.writeable
