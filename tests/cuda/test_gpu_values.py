"""On a GPU: every operation against float64, over dtypes, layouts, shapes and paths."""

import functools
import zlib

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.arrays import engine_of

from .. import epilogues, reference
from ..cases import DENSE, EMPTY, STRIDED, Case, Memory, named
from ..compare import (
    assert_are_constant_gradients,
    assert_are_gradients,
    assert_is_forward,
    assert_is_y,
    assert_same_bits,
    assert_same_memory_order,
)
from ..sixteen import assert_is_rounded
from . import adversarial, gpu, gpu_reference
from .compare_there import assert_are_moments_there

pytestmark = pytest.mark.gpu

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
NHWC = (0, 2, 3, 1)

# Slabs of some megabytes, few channels and many, odd extents: what takes more than one block.
LARGER = [
    Case("NCHW-56x56", (32, 17, 56, 56)),
    Case("NCHW-55x57", (31, 6, 55, 57)),
    Case("NCHW-few-channels", (16, 3, 224, 224)),
    Case("NCHW-7x7-many", (64, 257, 7, 7)),
    Case("NCHW-one-plane", (1, 2, 1024, 1023)),
    Case("stored-NHWC", (16, 67, 28, 27), memory=Memory(order=NHWC)),
    Case("stored-NHWC-few", (8, 3, 128, 127), memory=Memory(order=NHWC)),
    Case("NC-tall", (60001, 32)),
    Case("NC-wide-rows", (511, 4096)),
    Case("NC-narrow", (200003, 2)),
    Case("off-by-one", (15, 19, 28, 28), memory=Memory(margins={0: (0, 1)}, offset=8)),
]
PHASES = named(
    "NC", "NC-many-rows", "NCHW-7x7", "NCHW-many-chunks", "NCHW-stored-NHWC", "inner-cropped"
)
ALIGNED = [case for case in DENSE + STRIDED if case.memory.offset != 1]
EVERY_PATH = LARGER + named(
    "NC", "NC-two-values", "NCHW-7x7", "NCHW-many-chunks", "NCHW-stored-NHWC", "NHWC-257",
    "channels-every-second", "inner-cropped", "off-by-4-bytes", "NCHW-one-channel",
)  # fmt: skip


def skip_what_cannot_be(library, case, dtype):
    backwards = any(step < 0 for step in case.memory.steps.values())
    if backwards and not library.negative_strides:
        pytest.skip("the library has no negative strides")
    if case.memory.offset % np.dtype(dtype).itemsize:
        pytest.skip("no multiple of the elements")
    if library.name == "cupy" and dtype is ml_dtypes.bfloat16:
        pytest.skip("CuPy has no bfloat16")


def is_wide(dtype):
    return dtype in (np.float32, np.float64)


def check_forward(library, case, dtype, rng):
    x = case.x(rng, dtype)
    kind = np.float64 if dtype is np.float64 else np.float32
    weight, bias = case.weight(rng, kind), case.bias(rng, kind)
    arrays = [library.put(values) for values in (x, weight, bias)]
    axis = {"channel_axis": case.channel_axis}
    y, saved = bnext.batch_norm_forward(*arrays, **axis)
    y = library.get(y)
    if is_wide(dtype):
        assert_is_forward(y, x, weight, bias, **axis)
    else:
        assert_is_rounded(y, reference.forward(x, weight, bias, **axis), "y", **axis)
    rows = [library.get(row) for row in (saved.mean, saved.m2, saved.var, saved.rstd)]
    moments = bnext.Moments(saved.count, rows[0], rows[1])
    assert_are_moments_there(moments, x, **axis)
    np.testing.assert_allclose(rows[2], moments.var, rtol=1e-14)
    np.testing.assert_allclose(rows[3], reference.rstd(rows[2], 1e-5), rtol=1e-14)
    return x, y


def check_backward(library, case, dtype, rng):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight = case.weight(rng, np.float64 if dtype is np.float64 else np.float32)
    x_, dy_, weight_ = (library.put(values) for values in (x, dy, weight))
    axis = {"channel_axis": case.channel_axis}
    _, saved = bnext.batch_norm_forward(x_, weight_, **axis)
    gradients = bnext.batch_norm_backward(dy_, x_, saved, weight_)
    check_gradients([library.get(g) for g in gradients], dy, x, weight, axis)


def check_gradients(gradients, dy, x, weight, axis):
    if is_wide(x.dtype.type):
        assert_are_gradients(gradients, dy, x, weight, **axis)
        return
    expected = reference.backward(dy, x, weight, **axis)
    if x.size > 2 * x.shape[axis["channel_axis"]]:  # of two values nothing is left but roundings
        assert_is_rounded(gradients[0], expected.dx, "dx", **axis)
    for actual, value in zip(gradients[1:], expected[1:], strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, value, rtol=2e-6, atol=2e-6 * np.abs(value).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("case", ALIGNED, ids=str)
def test_every_layout(library, case, dtype, rng):
    skip_what_cannot_be(library, case, dtype)
    x, y = check_forward(library, case, dtype, rng)
    if case in DENSE:
        assert_same_memory_order(y, x)
    check_backward(library, case, dtype, rng)


@functools.lru_cache(maxsize=2)
def drawn(name, dtype):
    """x, dy, weight and bias on the GPU, and what is expected of them; paths share these."""
    case = next(case for case in EVERY_PATH if case.name == name)
    rng = np.random.default_rng(zlib.crc32(f"{name} {np.dtype(dtype)}".encode()))
    kind = np.float64 if dtype is np.float64 else np.float32
    values = case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, kind), case.bias(rng, kind)
    tensors = gpu.with_a_gpu("tensor")
    arrays = [tensors.put(array) for array in values]
    return *arrays, gpu_reference.expected(tensors.xp, *arrays, case.channel_axis)


def check(torch, case, dtype, call=lambda f: f()):
    """Both passes on the larger inputs, compared where they are."""
    axis = case.channel_axis
    x, dy, weight, bias, expected = drawn(case.name, dtype)
    y, saved = call(lambda: bnext.batch_norm_forward(x, weight, bias, channel_axis=axis))
    gpu_reference.assert_forward(torch, y, saved, expected, axis)
    if case.count == 2 and not is_wide(dtype):
        return  # of dx nothing is left but roundings
    gradients = call(lambda: bnext.batch_norm_backward(dy, x, saved, weight))
    gpu_reference.assert_backward(torch, gradients, expected, axis)


@pytest.mark.parametrize("path", [None, *gpu.PATHS])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("case", EVERY_PATH, ids=str)
def test_every_path(tensors, case, dtype, path):
    skip_what_cannot_be(tensors, case, dtype)
    if path is None:
        check(tensors.xp, case, dtype)
    else:
        check(tensors.xp, case, dtype, lambda call: gpu.forced(path, call))


@pytest.mark.parametrize("path", [None, *gpu.PATHS])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", [*epilogues.activations.ACTIVATIONS, None])
def test_activation_and_residual(tensors, name, dtype, residual, path, rng):
    """In planes and in rows of channels, some of which take units of four."""
    for case in named("NCHW-7x7", "NCHW-many-chunks", "NCHW-stored-NHWC", "NHWC-many-chunks"):
        inputs = epilogues.drawn(rng, case, dtype, name, residual)
        x, dy, added, weight, bias = (
            None if each is None else tensors.put(each) for each in inputs[2:]
        )

        def both(inputs=inputs, x=x, dy=dy, added=added, weight=weight, bias=bias):
            y, saved = bnext.batch_norm_forward(
                x, weight, bias, **inputs.options | {"residual": added}
            )
            again = {"residual": added} if saved.reads_residual else {}
            return y, *bnext.batch_norm_backward(dy, x, saved, weight, **again)

        results = both() if path is None else gpu.forced(path, both)
        epilogues.Expected(inputs).assert_are_results([tensors.get(each) for each in results])


@pytest.mark.parametrize("case", named("NC-few-rows", "NCHW-7x7", "NHWC"), ids=str)
def test_the_reference_there_is_the_reference_here(tensors, case, dtype, rng):
    values = case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    x, dy, weight, bias = values
    axis = {"channel_axis": case.channel_axis}
    there = map(tensors.put, values)
    there = gpu_reference.expected(tensors.xp, *there, case.channel_axis)
    y = reference.per_channel(reference.forward(x, weight, bias, **axis), case.channel_axis)
    dx, dweight, dbias = reference.backward(dy, x, weight, **axis)
    dx = reference.per_channel(dx, case.channel_axis)
    _, mean, m2 = reference.moments(x, case.channel_axis)
    here = {"mean": mean, "m2": m2, "y": y, "dx": dx, "dweight": dweight, "dbias": dbias}
    for name, value in here.items():
        actual = tensors.get(getattr(there, name))
        np.testing.assert_allclose(actual, value, rtol=1e-12, atol=1e-12 * abs(value).max())


def test_every_path_is_known(tensors):
    """All but the one that operations of one phase have are forced above."""
    kernels = gpu.kernels()
    for operation in ("forward", "backward"):
        assert set(kernels.paths(operation)) <= set(gpu.PATHS)


@pytest.mark.parametrize("case", PHASES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: np.dtype(d).name)
def test_phases_alone(tensors, case, dtype, rng):
    """Collect and normalize; reduce and apply; normalize with statistics of either dtype."""
    x, dy, weight = case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype)
    x_, dy_, weight_ = (tensors.put(values) for values in (x, dy, weight))
    axis = case.channel_axis
    moments = bnext.moments(x_, channel_axis=axis)
    host = bnext.Moments(moments.count, tensors.get(moments.mean), tensors.get(moments.m2))
    assert_are_moments_there(host, x, channel_axis=axis)
    y = bnext.normalize(x_, moments.mean, moments.var, weight_, channel_axis=axis)
    assert_is_forward(tensors.get(y), x, weight, channel_axis=axis)
    mean, var = (rng.uniform(0.5, 2, case.channels).astype(dtype) for _ in range(2))
    y = bnext.normalize(x_, tensors.put(mean), tensors.put(var), weight_, channel_axis=axis)
    assert_is_y(tensors.get(y), x, mean, var, weight, channel_axis=axis)
    # As a group calls them, with what it exchanges on the host.
    engine = engine_of(x_)
    nothing = [None] * 5
    count, *rows, _ = engine.collect_stats(x_, weight_, *nothing, 1e-5, axis, None)
    assert_same_bits(rows[0], host.mean)
    assert_same_bits(rows[2], host.m2)
    y, saved = engine.apply_norm(x_, count, *rows, weight_, None, 1e-5, axis, None)
    assert_is_forward(tensors.get(y), x, weight, channel_axis=axis)
    sums = engine.backward_reduce(dy_, x_, saved, weight_)
    gradients = [engine.backward_apply(dy_, x_, saved, weight_, *sums, count, None)]
    gradients += engine.parameter_gradients(saved, weight_, *sums)
    assert_are_gradients([*map(tensors.get, gradients)], dy, x, weight, channel_axis=axis)


@pytest.mark.parametrize("path", [None, *gpu.PATHS])
@pytest.mark.parametrize("case", adversarial.CASES, ids=str)
def test_adversarial_numerics(tensors, case, dtype, path, rng):
    adversarial.check_numerics(tensors, case, dtype, path, rng)


@pytest.mark.parametrize("value", adversarial.NOT_FINITE, ids=str)
@pytest.mark.parametrize("path", [None, *gpu.PATHS])
@pytest.mark.parametrize("case", adversarial.CASES, ids=str)
def test_what_is_not_finite_stays_in_its_channel(tensors, case, dtype, path, value, rng):
    adversarial.check_not_finite(tensors, case, dtype, path, value, rng)


@pytest.mark.parametrize("path", [None, *gpu.PATHS])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("case", [*LARGER[:3], *LARGER[5:8], *named("NC")], ids=str)
def test_same_bits_every_time(tensors, case, dtype, path):
    x, dy, weight, bias, _ = drawn(case.name, dtype)

    def results():
        y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=case.channel_axis)
        gradients = bnext.batch_norm_backward(dy, x, saved, weight)
        return [y, saved._statistics, *gradients]

    def several():
        first = results()
        tensors.synchronize()  # x and dy are made on the current stream
        with tensors.xp.cuda.stream(tensors.xp.cuda.Stream()):
            on_another_stream = results()
        tensors.synchronize()
        return first, on_another_stream, results(), results()

    torch = tensors.xp
    first, *others = several() if path is None else gpu.forced(path, several)
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
            assert torch.equal(actual.view(integers), expected.view(integers))


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(library, case, dtype):
    x = np.empty(case.shape, dtype)
    axis = {"channel_axis": case.channel_axis}
    y, expected = bnext.batch_norm_forward(x, **axis)
    y_, saved = bnext.batch_norm_forward(library.put(x), **axis)
    assert_same_bits(library.get(y_), y)
    for name in ("mean", "m2", "var", "rstd"):
        assert_same_bits(library.get(getattr(saved, name)), getattr(expected, name), name)
    gradients = bnext.batch_norm_backward(library.put(x), library.put(x), saved)
    there = [library.get(gradient) for gradient in gradients]
    for actual, value in zip(there, bnext.batch_norm_backward(x, x, expected), strict=True):
        assert_same_bits(actual, value)
    assert bnext.moments(library.put(x), **axis).count == expected.count


@pytest.mark.parametrize(
    "out_case", named("NC", "channels-every-second-NC", "NC-stored-CN"), ids=str
)
def test_out(library, out_case, dtype, rng):
    """Where the output lies otherwise than x; what lies beside it stays."""
    shape = (64, 20)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    _, values = out_case.memory.allocate(shape, dtype, fill=7)
    out = library.put(values)
    y, saved = bnext.batch_norm_forward(library.put(x), out=out)
    assert y is out
    assert_is_forward(library.get(out), x)
    dx, dweight, dbias = bnext.batch_norm_backward(
        library.put(dy), library.put(x), saved, out=out
    )  # fmt: skip
    assert dx is out
    gradients = library.get(out), library.get(dweight), library.get(dbias)
    assert_are_gradients(gradients, dy, x)


@pytest.mark.parametrize("out", [False, True])
def test_nothing_beside_an_output_is_touched(tensors, dtype, rng, out):
    """An output in the middle of other memory, on odd addresses."""
    torch = tensors.xp
    for shape in ((37, 19), (3, 7, 29), (5, 17, 7, 7)):
        x, dy = rng.normal(size=(2, *shape)).astype(dtype)
        size = x.size
        for margin in (1, 2, 3, 5):
            flat = torch.full((size + 2 * margin,), 7.0, device=gpu.DEVICE,
                              dtype=getattr(torch, np.dtype(dtype).name))  # fmt: skip
            target = flat[margin : margin + size].view(shape)
            _, saved = bnext.batch_norm_forward(tensors.put(x), out=target if not out else None)
            if out:
                bnext.batch_norm_backward(tensors.put(dy), tensors.put(x), saved, out=target)
            around = torch.cat([flat[:margin], flat[margin + size :]])
            assert bool((around == 7.0).all())


@pytest.mark.parametrize("training", [True, False])
def test_layers(library, dtype, rng, training):
    """Three steps beside the reference; evaluation holds the statistics constant."""
    bn = bnext.BatchNorm2d(5, dtype=dtype)
    bn.weight[...] = rng.uniform(0.5, 2, 5)
    bn.to(library.put(np.zeros(1, dtype)))
    running = np.zeros(5), np.ones(5)
    for step in range(3):
        x, dy = rng.normal(step, 2, (2, 3, 5, 7, 9)).astype(dtype)
        weight = library.get(bn.weight)
        assert_is_forward(library.get(bn(library.put(x))), x, weight)
        running = reference.update_running(running, reference.moments(x), 0.1)
        for name, value in zip(("running_mean", "running_var"), running, strict=True):
            actual = library.get(getattr(bn, name))
            np.testing.assert_allclose(actual, value, rtol=0, atol=16 * np.finfo(dtype).eps)
    bn.train(training)
    y = bn(library.put(x))
    mean, var = library.get(bn.running_mean), library.get(bn.running_var)
    dx = bn.backward(library.put(dy))
    gradients = [library.get(array) for array in (dx, bn.weight_grad, bn.bias_grad)]
    if training:
        assert_is_forward(library.get(y), x, weight)
        assert_are_gradients(gradients, dy, x, weight)
    else:
        assert_is_y(library.get(y), x, mean, var, weight)
        assert_are_constant_gradients(gradients, dy, x, mean, var, weight)
    assert bn.num_batches_tracked == 3 + training
