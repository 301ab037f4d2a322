"""Random shapes, axes, strides, dtypes, instruction sets and threads against the definition."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import bnext

from . import reference
from .cases import Case, Memory
from .compare import (
    assert_are_gradients,
    assert_are_moments,
    assert_is_forward,
    assert_same_memory_order,
)
from .conftest import AVAILABLE_ISAS, SCHEDULES

THOROUGH = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
GUARD = -777.0


@st.composite
def memories(draw, rank):
    axes = st.integers(0, rank - 1)
    return Memory(
        order=tuple(draw(st.permutations(range(rank)))),
        steps=draw(st.dictionaries(axes, st.sampled_from([-2, -1, 2, 3]), max_size=2)),
        margins=draw(
            st.dictionaries(axes, st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=2)
        ),
        offset=draw(st.sampled_from([0, 0, 1, 4, 8, 20])),
    )


@st.composite
def small_cases(draw):
    """Up to five axes of up to 40, at least two values in a channel."""
    rank = draw(st.integers(1, 5))
    longest = {1: 40, 2: 40, 3: 20, 4: 8, 5: 5}[rank]
    shape = draw(st.lists(st.integers(1, longest), min_size=rank, max_size=rank))
    channel_axis = draw(st.integers(-rank, rank - 1))
    if math.prod(shape) // shape[channel_axis] < 2:
        shape.append(draw(st.integers(2, 9)))
        channel_axis %= rank
    memory = draw(memories(len(shape)))
    return Case("drawn", tuple(shape), channel_axis, memory)


@st.composite
def environments(draw):
    """Instruction set, threads, schedule."""
    return (
        draw(st.sampled_from(AVAILABLE_ISAS)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([None, *SCHEDULES])),
    )


@pytest.mark.usefixtures("restore_threads")
@THOROUGH
@given(
    case=small_cases(),
    environment=environments(),
    dtype=st.sampled_from([np.float32, np.float64]),
    affine=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_forward_and_backward(case, environment, dtype, affine, seed, data):
    rng = np.random.default_rng(seed)
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight = case.weight(rng, dtype) if affine else None
    bias = case.bias(rng, dtype) if affine else None
    rank = len(case.shape)
    blocks = [data.draw(memories(rank)).allocate(case.shape, dtype, GUARD) for _ in range(2)]
    axis = case.channel_axis
    isa, threads, schedule = environment
    bnext.set_num_threads(threads)
    bnext._core.force_schedule(schedule)
    with bnext.use_isa(isa):
        y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, out=blocks[0][1])
        gradients = bnext.batch_norm_backward(dy, x, saved, weight, out=blocks[1][1])
        fresh, _ = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)

    assert_are_moments(saved, x, channel_axis=axis)
    assert_is_forward(y, x, weight, bias, channel_axis=axis)
    assert_is_forward(fresh, x, weight, bias, channel_axis=axis)
    assert_same_memory_order(fresh, x)
    assert_are_gradients(gradients, dy, x, weight, channel_axis=axis)
    for whole, out in blocks:
        out[...] = GUARD
        assert (whole == GUARD).all()


@THOROUGH
@given(
    case=small_cases(),
    dtype=st.sampled_from([np.float32, np.float64]),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_moments_of_any_parts_merge_to_those_of_the_whole(case, dtype, cuts, seed):
    """Cut along any axis but the channels'."""
    rng = np.random.default_rng(seed)
    x = case.x(rng, dtype)
    axis = next(a for a in range(x.ndim) if a != case.channel_axis % x.ndim)
    places = sorted(round(cut * x.shape[axis]) for cut in cuts)
    parts = np.split(x, places, axis)
    merged = sum(
        (bnext.moments(part, channel_axis=case.channel_axis) for part in parts),
        start=bnext.Moments.empty(case.channels),
    )
    expected = reference.moments(x, case.channel_axis)
    assert merged.count == expected.count
    deviation = np.sqrt(expected.var) + np.abs(expected.mean)
    assert (np.abs(merged.mean - expected.mean) <= 1e-14 * deviation).all()
    np.testing.assert_allclose(merged.m2, expected.m2, rtol=1e-12)


@THOROUGH
@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(lambda s: 0 in s),
    dtype=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
def test_empty_arrays(shape, dtype, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    case = Case("empty", tuple(shape), axis)
    assume(case.count != 1)  # refused in training, with or without channels
    x = np.empty(shape, dtype)
    y, saved = bnext.batch_norm_forward(x, channel_axis=axis)
    dx, dweight, dbias = bnext.batch_norm_backward(x, x, saved)
    assert y.shape == dx.shape == tuple(shape)
    assert dweight.tolist() == dbias.tolist() == [0.0] * shape[axis]
