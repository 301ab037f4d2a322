"""The same bits for any number of threads, any schedule and any instruction set."""

import bnext

from .compare import assert_same_bits
from .conftest import AVAILABLE_ISAS, SCHEDULES, THREADS
from .limits import SOAK

# Instruction sets that round a * b + c once. Without fused multiply-add (the baseline of x86-64)
# results differ in the last bit.
FUSED = [isa for isa in AVAILABLE_ISAS if isa != "baseline"] or AVAILABLE_ISAS

# (threads, schedule, instruction set): each of them, beside some of the others ...
SOME = (
    *((threads, None, FUSED[0]) for threads in range(1, 6)),
    *((3, schedule, FUSED[0]) for schedule in SCHEDULES),
    *((2, None, isa) for isa in FUSED[1:]),
)
# ... and threads on each instruction set, by schedules in turn as well.
OF_SETS = tuple((threads, None, isa) for isa in FUSED for threads in range(1, 6))
EVERY = OF_SETS + tuple(
    (threads, schedule, isa)
    for i, (schedule, isa) in enumerate((s, isa) for s in SCHEDULES for isa in FUSED)
    for threads in (1, 2, 3, 5)[i % 2 :: 2]
)
# Half of the numbers of threads with each forced schedule, all of them with some; on one set.
OF_ONE = tuple(
    (threads, schedule, None)
    for i, schedule in enumerate((*SCHEDULES, None))
    for threads in (THREADS[i % 2 :: 2] if schedule and SOAK == 1 else THREADS)
)


def assert_same_bits_everywhere(call, runs=SOME, what=""):
    """`call` returns the same arrays, by name, in each of `runs`; None is what is at work.

    Tests with it have the fixture `restore_threads`.
    """
    known = None
    for threads, schedule, isa in runs:
        if threads is not None:
            bnext.set_num_threads(threads)
        bnext._core.force_schedule(schedule)
        with bnext.use_isa(isa or bnext._core.active_isa()):
            got = call()
        known = known or got
        assert got.keys() == known.keys()
        for name, value in known.items():
            where = f"{name} of {what}: {threads} threads, {schedule}, {isa}"
            assert_same_bits(got[name], value, where)


def assert_same_bits_whatever_runs(call):
    """Threads and schedules change no bit, nor do instruction sets with fused multiply-add."""
    for isas in (FUSED, [isa for isa in AVAILABLE_ISAS if isa not in FUSED]):
        in_turn = [
            (THREADS[i], schedule, isa)
            for isa in isas
            for i, schedule in enumerate((None, *SCHEDULES))
        ]
        assert_same_bits_everywhere(call, in_turn)
