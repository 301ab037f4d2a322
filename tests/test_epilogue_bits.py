"""Bits of results with an activation: for any number of threads, schedule, repetition and place."""

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext import _core

from .cases import Case, Memory, named
from .compare import assert_same_bits
from .conftest import SCHEDULES, THREADS
from .epilogues import both_passes, drawn
from .optional import import_jax
from .sixteen import name_of
from .test_array_libraries import (
    Producer,
    Small,
    as_jax,
    as_torch,
    from_jax,
    from_nothing,
    from_small,
    from_torch,
)

CASES = named(
    "NC-many-rows", "NCHW-many-chunks", "NCHW-2x2-many-strips", "channels-3-to-20"
)  # fmt: skip
CASES.append(Case("interleaved-chunks", (5, 31, 33, 17), channel_axis=-1))
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
NAMES = pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", None])
CALLS = [
    pytest.param(name, dtype, residual, id=f"{name}-{name_of(dtype)}{'-residual' * residual}")
    for name, dtype, residual in (
        ("relu", np.float32, True), ("relu", np.float32, False), ("gelu", np.float32, True),
        ("leaky_relu", np.float64, False), ("relu", ml_dtypes.bfloat16, True),
        (None, np.float32, True),
    )
]  # fmt: skip
LIBRARIES = {
    "torch": (as_torch, from_torch),
    "jax": (as_jax, from_jax),
    "small": (Small, from_small),
    "producer": (Producer, from_nothing),
}


def everything(inputs):
    """Results of both passes, and y and gradients of given statistics."""
    results = both_passes(inputs)
    statistics = bnext.moments(inputs.x, channel_axis=inputs.case.channel_axis)
    epilogue = (inputs.residual, inputs.name, inputs.options["negative_slope"])
    y, saved = _core.normalize(
        inputs.x, statistics.mean + 0.25, statistics.var + 0.5, inputs.weight, inputs.bias, 1e-5,
        inputs.case.channel_axis, None, epilogue=epilogue,
    )  # fmt: skip
    gradients = bnext.batch_norm_backward(
        inputs.dy, inputs.x, saved, inputs.weight, **inputs.again(saved)
    )
    return (*results, y, *gradients)


def assert_all_same_bits(actual, expected, where):
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one is None) == (other is None)
        if other is not None:
            assert_same_bits(one, other, f"result {number} ({where})")


@pytest.mark.usefixtures("isa", "restore_threads", "fixed_team")
@pytest.mark.parametrize(("name", "dtype", "residual"), CALLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_for_any_number_of_threads_and_any_schedule(rng, case, dtype, name, residual):
    inputs = drawn(rng, case, dtype, name, residual)
    bnext.set_num_threads(1)
    expected = everything(inputs)
    for i, schedule in enumerate((*SCHEDULES, None)):
        _core.force_schedule(schedule)
        for threads in THREADS[i % 2 :: 2] if schedule else (3,):
            bnext.set_num_threads(threads)
            where = f"{schedule}, {threads} threads"
            assert_all_same_bits(everything(inputs), expected, where)


@pytest.mark.usefixtures("runtime")
@NAMES
@pytest.mark.parametrize("shape", [(37, 19), (37, 19, 2, 2), (5, 19, 7, 7)], ids=str)
def test_same_bits_wherever_the_arrays_lie(rng, dtype, shape, name):
    inputs = drawn(rng, Case("moved", shape), dtype, name, True)
    expected = everything(inputs)
    for offset in (1, 4, 28, 60):
        place = Memory(offset=offset).place
        moved = inputs._replace(
            x=place(inputs.x), dy=place(inputs.dy), residual=place(inputs.residual)
        )
        assert_all_same_bits(everything(moved), expected, f"{offset} bytes off")


@RESIDUAL
@NAMES
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
def test_arrays_of_other_libraries_give_the_bits_of_numpy_s(rng, dtype, library, name, residual):
    if library == "jax":
        import_jax()
    convert, back = LIBRARIES[library]
    inputs = drawn(rng, named("NCHW-7x7")[0], dtype, name, residual)
    theirs = inputs._replace(
        **{
            key: convert(getattr(inputs, key))
            for key in ("x", "dy", "residual", "weight", "bias")
            if getattr(inputs, key) is not None
        }
    )
    y, saved = bnext.batch_norm_forward(theirs.x, theirs.weight, theirs.bias, **theirs.options)
    gradients = bnext.batch_norm_backward(
        theirs.dy, theirs.x, saved, theirs.weight, **theirs.again(saved)
    )
    if residual and name is None:
        assert gradients[3] is theirs.dy
        gradients = gradients[:3]
    else:
        assert len(gradients) == 3 + residual
    for actual, expected in zip((y, *gradients), both_passes(inputs), strict=False):
        assert_same_bits(np.asarray(back(actual)), expected)
