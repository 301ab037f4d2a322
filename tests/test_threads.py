"""Python threads, forked processes, and the interpreter lock while a kernel runs."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .everywhere import FUSED
from .operations import everything
from .subprocesses import output_of

SHAPES = [(64, 20), (7, 2011), (5, 50, 7, 7), (3, 5, 67, 71), (2, 17, 31, 33), (501, 33)]


def problems(rng, dtype):
    return [rng.normal(size=(2, *shape)).astype(dtype) for shape in SHAPES]


def all_at_once(tasks, workers=8):
    """The results of the functions `tasks`, which a barrier lets start together."""
    barrier = threading.Barrier(workers)

    def work(mine):
        barrier.wait(30)
        return [task() for task in mine]

    shares = [tasks[i::workers] for i in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(work, shares))
    return [results[i % workers][i // workers] for i in range(len(tasks))]


@pytest.mark.usefixtures("runtime")
def test_many_calls_at_once(rng, dtype):
    arguments = problems(rng, dtype)
    expected = [everything(x, dy) for x, dy in arguments]
    tasks = [lambda x=x, dy=dy: everything(x, dy) for _ in range(12) for x, dy in arguments]
    for number, result in enumerate(all_at_once(tasks)):
        for name, value in expected[number % len(arguments)].items():
            assert_same_bits(result[name], value, name)


@pytest.mark.usefixtures("restore_threads")
def test_settings_may_change_while_others_compute(rng):
    """Bits depend on neither, so that whatever a call meets, its results are the same."""
    arguments = problems(rng, np.float32)
    with bnext.use_isa(FUSED[0]):
        expected = [everything(x, dy) for x, dy in arguments]
        stop = threading.Event()

        def meddle():
            number = 0
            while not stop.is_set():
                number += 1
                bnext.set_num_threads(1 + number % 4)
                with bnext.use_isa(FUSED[number % len(FUSED)]):
                    time.sleep(1e-4)

        meddler = threading.Thread(target=meddle)
        meddler.start()
        try:
            tasks = [lambda x=x, dy=dy: everything(x, dy) for _ in range(8) for x, dy in arguments]
            results = all_at_once(tasks, workers=4)
        finally:
            stop.set()
            meddler.join()
    for number, result in enumerate(results):
        for name, value in expected[number % len(arguments)].items():
            assert_same_bits(result[name], value, name)


@pytest.mark.usefixtures("runtime")
def test_one_saved_in_many_threads(rng):
    x, dy = rng.normal(size=(2, 5, 50, 7, 7)).astype(np.float32)
    _, saved = bnext.batch_norm_forward(x)
    expected = bnext.batch_norm_backward(dy, x, saved)
    for result in all_at_once([lambda: bnext.batch_norm_backward(dy, x, saved)] * 64):
        for actual, value in zip(result, expected, strict=True):
            assert_same_bits(actual, value)


def test_layers_in_threads_of_their_own(rng):
    x, dy = rng.normal(size=(2, 6, 5, 7, 7)).astype(np.float32)

    def train():
        bn = bnext.BatchNorm2d(5)
        for _ in range(10):
            bn(x)
            dx = bn.backward(dy)
        return bn, dx

    (expected, expected_dx), *others = all_at_once([train] * 8)
    for bn, dx in others:
        assert_same_bits(dx, expected_dx)
        for name, value in expected.state_dict().items():
            assert_same_bits(bn.state_dict()[name], value, name)


def test_errors_in_one_thread_are_not_those_of_others(rng):
    x = rng.normal(size=(64, 20)).astype(np.float32)
    expected, _ = bnext.batch_norm_forward(x)

    def right():
        return bnext.batch_norm_forward(x)[0]

    def wrong():
        with pytest.raises(ValueError, match="weight: expected shape"):
            bnext.batch_norm_forward(x, np.ones(3, np.float32))
        return expected

    for y in all_at_once([right, wrong] * 64):
        assert_same_bits(y, expected)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("operation", ["forward", "backward", "moments", "normalize"])
def test_other_threads_run_during_a_call(operation):
    """With the lock held, no other thread could note a time between the start and the end."""
    x = np.zeros((8, 64, 128, 128), np.float32)  # 32 MiB, some milliseconds
    x[:4] = 1
    out = np.zeros_like(x)
    mean, var = np.zeros(64), np.ones(64)
    _, saved = bnext.batch_norm_forward(x)
    calls = {
        "forward": lambda: bnext.batch_norm_forward(x, out=out),
        "backward": lambda: bnext.batch_norm_backward(x, x, saved, out=out),
        "moments": lambda: bnext.moments(x),
        "normalize": lambda: bnext.normalize(x, mean, var, out=out),
    }
    bnext.set_num_threads(1)
    stop, times = threading.Event(), []

    def note():
        while not stop.is_set():
            times.append(time.perf_counter())
            time.sleep(1e-4)

    clock = threading.Thread(target=note)
    clock.start()
    try:
        inside = 0
        for _ in range(200):  # the machine may be busy: one clear sighting is enough
            start = time.perf_counter()
            calls[operation]()
            end = time.perf_counter()
            tenth = (end - start) / 10
            inside = sum(start + tenth < t < end - tenth for t in times[-1000:])
            if inside:
                break
    finally:
        stop.set()
        clock.join()
    assert inside


@pytest.mark.usefixtures("restore_threads")
def test_small_calls_do_not_queue_for_the_lock():
    """Whoever gives it up while another thread is busy gets it back an interval later."""
    x = np.ones((64, 20), np.float32)
    layer = bnext.BatchNorm1d(20)
    stop = threading.Event()

    def be_busy():
        while not stop.is_set():
            pass

    busy = threading.Thread(target=be_busy)
    interval = sys.getswitchinterval()
    busy.start()
    try:
        sys.setswitchinterval(5.0)
        begin = time.perf_counter()
        for _ in range(20):
            layer(x)
            layer.backward(x)
        took = time.perf_counter() - begin
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        busy.join()
    assert took < 50  # and not 40 intervals


FORK = """
    import multiprocessing, warnings
    import numpy as np
    import bnext

    warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads: the subject
    x = np.random.default_rng(0).normal(size=(8, 16, 64, 64)).astype(np.float32)

    def compute():
        bnext.set_num_threads(3)
        y, saved = bnext.batch_norm_forward(x)
        dx, _, _ = bnext.batch_norm_backward(y, x, saved)
        return y.tobytes() + dx.tobytes()

    def child(pipe, generations):
        if generations > 1:
            fork(generations - 1)
        pipe.send_bytes(compute())

    def fork(generations):
        ends = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(ends[1], generations))
        process.start()
        assert ends[0].poll(500), "the child hangs"
        assert ends[0].recv_bytes() == expected
        process.join(500)
        assert process.exitcode == 0

    context = multiprocessing.get_context("fork")
    expected = compute()
    for _ in range(3):
        fork(generations=1)
        assert compute() == expected
    fork(generations=2)
    print("done")
"""


def test_forked_processes_compute_too():
    """OpenMP's threads do not survive a fork; a runtime that waits for them hangs for ever."""
    assert output_of(FORK) == "done"


def test_the_process_ends_while_threads_compute():
    program = """
        import threading
        import numpy as np
        import bnext

        x = np.ones((64, 64, 32, 32), np.float32)

        def work():
            while True:
                bnext.batch_norm_forward(x)

        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        bnext.batch_norm_forward(x)
        print("done")
    """
    assert output_of(program) == "done"
