"""On a GPU: shards of one batch in threads, streams and processes."""

import contextlib

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.rows import ROW

from .. import reference
from ..cases import named
from ..compare import assert_are_gradients, assert_is_forward, assert_same_bits
from ..groups.support import CUTS, batch_axis, layer_step, members, new_group, shards_of, whole
from ..groups.test_processes import assert_first_is_told, assert_learn_as_one
from ..sixteen import assert_is_rounded

pytestmark = pytest.mark.gpu

CASES = named("NC", "NCHW-7x7", "NCHW-many-chunks", "NCHW-stored-NHWC", "inner-cropped")
ROWS = ROW._fields
CYCLES = 200_000_000  # about a tenth of a second of a stream that does nothing


def in_group(library, case, cut, x, dy, weight, bias, around=contextlib.nullcontext):
    """y, saved, gradients of three members, as NumPy arrays."""
    group = new_group(3)
    axis = batch_axis(case)
    xs, dys = (
        [library.put(shard) for shard in shards_of(array, cut, axis)] for array in (x, dy)
    )  # fmt: skip
    weight, bias = library.put(weight), library.put(bias)
    library.synchronize()

    def member(rank, shard):
        with around():
            y, saved = bnext.batch_norm_forward(
                shard, weight, bias, channel_axis=case.channel_axis, group=group
            )
            gradients = bnext.batch_norm_backward(
                dys[rank], shard, saved, weight, parameter_gradients="total"
            )
            library.synchronize()
        rows = [library.get(getattr(saved, name)) for name in ROWS]
        return library.get(y), rows, [*map(library.get, gradients)]

    return group.run(member, xs)


def drawn(case, dtype, rng):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    kind = np.float64 if dtype == np.float64 else np.float32
    return x, dy, *rng.uniform(0.5, 2, (2, case.channels)).astype(kind)


def check_whole(results, case, x, dy, weight, bias):
    axis, options = batch_axis(case), {"channel_axis": case.channel_axis}
    ys, rows, gradients = zip(*results, strict=True)
    assert_is_forward(whole(ys, axis), x, weight, bias, **options)
    dx = whole((each[0] for each in gradients), axis)
    assert_are_gradients((dx, *gradients[0][1:]), dy, x, weight, **options)
    for of_one, (_, *of_parameters) in zip(rows, gradients, strict=True):
        for actual, expected in zip(of_one, rows[0], strict=True):
            assert_same_bits(actual, expected)
        for actual, expected in zip(of_parameters, gradients[0][1:], strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_agree_with_the_whole_batch(library, case, cut, dtype, rng):
    arrays = drawn(case, dtype, rng)
    results = in_group(library, case, cut, *arrays)
    check_whole(results, case, *arrays)
    x, dy, weight, bias = map(library.put, arrays)
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=case.channel_axis)
    alone = bnext.batch_norm_backward(dy, x, saved, weight)
    close = {"rtol": 0, "atol": 1e-4 if dtype == np.float32 else 1e-11}
    axis = batch_axis(case)
    np.testing.assert_allclose(whole((r[0] for r in results), axis), library.get(y), **close)
    dx = whole((r[2][0] for r in results), axis)
    np.testing.assert_allclose(dx, library.get(alone[0]), **close)


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_members_on_streams_of_their_own(tensors, case, dtype, rng):
    torch = tensors.xp

    def around():
        return torch.cuda.stream(torch.cuda.Stream())

    arrays = drawn(case, dtype, rng)
    check_whole(in_group(tensors, case, "unequal", *arrays, around=around), case, *arrays)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_16_bits(tensors, case, dtype, rng):
    x, dy, weight, bias = drawn(case, dtype, rng)
    results = in_group(tensors, case, "unequal", x, dy, weight, bias)
    assert_is_rounded(whole(r[0] for r in results), reference.forward(x, weight, bias), "y")
    expected = reference.backward(dy, x, weight)
    assert_is_rounded(whole(r[2][0] for r in results), expected.dx, "dx")
    assert results[0][2][1].dtype == np.float32


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", ["shared", "replicas", "mixed"])
def test_layers(library, dtype, momentum, kind, rng):
    """One of the members is on the CPU if `mixed`: running statistics have the same bits."""
    group = new_group(3)
    layers = [bnext.BatchNorm2d(6, momentum=momentum, dtype=dtype, group=group) for _ in range(3)]
    if kind == "shared":
        layers = layers[:1] * 3
    there = [True, kind != "mixed", True]
    for layer, moves in zip(layers, there, strict=True):
        if moves:
            layer.to(library.put(np.zeros(1, dtype)))

    def put(rank, array):
        return library.put(array) if there[rank] else array

    def get(rank, array):
        return library.get(array) if there[rank] else array

    running = np.zeros(6), np.ones(6)
    for step in range(3):
        x, dy = rng.normal(step, 2, (2, 9, 6, 5, 3)).astype(dtype)
        xs, dys = shards_of(x, "unequal"), shards_of(dy, "unequal")

        def member(rank, shard, dys=dys):
            y, dx = layer_step(layers[rank], put(rank, shard), put(rank, dys[rank]))
            return get(rank, y), get(rank, dx)

        ys, dxs = zip(*group.run(member, xs), strict=True)
        assert_is_forward(whole(ys), x)
        close = {"rtol": 0, "atol": 2e-5 if dtype == np.float32 else 1e-12}
        np.testing.assert_allclose(whole(dxs), reference.backward(dy, x).dx, **close)
        share = 1 / (step + 1) if momentum is None else momentum
        running = reference.update_running(running, reference.moments(x), share)
    for rank, layer in enumerate(layers):
        assert layer.num_batches_tracked == 3
        for name, value in zip(("running_mean", "running_var"), running, strict=True):
            actual = get(rank, getattr(layer, name))
            np.testing.assert_allclose(actual, value, rtol=0, atol=16 * np.finfo(dtype).eps)
            assert_same_bits(actual, get(0, getattr(layers[0], name)), name)


def test_only_the_stream_of_x_is_waited_for(tensors, rng):
    torch = tensors.xp
    x = tensors.put(rng.normal(size=(64, 20)).astype(np.float32))
    group = new_group(1)
    layer = bnext.BatchNorm1d(20, group=group).to(x)
    with group.member(0):
        layer_step(layer, x, x)  # whatever is loaded at the first call is
        tensors.synchronize()
        busy, own = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(busy):
            torch.cuda._sleep(CYCLES)
        with torch.cuda.stream(own):
            layer_step(layer, x, x)
        assert not busy.query(), "a call has waited for another stream"
        busy.synchronize()


def test_a_wrong_argument_is_announced(library):
    x, vector = library.put(np.ones((4, 3), np.float32)), np.ones(3, np.float32)
    group = new_group(2, 60.0)

    def body(rank):
        weight = vector if rank == 0 else library.put(vector)
        return bnext.batch_norm_forward(x, weight, group=group)

    culprit, survivor = members(group, body, patience=20.0)
    text = "weight: expected an array on cuda:0, like x, got one on the CPU"
    assert str(culprit) == text
    assert survivor.reason == f"rank 0 raised TypeError: {text}"


# --- NCCL -----------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def processes(request, tensors):
    """How many, each with a GPU of its own."""
    torch = tensors.xp
    if not torch.distributed.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    if torch.cuda.device_count() < request.param:
        pytest.skip(f"NCCL needs a GPU for each of {request.param} processes")
    return request.param


@pytest.mark.parametrize("engine", ["nccl", "nccl-there", "cpu:gloo,cuda:nccl"])
def test_processes_over_nccl(processes, engine, tmp_path):
    """Shards on the host, and shards on the GPU; and with gloo beside it."""
    assert_learn_as_one(engine, processes, tmp_path)


@pytest.mark.parametrize("kind", ["raises", "other-channels"])
def test_faults_over_nccl(processes, kind, tmp_path):
    if processes < 2:
        pytest.skip("a fault of one is told to another")
    assert_first_is_told("nccl", kind, tmp_path)
