"""The pool over the life of a process: its limit, lack of memory, forks, the end."""

import os
import sys

import pytest

from .limits import SOAK
from .subprocesses import output_of, run_python

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

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
        + f"""
    SOAK = {SOAK}
    """
        + """
    def calls(number):
        for _ in range(number):
            y, saved = bnext.batch_norm_forward(other)
            bnext.batch_norm_backward(y, other, saved)
            bnext.normalize(other[::2], saved.mean, saved.var)
        for _ in range(20):
            bnext.batch_norm_forward(x)

    bnext.set_num_threads(1)  # a team would wait for cores that others have
    calls(300)
    before = resident()
    calls(500 * SOAK)
    assert resident() - before < 2 << 20, resident() - before
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
        assert pool()["cached_bytes"] < 1 << 20  # the call's own arrays
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
    assert output_of(FORK) == "failures: 0"


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
