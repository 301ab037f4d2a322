"""The same bits: for any number of threads, any schedule, any instruction set, any repetition."""

import functools

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext import _core

from . import conftest, epilogues, operations
from .cases import FEW, Case, Memory, named
from .compare import assert_are_gradients, assert_is_forward, assert_same_bits
from .everywhere import FUSED, OF_ONE, assert_same_bits_everywhere
from .sixteen import name_of

ACTIVATED = named(
    "NC-many-rows", "NCHW-many-chunks", "NCHW-2x2-many-strips", "channels-3-to-20"
)  # fmt: skip
ACTIVATED.append(Case("interleaved-chunks", (5, 31, 33, 17), channel_axis=-1))
BOTH = [np.float32, np.float64]
NAMES = ["relu", "leaky_relu", "gelu", None]

# An activation, the dtype, whether there is a residual; PLAIN calls have neither.
PLAIN = "plain"
CALLS = [
    *((PLAIN, dtype, False, case) for dtype in BOTH for case in conftest.CASES),
    *((name, dtype, residual, case) for case in ACTIVATED for name, dtype, residual in (
        ("relu", np.float32, True), ("relu", np.float32, False), ("gelu", np.float32, True),
        ("leaky_relu", np.float64, False), ("relu", ml_dtypes.bfloat16, True),
        (None, np.float32, True),
    )),
]  # fmt: skip
EACH = pytest.mark.parametrize(
    ("name", "dtype", "residual", "case"), CALLS,
    ids=[f"{name}-{name_of(dtype)}{'-residual' * residual}-{case}"
         for name, dtype, residual, case in CALLS],
)  # fmt: skip


def inputs(rng, case, dtype):
    return (
        case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype),
    )  # fmt: skip


def drawn(rng, case, dtype, name, residual):
    """The arrays of a call, and what it returns of such arrays: all results, by name."""
    if name == PLAIN:
        given = inputs(rng, case, dtype)
        axis = case.channel_axis
        return given, lambda *arrays: operations.everything(*arrays, channel_axis=axis)
    of_call = epilogues.drawn(rng, case, dtype, name, residual)
    given = of_call.x, of_call.dy, of_call.residual, of_call.weight, of_call.bias

    def call(x, dy, residual, weight, bias):
        return activated(of_call._replace(
            x=x, dy=dy, residual=residual, weight=weight, bias=bias
        ))  # fmt: skip

    return given, call


def activated(given):
    """Results of both passes, and y and gradients of given statistics."""
    results = epilogues.both_passes(given)
    axis = given.case.channel_axis
    statistics = bnext.moments(given.x, channel_axis=axis)
    epilogue = (given.residual, given.name, given.options["negative_slope"])
    y, saved = _core.normalize(
        given.x, statistics.mean + 0.25, statistics.var + 0.5, given.weight, given.bias, 1e-5,
        axis, None, epilogue=epilogue,
    )  # fmt: skip
    gradients = bnext.batch_norm_backward(
        given.dy, given.x, saved, given.weight, **given.again(saved)
    )
    found = (*results, y, *gradients)
    return {f"result {n}": each for n, each in enumerate(found) if each is not None}


def assert_all_same_bits(actual, expected, where):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(actual[name], value, f"{name} ({where})")


@pytest.mark.usefixtures("isa", "restore_threads", "fixed_team")
@EACH
def test_same_bits_for_any_number_of_threads_and_any_schedule(rng, case, dtype, name, residual):
    arrays, call = drawn(rng, case, dtype, name, residual)
    assert_same_bits_everywhere(functools.partial(call, *arrays), OF_ONE)


@pytest.mark.skipif(len(FUSED) < 2, reason="needs two instruction sets with fused multiply-add")
@pytest.mark.usefixtures("restore_threads")
@EACH
def test_same_bits_for_any_instruction_set(rng, case, dtype, name, residual):
    arrays, call = drawn(rng, case, dtype, name, residual)
    isas = []

    def noted():
        results = call(*arrays)
        isas.append(bnext._core.last_isa())
        return results

    assert_same_bits_everywhere(noted, [(3, None, isa) for isa in FUSED])
    assert isas == FUSED


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("case", FEW, ids=str)
def test_same_bits_again(rng, case, dtype):
    arguments = inputs(rng, case, dtype)
    expected = operations.everything(*arguments)
    for repetition in range(5):
        actual = operations.everything(*arguments)
        assert_all_same_bits(actual, expected, f"repetition {repetition}")


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("name", [PLAIN, *NAMES])
@pytest.mark.parametrize(
    "shape", [(37, 19), (37, 19, 2, 2), (5, 19, 7, 7), (3, 2, 101, 97)], ids=str
)
def test_same_bits_wherever_the_arrays_lie(rng, dtype, shape, name):
    """Allocators return other addresses in every run; results must not depend on them."""
    arrays, call = drawn(rng, Case("moved", shape), dtype, name, True)
    expected = call(*arrays)
    for offset in (1, 4, 8, 28, 60):
        place = Memory(offset=offset).place
        moved = [place(each) if each.ndim > 1 else each for each in arrays]
        assert_all_same_bits(call(*moved), expected, f"{offset} bytes off")


@pytest.mark.usefixtures("runtime", "schedule")
@pytest.mark.parametrize("case", FEW, ids=str)
def test_every_schedule_agrees_with_the_definition(rng, case, dtype):
    x, dy, weight, bias = inputs(rng, case, dtype)
    y, saved = bnext.batch_norm_forward(x, weight, bias, out=case.poisoned(dtype))
    assert_is_forward(y, x, weight, bias)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight, out=case.poisoned(dtype))
    assert_are_gradients(gradients, dy, x, weight)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", FEW, ids=str)
def test_results_of_channels_do_not_depend_on_their_neighbours(rng, case, dtype):
    """A channel computed among others and in a copy with other values beside it: the same bits."""
    x, dy, weight, bias = inputs(rng, case, dtype)
    expected = operations.everything(x, dy, weight, bias)
    kept = np.arange(0, case.channels, 2)
    changed_x, changed_dy = case.memory.place(x * 3 + 1), case.memory.place(dy - 2)
    changed_x[:, kept], changed_dy[:, kept] = x[:, kept], dy[:, kept]
    actual = operations.everything(changed_x, changed_dy, weight, bias)
    for name, value in expected.items():
        axis = 1 if value.ndim > 1 else 0
        assert_same_bits(actual[name].take(kept, axis), value.take(kept, axis), name)
