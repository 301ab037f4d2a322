"""The pool that results come from: recycling, its limit, threads, forks, the end of the process."""

import gc
import itertools
import os
import pickle
import random
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .operations import everything
from .subprocesses import output_of, run_python

MIB = 1 << 20
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def pool():
    return bnext.show_config(mode="dicts")["pool"]


def address(array):
    return array.__array_interface__["data"][0]


def data(nbytes, seed=0):
    """An input of that many bytes."""
    return np.random.default_rng(seed).standard_normal((nbytes // 64, 16), np.float32)


def result(x):
    return bnext.batch_norm_forward(x)[0]


@pytest.fixture(autouse=True)
def _empty():
    gc.collect()
    bnext.empty_cache()


# --- recycling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [64 << 10, 1 << 20, 2 << 20, 5 << 20, 40 << 20])
def test_the_memory_of_a_dead_result_is_used_again(nbytes):
    x = data(nbytes)
    y = result(x)
    expected, first, before = y.copy(), address(y), pool()
    for _ in range(5):
        del y
        y = result(x)
        assert address(y) == first
        assert_same_bits(y, expected)
    assert pool()["hits"] == before["hits"] + 5
    assert pool()["misses"] == before["misses"]


def test_all_results_of_large_inputs_are_from_the_pool(rng, dtype):
    x, dy = rng.standard_normal((2, 16, 8, 64, 64)).astype(dtype)
    before = pool()["in_use_bytes"]
    y, saved = bnext.batch_norm_forward(x)
    dx, _, _ = bnext.batch_norm_backward(dy, x, saved)
    inferred = bnext.normalize(x, saved.mean, saved.var)
    assert pool()["in_use_bytes"] - before >= 3 * x.nbytes
    del y, dx, inferred
    assert pool()["in_use_bytes"] == before


def test_copies_of_inputs_go_back_to_it(rng):
    x = rng.standard_normal((16, 128, 7, 18)).astype(np.float32)[..., ::2]
    before = pool()
    result(x)
    after = pool()
    assert after["in_use_bytes"] == before["in_use_bytes"]
    assert after["misses"] + after["hits"] == before["misses"] + before["hits"] + 2


def test_sizes_that_are_nearly_the_same_share_blocks():
    first = result(data(32 * MIB - 4096))
    where = address(first)
    del first
    assert address(result(data(31 * MIB))) == where
    assert address(result(data(24 * MIB))) != where


@pytest.mark.parametrize("nbytes", [65 << 10, 333333, 1 << 20, 2100000, 17 << 20, 33333333])
def test_little_more_is_taken_than_asked_for(nbytes):
    before = pool()["in_use_bytes"]
    y = result(data(nbytes))
    assert y.nbytes <= pool()["in_use_bytes"] - before <= max(y.nbytes * 9 / 8 + 1, 72 << 10)


def test_small_results_do_not_come_from_it():
    before = pool()
    for nbytes in (0, 128, 4096, 60000):
        result(data(nbytes))
    assert pool() == before


def test_arrays_of_others_do_not_come_from_it():
    x, before = data(4 * MIB), pool()["in_use_bytes"]
    y = result(x)
    taken = pool()["in_use_bytes"] - before
    with pytest.raises(ValueError, match="weight"):
        bnext.batch_norm_forward(x, np.ones(3, np.float32))
    others = [np.empty(4 * MIB, np.uint8), np.zeros(MIB), y.copy(), y + 1]
    assert pool()["in_use_bytes"] == before + taken
    del others


def test_large_blocks_begin_on_huge_pages_and_all_on_cache_lines():
    alive = []
    for nbytes in (64 << 10, 100000, MIB, 2 * MIB, 3 * MIB, 30 * MIB, 2 * MIB, 64 << 10):
        alive.append(result(data(nbytes)))
        assert address(alive[-1]) % (2 * MIB if nbytes >= 2 * MIB else 4096) == 0


# --- the arrays are ordinary ----------------------------------------------------------------------


def test_results_are_arrays_like_any_other(rng):
    values = rng.standard_normal((8, 16, 40, 40)).astype(np.float32)
    for order in ("C", "F"):
        y = result(np.asarray(values, order=order))
        assert type(y) is np.ndarray
        assert y.base is None
        assert y.flags.owndata
        assert y.flags.writeable
        assert y.flags.c_contiguous == (order == "C")
        assert y.flags.f_contiguous == (order == "F")
        y[...] = 3
        assert (y == 3).all()
    last = result(values.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2))
    assert last.transpose(0, 2, 3, 1).flags.c_contiguous
    assert_same_bits(pickle.loads(pickle.dumps(last)), last)


@pytest.mark.parametrize("elements", [0, 1, 1000, MIB, 3 * MIB])
def test_results_can_be_resized(elements):
    x = data(4 * MIB)
    y, before = result(x), pool()["in_use_bytes"]
    expected = np.zeros(max(elements, x.size), np.float32)
    expected[: x.size] = y.reshape(-1)
    y.resize(elements, refcheck=False)
    assert_same_bits(y, expected[:elements])
    assert (pool()["in_use_bytes"] < before) == (elements < MIB)
    assert (pool()["in_use_bytes"] > before) == (elements > MIB)


def test_profiles_of_memory_have_them():
    x = data(8 * MIB)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        y = result(x)
        during, _ = tracemalloc.get_traced_memory()
        del y
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert during - before >= 8 * MIB
    assert after - before < MIB


def test_views_keep_the_memory():
    x = data(4 * MIB)
    y = result(x)
    where, expected, view = address(y), y[1:].copy(), y[1:]
    shared = memoryview(y[::2])
    del y
    others = [result(x) for _ in range(4)]
    assert where not in map(address, others)
    assert_same_bits(view, expected)
    del view, others
    assert where not in map(address, [result(x) for _ in range(4)])
    shared.release()
    gc.collect()
    assert where in map(address, [result(x) for _ in range(8)])


def test_no_live_array_is_overlapped(rng):
    """Results of a chain of calls, of random lives, each filled with a value of its own."""
    choose = random.Random(7)
    sizes = [64 << 10, 72 << 10, 200000, MIB, 2 * MIB, 3 * MIB]
    inputs = {size: data(size) for size in sizes}
    alive = {}
    for number in range(600):
        size = choose.choice(sizes)
        x = inputs[size]
        if choose.random() < 0.3 and alive:  # the result of a result
            x = choose.choice(list(alive.values()))
        y = result(x)
        assert not np.may_share_memory(x, y)
        y[...] = number
        alive[number] = y
        while len(alive) > choose.randint(1, 12):
            key = choose.choice(list(alive))
            assert (alive.pop(key) == key).all()
    spans = sorted((address(y), address(y) + y.nbytes) for y in alive.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


# --- the limit ------------------------------------------------------------------------------------


def test_the_limit_is_kept_and_the_oldest_go_first():
    program = """
        import numpy as np
        import bnext

        def pool():
            return bnext.show_config(mode="dicts")["pool"]

        def result(mib):
            return bnext.batch_norm_forward(np.ones((mib << 14, 16), np.float32))[0]

        def address(y):
            return y.__array_interface__["data"][0]

        assert pool()["limit_bytes"] == 8 << 20
        small = result(1)
        kept = address(small)
        alive = [result(2) for _ in range(9)]
        assert pool()["in_use_bytes"] == 19 << 20
        del small
        assert pool()["cached_bytes"] == 1 << 20
        addresses = [address(y) for y in alive]
        while alive:
            del alive[0]
            assert pool()["cached_bytes"] <= 8 << 20
        assert pool()["cached_bytes"] == 8 << 20
        huge = result(9)  # larger than the limit: is not kept, and pushes nothing out
        del huge
        assert pool()["cached_bytes"] == 8 << 20
        before = pool()
        alive = [result(2) for _ in range(4)]
        assert {address(y) for y in alive} == set(addresses[-4:])
        assert pool()["hits"] == before["hits"] + 4
        result(1)
        assert pool()["misses"] == before["misses"] + 1  # the one of 1 MiB was the oldest
        bnext._core.pool_set_limit(3 << 20)
        del alive
        assert pool()["cached_bytes"] <= 3 << 20
        print("done")
    """
    assert output_of(program, BNEXT_POOL_LIMIT="8M") == "done"


def test_no_limit_means_nothing_is_kept():
    program = """
        import numpy as np
        import bnext

        x = np.ones((1 << 16, 16), np.float32)
        for _ in range(10):
            y, _ = bnext.batch_norm_forward(x)
        del y
        print(sorted(bnext.show_config(mode="dicts")["pool"].items()))
    """
    printed = output_of(program, BNEXT_POOL_LIMIT="0")
    figures = {"limit_bytes": 0, "cached_bytes": 0, "in_use_bytes": 0, "hits": 0, "misses": 10}
    assert printed == str(sorted(figures.items()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("300000000", 300000000), ("64K", 65536), ("512M", 512 << 20), ("2g", 2 << 30)],
)
def test_the_environment_gives_the_limit(text, expected):
    program = "import bnext; print(bnext.show_config(mode='dicts')['pool']['limit_bytes'])"
    assert output_of(program, BNEXT_POOL_LIMIT=text) == str(expected)


def test_the_usual_limit():
    program = "import bnext; print(bnext.show_config(mode='dicts')['pool']['limit_bytes'])"
    assert 0 < int(output_of(program, BNEXT_POOL_LIMIT=None)) <= 1 << 30
    assert output_of(program, BNEXT_POOL_LIMIT="") == output_of(program, BNEXT_POOL_LIMIT=None)


@pytest.mark.parametrize("text", ["lots", "-1", "1.5G", "1 G", "1T", "G", "9" * 30, "9" * 18 + "G"])
def test_what_is_no_limit_is_an_import_error(text):
    failed = run_python("import bnext", BNEXT_POOL_LIMIT=text)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: BNEXT_POOL_LIMIT: expected a number of bytes, such as 0, 300000000, 512M or "
        f"2G, got {text!r}"
    )


def test_the_cache_can_be_emptied(rng):
    x = data(4 * MIB)
    alive = result(x)
    expected = alive.copy()
    dead = [result(x) for _ in range(5)]
    before = pool()["in_use_bytes"]
    del dead
    assert pool()["cached_bytes"] == 20 * MIB
    assert bnext.empty_cache() is None
    assert pool()["cached_bytes"] == 0
    assert pool()["in_use_bytes"] == before - 20 * MIB
    assert_same_bits(alive, expected)
    assert_same_bits(result(x), expected)
    bnext.empty_cache()
    bnext.empty_cache()


RESIDENT = """
    import numpy as np
    import bnext

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    x = np.ones((1 << 18, 16), np.float32)  # 16 MiB
    other = np.ones((1 << 13, 16), np.float32)  # 512 KiB
    bnext.batch_norm_forward(x)
    before = resident()
"""


@needs_linux
def test_memory_that_is_given_back_is_the_systems():
    program = (
        RESIDENT
        + """
    alive = [bnext.batch_norm_forward(x)[0] for _ in range(8)]
    assert resident() - before > 7 * x.nbytes * 0.9
    del alive
    assert resident() - before > 7 * x.nbytes * 0.9
    bnext.empty_cache()
    assert resident() - before < 2 * x.nbytes
    print("done")
    """
    )
    assert output_of(program) == "done"


@needs_linux
@pytest.mark.parametrize("limit", ["0", "1M", None])
def test_thousands_of_calls_take_no_more_memory(limit):
    program = (
        RESIDENT
        + """
    def calls(number):
        for _ in range(number):
            y, saved = bnext.batch_norm_forward(other)
            bnext.batch_norm_backward(y, other, saved)
            bnext.normalize(other[::2], saved.mean, saved.var)
        for _ in range(20):
            bnext.batch_norm_forward(x)

    calls(300)
    before = resident()
    calls(3000)
    assert resident() - before < 4 << 20, resident() - before
    pool = bnext.show_config(mode="dicts")["pool"]
    assert pool["in_use_bytes"] <= 1 << 20, pool
    assert pool["cached_bytes"] <= pool["limit_bytes"], pool
    print("done")
    """
    )
    assert output_of(program, BNEXT_POOL_LIMIT=limit) == "done"


@needs_linux
def test_what_is_kept_is_given_up_before_memory_is_lacking():
    program = """
        import resource
        import numpy as np
        import bnext

        def address_space():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[0]) * 4096

        def pool():
            return bnext.show_config(mode="dicts")["pool"]

        bnext.set_num_threads(1)
        large, small = (np.ones((mib << 14, 16), np.float32) for mib in (64, 32))
        for _ in range(2):
            kept = [bnext.batch_norm_forward(small)[0] for _ in range(3)]
            del kept
        assert pool()["cached_bytes"] == 96 << 20
        most = address_space() + (40 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        y, _ = bnext.batch_norm_forward(large)
        assert (y == 0).all()
        assert pool()["cached_bytes"] == 0
        for _ in range(2):
            try:
                z, _ = bnext.batch_norm_forward(large), bnext.batch_norm_forward(large)
            except MemoryError as error:
                assert "64.0 MiB" in str(error), error
            else:
                raise AssertionError("there was memory")
        assert pool()["in_use_bytes"] == 64 << 20
        bnext.empty_cache()
        before = pool()
        np.empty(1 << 20, np.uint8)  # is NumPy's own again
        assert pool() == before
        del y
        assert (bnext.batch_norm_forward(large)[0] == 0).all()
        print("done")
    """
    assert output_of(program) == "done"


# --- threads --------------------------------------------------------------------------------------


def test_many_threads_at_once(rng):
    shapes = [(64, 8, 12, 12), (40, 8, 60, 60), (1024, 33), (4099, 67)]
    problems = [rng.standard_normal((2, *shape)).astype(np.float32) for shape in shapes]
    expected = [everything(x, dy) for x, dy in problems]
    barrier = threading.Barrier(8)

    def work(seed):
        choose = random.Random(seed)
        alive = []
        barrier.wait(30)
        for _ in range(30):
            number = choose.randrange(len(problems))
            alive.append((number, everything(*problems[number])))
            if choose.random() < 0.1:
                bnext.empty_cache()
            while len(alive) > choose.randint(0, 5):
                number, results = alive.pop(choose.randrange(len(alive)))
                for name, value in expected[number].items():
                    assert_same_bits(results[name], value, name)
        return alive  # to die in the main thread

    before = pool()["in_use_bytes"]
    with ThreadPoolExecutor(8) as executor:
        leftovers = list(executor.map(work, range(8)))
    for number, results in (item for alive in leftovers for item in alive):
        for name, value in expected[number].items():
            assert_same_bits(results[name], value, name)
    del leftovers, results
    gc.collect()
    figures = pool()
    assert figures["in_use_bytes"] == before
    assert figures["cached_bytes"] <= figures["limit_bytes"]


def test_results_may_die_in_another_thread():
    x, before = data(MIB), pool()["in_use_bytes"]
    alive = [result(x) for _ in range(10)]
    where = {address(y) for y in alive}
    thread = threading.Thread(target=alive.clear)
    thread.start()
    thread.join()
    assert pool()["in_use_bytes"] == before
    assert {address(y) for y in [result(x) for _ in range(10)]} == where


# --- forks ----------------------------------------------------------------------------------------

FORK = """
    import os, signal, threading, warnings
    import numpy as np
    import bnext

    warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads: the subject
    x = np.random.default_rng(0).standard_normal((1 << 15, 16), np.float32)  # 2 MiB
    expected = bnext.batch_norm_forward(x)[0].tobytes()
    stop = threading.Event()

    def allocate():
        while not stop.is_set():
            alive = [bnext.batch_norm_forward(x)[0] for _ in range(3)]
            del alive
            bnext.empty_cache()

    def in_child():
        signal.alarm(20)  # rather than hang
        pool = bnext.show_config(mode="dicts")["pool"]
        assert pool["cached_bytes"] == 0, pool
        for _ in range(4):
            y, _ = bnext.batch_norm_forward(x)
            assert y.tobytes() == expected
            del y
        assert bnext.show_config(mode="dicts")["pool"]["cached_bytes"] >= x.nbytes
        assert old.tobytes() == expected

    old, _ = bnext.batch_norm_forward(x)
    threads = [threading.Thread(target=allocate) for _ in range(3)]
    for thread in threads:
        thread.start()
    failures = 0
    for _ in range(40):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                in_child()
                status = 0
            finally:
                os._exit(status)
        failures += os.waitpid(child, 0)[1] != 0
        assert bnext.batch_norm_forward(x)[0].tobytes() == expected
    stop.set()
    for thread in threads:
        thread.join()
    print("failures:", failures)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_while_other_threads_allocate():
    assert output_of(FORK, timeout=100) == "failures: 0"


# --- the end of the process -----------------------------------------------------------------------

ENDS = {
    "a global": "kept = result()",
    "a cycle": "class Loop: pass\nloop = Loop(); loop.self, loop.y = loop, result()",
    "a module's": "import types, sys\nsys.modules['late'] = late = types.ModuleType('late')\n"
    "late.y = result()",
    "at exit": "import atexit\natexit.register(lambda: print((result() * 0).sum()))",
    "a builtin": "import builtins\nbuiltins.kept = [result()]",
    "a finalizer": "class Last:\n    def __del__(self, result=result): self.y = result()\n"
    "last = Last()",
    "after removal": "kept = result()\nfor name in [n for n in sys.modules if 'bnext' in n]:\n"
    "    del sys.modules[name]\ndel bnext",
    "a daemon thread": "import threading, time\nstarted = threading.Event()\ndef work():\n"
    "    alive = []\n    while True:\n        alive.append(result())\n        del alive[:-3]\n"
    "        started.set()\nthreading.Thread(target=work, daemon=True).start()\nstarted.wait()",
    "a thread's local": "import threading\nlocal = threading.local()\nlocal.y = result()",
}


@pytest.mark.parametrize("what", ENDS)
def test_results_may_outlive_the_interpreter(what):
    program = (
        "import sys\nimport numpy as np\nimport bnext\n"
        "x = np.ones((1 << 16, 16), np.float32)\n"
        "def result(forward=bnext.batch_norm_forward, x=x): return forward(x)[0]\n"
        "for _ in range(3): result()\n" + ENDS[what] + "\nprint('done', flush=True)\n"
    )
    expected = "done\n0.0" if what == "at exit" else "done"
    assert output_of(program) == expected
