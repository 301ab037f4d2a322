"""Calls of norms of examples by the emulated kernels: bits, memory, launches."""

import itertools
import re

import numpy as np
import pytest

import bnext

from ..compare import assert_same_bits
from ..fake_cuda import Array, InterfaceArray
from ..norms import (
    CENTERED,
    DATA,
    EVERY_NORM,
    NORMS,
    Cells,
    Rows,
    assert_all_same_bits,
    backward,
    drawn,
    forward,
)
from .norms import CELLS, HERE, MODULE
from .there import There, launches_of

pytestmark = pytest.mark.usefixtures("emulated")
F4 = np.float32


@DATA
@EVERY_NORM
def test_parameters_may_be_absent(rng, kind, dtype):
    inputs = drawn(rng, *NORMS[kind], dtype)
    inputs.weight[...], inputs.bias[...] = 1, 0
    absent = HERE.both(inputs._replace(weight=None, bias=None))
    assert_all_same_bits(HERE.bits(absent), HERE.bits(HERE.both(inputs)))


@CENTERED
@DATA
def test_the_same_bits_every_time(rng, dtype, centered):
    for shape in ((150, 64), (70, 260), (2, 4104)):
        inputs = drawn(rng, Rows(1, centered), shape, dtype)
        first, *others = (HERE.bits(HERE.both(inputs)) for _ in range(3))
        for other in others:
            assert_all_same_bits(other, first)


@pytest.mark.parametrize("make", [Array, InterfaceArray], ids=["dlpack", "interface"])
def test_any_strides_and_out_of_rows(make, rng):
    """Single values are not summed in the order of units."""
    inputs, where = drawn(rng, Rows(), (6, 5, 8)), There(make)
    expected, x = HERE.both(inputs).arrays, inputs.x
    padded = np.zeros((6, 5, 13), F4)
    padded[..., 2:10] = x  # rows that begin at no unit
    apart = np.zeros((30, 24), F4)
    apart[:, :8] = x.reshape(30, 8)
    others = {"dy": np.asfortranarray(inputs.dy), "weight": inputs.weight[::-1].copy()[::-1]}
    for other in (np.asfortranarray(x), padded[..., 2:10], apart[:, :8].reshape(x.shape),
                  x[:, ::-1].copy()[:, ::-1]):  # fmt: skip
        found = where.both(inputs._replace(x=other, **others)).arrays
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-6)
    for out in (np.empty_like(x), padded[..., 4:12], np.asfortranarray(x)):
        out, given = where.put(out), inputs.mapped(where.put)
        y, saved = forward(given, out=out)
        assert y is out
        np.testing.assert_allclose(y.values, expected["y"], rtol=1e-5, atol=2e-6)
        own = where.put(np.empty_like(out.values))
        dx, *_ = backward(given, saved, out=own)
        assert dx is own
        np.testing.assert_allclose(dx.values, expected["dx"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_out_of_cells(rng, layout):
    inputs = drawn(rng, Cells(3), (3, 12, 7, 9), layout=layout)
    plain, given = HERE.both(inputs), inputs.mapped(HERE.put)
    y_into, dx_into = (HERE.put(np.full_like(inputs.x, np.nan)) for _ in range(2))
    y, saved = forward(given, out=y_into)
    dx, *_ = backward(given, saved, out=dx_into)
    assert y is y_into
    assert dx is dx_into
    assert_same_bits(y.values, plain.y)
    assert_same_bits(dx.values, plain.dx)


def test_values_between_rows_are_left_alone(rng):
    x = rng.standard_normal((6, 8)).astype(F4)
    out = np.full((6, 12), 7, F4)
    bnext.layer_norm_forward(HERE.put(x), 8, out=HERE.put(out[:, :8]))
    assert (out[:, 8:] == 7).all()
    assert np.array_equal(out[:, :8], bnext.layer_norm_forward(HERE.put(x), 8)[0].values)


def is_small(shape, groups, layout, held=16):
    """Whether a team of up to 256 threads holds a slab in registers."""
    values, cells = int(np.prod(shape[2:])), shape[1] // groups
    lanes = min(32, 1 << max(values - 1, 0).bit_length())
    rounds = -(-cells // (256 // lanes)) * -(-values // lanes)
    return rounds <= held and (values == 1 or layout != "interleaved")


def test_small_slabs_take_one_launch(rng):
    """And a second one for the gradients of parameters."""
    for (shape, groups), layout in itertools.product(CELLS, ("planar", "interleaved", "examples")):
        inputs = drawn(rng, Cells(groups), shape, layout=layout)
        requests = launches_of(MODULE, lambda inputs=inputs: HERE.both(inputs))
        launches = [what for what, _ in requests].count("run")
        assert (launches == 3) == (is_small(shape, groups, layout) or groups == shape[1])


def test_nothing_waits_for_the_device(rng):
    """A call only enqueues, on one stream, and takes no memory but its caller's."""
    for layout, groups in itertools.product(("planar", "interleaved"), (3, 12)):
        inputs = drawn(rng, Cells(groups), (3, 12, 4, 8), layout=layout)
        HERE.both(inputs)
        requests = launches_of(MODULE, lambda inputs=inputs: HERE.both(inputs))
        assert {what for what, _ in requests} <= {"prepare", "zero", "run"}


def test_work_goes_to_the_stream_of_x(rng):
    inputs = drawn(rng, Rows(), (40, 24)).mapped(InterfaceArray)
    inputs.x.stream = 7
    requests = launches_of(MODULE, lambda: backward(inputs, forward(inputs)[1]))
    assert [stream for what, stream in requests if what == "run"] == [7] * 3
    assert {what for what, _ in requests} == {"prepare", "run"}  # nothing waits
    _, saved = forward(inputs)
    inputs.dy.stream = 8
    with pytest.raises(ValueError, match=r"^dy: expected an array on the stream of x \(7\), got"):
        backward(inputs, saved)


def test_a_kernel_that_fails_is_told_by_the_next_call(rng):
    x = There(Array, 5).put(rng.standard_normal((4, 8)).astype(F4))
    _, saved = bnext.rms_norm_forward(x, 8)  # its kernel fails
    with pytest.raises(RuntimeError) as caught:
        bnext.rms_norm_backward(x, x, saved)
    assert re.fullmatch(
        r"RMS normalization backward \(kernel differentiate_row, float32, unit 4; rows of 4 "
        r"threads, grid \d+, block 128, shared bytes \d+; device 5 \(emulation of a GPU that "
        r"fails\)\): emulated CUDA: run: a kernel has failed; a kernel launched before has "
        r"failed, of bnext or of another library \(BNEXT_CUDA_SYNC=1 names it if it is one of "
        r"bnext\); .*; the process can use this device no more",
        str(caught.value),
    )
