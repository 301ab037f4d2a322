"""The same bits: for any number of threads, any schedule, any instruction set, any repetition."""

import numpy as np
import pytest

import bnext

from .cases import FEW, Memory
from .compare import assert_are_gradients, assert_is_forward, assert_same_bits
from .conftest import AVAILABLE_ISAS, SCHEDULES, THREADS
from .limits import SOAK
from .operations import everything

# Instruction sets that round a * b + c once. Without fused multiply-add (the baseline of x86-64)
# results differ in the last bit.
FUSED = [isa for isa in AVAILABLE_ISAS if isa != "baseline"]


def inputs(rng, case, dtype):
    return (
        case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype),
    )  # fmt: skip


def assert_all_same_bits(actual, expected, where):
    for name, value in expected.items():
        assert_same_bits(actual[name], value, f"{name} ({where})")


@pytest.mark.usefixtures("isa", "restore_threads", "fixed_team")
def test_same_bits_for_any_number_of_threads_and_any_schedule(rng, case, dtype):
    arguments = inputs(rng, case, dtype)
    bnext.set_num_threads(1)
    expected = everything(*arguments, channel_axis=case.channel_axis)
    for i, schedule in enumerate((*SCHEDULES, None)):
        bnext._core.force_schedule(schedule)
        # Half of the numbers with each forced schedule, all of them with some.
        for threads in THREADS[i % 2 :: 2] if schedule and SOAK == 1 else THREADS:
            bnext.set_num_threads(threads)
            actual = everything(*arguments, channel_axis=case.channel_axis)
            assert_all_same_bits(actual, expected, f"{schedule}, {threads} threads")


@pytest.mark.skipif(len(FUSED) < 2, reason="needs two instruction sets with fused multiply-add")
@pytest.mark.usefixtures("restore_threads")
def test_same_bits_for_any_instruction_set(rng, case, dtype):
    bnext.set_num_threads(3)
    arguments = inputs(rng, case, dtype)
    results = []
    for isa in FUSED:
        with bnext.use_isa(isa):
            results.append(everything(*arguments, channel_axis=case.channel_axis))
            assert bnext._core.last_isa() == isa
    for isa, actual in zip(FUSED[1:], results[1:], strict=True):
        assert_all_same_bits(actual, results[0], f"{isa}, not {FUSED[0]}")


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("case", FEW, ids=str)
def test_same_bits_again(rng, case, dtype):
    arguments = inputs(rng, case, dtype)
    expected = everything(*arguments)
    for repetition in range(5):
        assert_all_same_bits(everything(*arguments), expected, f"repetition {repetition}")


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    "shape", [(37, 19), (37, 19, 2, 2), (5, 19, 7, 7), (3, 2, 101, 97)], ids=str
)
def test_same_bits_wherever_the_arrays_lie(rng, dtype, shape):
    """Allocators return other addresses in every run; results must not depend on them."""
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    expected = everything(x, dy)
    for offset in (1, 4, 8, 28, 60):
        memory = Memory(offset=offset)
        actual = everything(memory.place(x), memory.place(dy))
        assert_all_same_bits(actual, expected, f"{offset} bytes off")


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
    expected = everything(x, dy, weight, bias)
    kept = np.arange(0, case.channels, 2)
    changed_x, changed_dy = case.memory.place(x * 3 + 1), case.memory.place(dy - 2)
    changed_x[:, kept], changed_dy[:, kept] = x[:, kept], dy[:, kept]
    actual = everything(changed_x, changed_dy, weight, bias)
    for name, value in expected.items():
        axis = 1 if value.ndim > 1 else 0
        assert_same_bits(actual[name].take(kept, axis), value.take(kept, axis), name)
