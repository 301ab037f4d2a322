"""Arrays of every make: outputs that lie otherwise than inputs, guarded memory, exotic inputs."""

import sys

import numpy as np
import pytest

import bnext

from .cases import MEMORIES, MEMORIES_SHAPE, Memory
from .compare import (
    assert_are_gradients,
    assert_is_forward,
    assert_is_y,
    assert_same_bits,
)
from .conftest import needs_openmp
from .optional import NotHere

GUARD = -777.0

OPERATIONS = ("forward", "backward", "normalize")


def check(operation, x, dy, out):
    """Runs one operation into `out` and compares it with the definition."""
    weight = np.linspace(0.5, -2, x.shape[1]).astype(x.dtype)
    if operation == "forward":
        y, _ = bnext.batch_norm_forward(x, weight, out=out)
        assert_is_forward(y, x, weight)
    elif operation == "normalize":
        mean, var = np.linspace(-1, 1, x.shape[1]), np.linspace(0.5, 2, x.shape[1])
        y = bnext.normalize(x, mean, var, weight, out=out)
        assert_is_y(y, x, mean, var, weight)
    else:
        _, saved = bnext.batch_norm_forward(x, weight)
        gradients = bnext.batch_norm_backward(dy, x, saved, weight, out=out)
        y = gradients[0]
        assert_are_gradients(gradients, dy, x, weight)
    assert y is out


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("of_out", MEMORIES)
def test_out_may_lie_otherwise_than_x_and_nothing_beside_it_is_touched(
    rng, dtype, operation, of_out
):
    values, dy = rng.normal(size=(2, *MEMORIES_SHAPE)).astype(dtype)
    for memory in MEMORIES.values():
        whole, out = MEMORIES[of_out].allocate(MEMORIES_SHAPE, dtype, fill=GUARD)
        out[...] = np.nan
        check(operation, memory.place(values), memory.place(dy), out)
        out[...] = GUARD
        assert (whole == GUARD).all()


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(37, 19), (2, 2011), (4099, 5), (3, 7, 29)], ids=str)
def test_nothing_beside_a_dense_output_is_touched(rng, dtype, operation, shape):
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    for offset in (0, 1, 4, 8, 36):
        memory = Memory(margins={0: (1, 1)}, offset=offset)
        whole, out = memory.allocate(shape, dtype, fill=GUARD)
        out[...] = np.nan
        check(operation, x, dy, out)
        out[...] = GUARD
        assert (whole == GUARD).all()


LARGE = {  # with its output past the last-level cache, where outputs bypass it
    "NCHW": lambda n: ((-(-n // (3 * 5001)), 3, 5001), Memory()),
    "NCHW-29x29": lambda n: ((-(-n // (67 * 841)), 67, 29, 29), Memory()),
    "NC": lambda n: ((-(-n // 517), 517), Memory()),
    "NHWC-few": lambda n: ((-(-n // 3), 3), Memory()),
    "off-by-4-bytes": lambda n: ((-(-n // (67 * 841)), 67, 29, 29), Memory(offset=4)),
    "off-by-1-byte": lambda n: ((-(-n // (67 * 841)), 67, 29, 29), Memory(offset=1)),
    "off-by-1-byte-NC": lambda n: ((-(-n // 517), 517), Memory(offset=1)),
    "channels-of-more": lambda n: ((-(-n // 517), 517), Memory(margins={1: (1, 2)})),
}


@needs_openmp
@pytest.mark.usefixtures("isa", "restore_threads", "fixed_team")
@pytest.mark.parametrize("name", LARGE)
def test_outputs_larger_than_the_cache(rng, name):
    """Non-temporal stores want aligned addresses and whole lines, which these do not offer."""
    cache = bnext.show_config(mode="dicts")["cpu"]["l3_bytes"]
    if not 0 < cache <= 2**26:
        raise NotHere("a last-level cache of 64 MiB at most", f"here: {cache >> 20} MiB")
    bnext.set_num_threads(8)  # as many as non-temporal stores are meant for
    shape, memory = LARGE[name](cache // 8 + 4096)
    values = rng.standard_normal(shape, np.float32)
    whole, out = memory.allocate(shape, np.float32, fill=GUARD)
    out[...] = np.nan
    assert bnext._core.explain(values, 1, 2)["streams_output"]
    y, saved = bnext.batch_norm_forward(values, out=out)
    parts = np.array_split(values, 8)  # each of which stays in the cache
    ordinary = [bnext.normalize(part, saved.mean, saved.var) for part in parts]
    assert_same_bits(y, np.concatenate(ordinary))
    out[...] = np.nan
    dx, _, _ = bnext.batch_norm_backward(values, values, saved, out=out)
    # dy = x: the gradient along what was normalized away, hence 0 but for eps.
    assert np.abs(dx).max() < 1e-4
    out[...] = GUARD
    assert (whole == GUARD).all()


REPEATED = {  # shapes of what is repeated along its axes of extent 1
    "rows": ((1, 19), (6, 19)),
    "examples": ((1, 7, 5), (6, 7, 5)),
    "positions": ((6, 7, 1), (6, 7, 5)),
    "channels": ((6, 1, 5), (6, 7, 5)),
    "all": ((1, 1, 1), (6, 7, 5)),
}


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_elements_may_be_read(rng, dtype, name, channel_axis):
    """Broadcast arrays repeat elements in memory: nothing is wrong with reading them."""
    small, shape = REPEATED[name]
    x = np.broadcast_to(rng.normal(size=small).astype(dtype), shape)
    dy = np.broadcast_to(rng.normal(size=small).astype(dtype), shape)
    y, saved = bnext.batch_norm_forward(x, channel_axis=channel_axis)
    assert_is_forward(y, x, channel_axis=channel_axis)
    gradients = bnext.batch_norm_backward(dy, x, saved)
    assert_are_gradients(gradients, dy, x, channel_axis=channel_axis)
    dense = rng.normal(size=shape).astype(dtype)
    _, saved = bnext.batch_norm_forward(dense, channel_axis=channel_axis)
    gradients = bnext.batch_norm_backward(dy, dense, saved)
    assert_are_gradients(gradients, dy, dense, channel_axis=channel_axis)


@pytest.mark.usefixtures("isa")
def test_read_only_inputs(rng, dtype):
    x, dy = rng.normal(size=(2, 6, 7, 5)).astype(dtype)
    parameters = np.ones((4, 7), dtype)
    for array in (x, dy, parameters):
        array.flags.writeable = False
    y, saved = bnext.batch_norm_forward(x, parameters[0], parameters[1])
    assert_is_forward(y, x, parameters[0], parameters[1])
    assert y.flags.writeable
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved, parameters[0]), dy, x)
    assert bnext.normalize(x, parameters[2], parameters[3]).flags.writeable


def test_the_native_byte_order_may_be_spelled_out(rng):
    """As arrays of h5py have it."""
    x = rng.normal(size=(6, 5)).astype(np.float32)
    native = np.dtype(np.float32).newbyteorder("<" if sys.byteorder == "little" else ">")
    assert native.byteorder != "="
    weight = np.ones(5, native)
    y, _ = bnext.batch_norm_forward(x.astype(native), weight)
    np.testing.assert_array_equal(y, bnext.batch_norm_forward(x)[0])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("memory", [Memory(steps={0: 3}), Memory(steps={0: -2}), Memory(offset=1)])
def test_parameters_may_be_strided(rng, dtype, memory):
    x, dy = rng.normal(size=(2, 6, 19, 5)).astype(dtype)
    weight, bias, mean = rng.normal(size=(3, 19)).astype(dtype)
    var = rng.uniform(0.5, 2, 19).astype(dtype)
    placed = [memory.place(value) for value in (weight, bias, mean, var)]
    y, saved = bnext.batch_norm_forward(x, *placed[:2])
    assert_is_forward(y, x, weight, bias)
    gradients = bnext.batch_norm_backward(dy, x, saved, placed[0])
    assert_are_gradients(gradients, dy, x, weight)
    assert_is_y(bnext.normalize(x, *placed[2:], *placed[:2]), x, mean, var, weight, bias)


@pytest.mark.parametrize("shape", [(4, 0, 3), (0, 7), (3, 5, 0)], ids=str)
def test_empty_output_is_returned_as_it_is(shape, dtype):
    x = np.empty(shape, dtype)
    out = np.empty(shape, dtype)
    y, saved = bnext.batch_norm_forward(x, out=out)
    assert y is out
    dx_out = np.empty(shape, dtype)
    assert bnext.batch_norm_backward(x, x, saved, out=dx_out)[0] is dx_out


def test_subclasses_are_taken_as_the_arrays_they_are(tmp_path, rng, dtype):
    values = rng.normal(size=(9, 4)).astype(dtype)
    mapped = np.memmap(tmp_path / "x", dtype, "w+", shape=values.shape)
    mapped[...] = values
    y, saved = bnext.batch_norm_forward(mapped)
    expected, _ = bnext.batch_norm_forward(values)
    assert_same_bits(np.asarray(y), expected)
    dx, _, _ = bnext.batch_norm_backward(values, mapped, saved)
    assert dx.shape == values.shape


@pytest.mark.parametrize("rank", [2, 10, 31])
def test_ranks(rng, dtype, rank):
    """Few axes have an extent; most of a high rank is ones."""
    shape = [1] * rank
    shape[0], shape[1], shape[-1] = 5, 3, 3 if rank == 2 else 7
    x = rng.normal(size=shape).astype(dtype)
    y, _ = bnext.batch_norm_forward(x)
    assert y.shape == tuple(shape)
    flat = x.reshape(5, 3, -1)
    assert_is_forward(y.reshape(flat.shape), flat)
