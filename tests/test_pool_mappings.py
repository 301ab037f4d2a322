"""The pool and the system: how many mappings it takes, what it does at their limit, whose limit of
memory it follows, and how long taking a block is."""

import sys
import textwrap
import uuid
from pathlib import Path

import pytest

from .subprocesses import output_of, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

POOL = textwrap.dedent("""
    import os

    import numpy as np
    import bnext

    KIB, MIB = 1 << 10, 1 << 20
    inputs = {}

    def pool():
        return bnext.show_config(mode="dicts")["pool"]

    def result(nbytes):
        x = inputs.setdefault(nbytes, np.ones((nbytes // 64, 16), np.float32))
        return bnext.batch_norm_forward(x)[0]

    def address(y):
        return y.__array_interface__["data"][0]

    statm = os.open("/proc/self/statm", os.O_RDONLY)  # at the limit there is no memory to open it

    def resident():
        return int(os.pread(statm, 200, 0).split()[1]) * 4096

    def mappings():
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file)

    bnext.set_num_threads(1)
""")


@pytest.mark.parametrize("kib", [64, 200, 1900])
@pytest.mark.parametrize("limit", ["0", "16M", "4G"])
def test_blocks_share_mappings(kib, limit):
    """Every other one of many results dies: memory comes back, and the mappings stay few."""
    number = {64: 4000, 200: 1000, 1900: 400}[kib]
    program = POOL + textwrap.dedent(f"""
        result({kib} * KIB)
        before, memory = mappings(), resident()
        alive = [result({kib} * KIB) for _ in range({number})]
        taken = resident() - memory
        del alive[::2]
        assert len(alive) == {number // 2}
        assert mappings() - before < 120, mappings() - before
        figures = pool()
        expected = min(figures["limit_bytes"], figures["in_use_bytes"])
        assert abs(figures["cached_bytes"] - expected) <= 2 * MIB + {kib} * KIB, figures
        given_back = taken - (resident() - memory)
        lost = taken - figures["in_use_bytes"] - figures["cached_bytes"] - given_back
        assert lost < 0.05 * taken + 8 * MIB, (lost, taken)
        misses = pool()["misses"]
        alive += [result({kib} * KIB) for _ in range({number // 2})]  # the gaps are used again
        assert mappings() - before < 120, mappings() - before
        addresses = {{address(y) for y in alive}}
        assert len(addresses) == {number}
        del alive
        bnext.empty_cache()
        assert pool()["in_use_bytes"] == pool()["cached_bytes"] == 0
        assert resident() - memory < 0.05 * taken + 8 * MIB
        assert mappings() - before < 20, mappings() - before
        print("done")
    """)
    assert output_of(program, BNEXT_POOL_LIMIT=limit, timeout=110) == "done"


def test_memory_of_a_shared_mapping_goes_back_block_by_block():
    program = POOL + textwrap.dedent("""
        alive = [result(MIB) for _ in range(64)]
        most, kept = resident(), alive[5]
        expected = kept.copy()
        del alive
        bnext.empty_cache()
        assert most - resident() > 55 * MIB, most - resident()
        assert pool()["cached_bytes"] == 0
        assert pool()["in_use_bytes"] == MIB
        assert (kept == expected).all()
        before = pool()
        more = [result(MIB) for _ in range(3)]  # what was given back is not a hit
        assert pool()["misses"] == before["misses"] + 3
        assert (more[0] == expected).all()
        print("done")
    """)
    assert output_of(program) == "done"


def test_few_blocks_take_few_addresses():
    """An address space may be limited too."""
    program = POOL + textwrap.dedent("""

        def addresses():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[0]) * 4096

        for kib in (64, 100, 500, 1000, 1900, 3000):
            inputs[kib * KIB] = np.ones((kib * 16, 16), np.float32)
        before = addresses()
        alive = [result(kib * KIB) for kib in (64, 100, 500, 1000, 1900)]
        assert addresses() - before < 5 * sum(y.nbytes for y in alive)
        before = addresses()
        alive.append(result(3000 * KIB))
        assert addresses() - before < 4 * MIB
        print("done")
    """)
    assert output_of(program) == "done"


@pytest.mark.parametrize("kib", [64, 4096])
def test_the_limit_of_mappings_loses_no_memory(kib):
    """Where the system refuses to unmap, blocks are emptied, and used again."""
    program = POOL + textwrap.dedent(f"""
        import mmap

        size, number = {kib} * KIB, 64 * MIB // ({kib} * KIB)
        with open("/proc/sys/vm/max_map_count") as file:
            most = int(file.read())
        if most > 200000:
            print("done")  # it would take long, and much memory of the kernel
            raise SystemExit
        alive = [result(size) for _ in range(number)]
        expected = result(size).copy()
        addresses = {{address(y) for y in alive}}
        fillers = [None] * (most + 100)
        made, kinds = 0, (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            while True:  # neighbours of the same protection would be one mapping
                fillers[made] = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
                                          prot=kinds[made % 2])
                made += 1
        except OSError:
            pass
        before, figures = resident(), pool()
        del alive[1::2]
        given_back = before - resident()
        after = pool()
        del alive[1:]
        fillers.clear()
        assert made > most - 5000, made
        assert figures["in_use_bytes"] >= 64 * MIB
        assert after["in_use_bytes"] == figures["in_use_bytes"] - 32 * MIB
        assert after["cached_bytes"] == 0
        assert given_back > 28 * MIB, given_back
        alive += [result(size) for _ in range(number - 1)]
        assert len({{address(y) for y in alive}} | addresses) <= number + 20
        assert all((y == expected).all() for y in alive)
        del alive
        assert pool()["in_use_bytes"] == 0
        print("done")
    """)
    assert output_of(program, BNEXT_POOL_LIMIT="0", timeout=110) == "done"


def test_many_kept_blocks_do_not_slow_down_others():
    """Of the process's own time, and in comparison: of 12,000 kept blocks, those of other sizes are
    the oldest, and a walk over the newer ones takes many times as long as such a call."""
    program = POOL + textwrap.dedent("""
        import time

        sizes = range(72 * KIB, 136 * KIB, 8 * KIB)

        def per_call():
            taken = []
            for nbytes in sizes:
                before = pool()["hits"]
                begin = time.process_time()
                alive = [result(nbytes) for _ in range(100)]
                taken.append(time.process_time() - begin)
                hits.append(pool()["hits"] - before)
            return min(taken)

        hits = []
        per_call()
        per_call()
        few = per_call()
        many = [result(64 * KIB) for _ in range(12000)]
        del many
        assert pool()["cached_bytes"] >= 12000 * 64 * KIB
        slow = per_call()
        assert hits[len(sizes):] == 3 * len(sizes) * [100], hits
        assert slow < 3 * few, (slow, few)
        print("done")
    """)
    assert output_of(program, BNEXT_POOL_LIMIT="2G", timeout=110) == "done"


# --- whose limit ----------------------------------------------------------------------------------

HIERARCHIES = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/unified", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
]


@pytest.fixture
def group_of_300_mib():
    """The folder of a control group that a process may enter."""
    for root, knob in HIERARCHIES:
        folder = Path(root) / f"bnext-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / knob).exists():  # else it is a folder like any other
                (folder / knob).write_text(str(300 << 20))
                yield folder
                return
        except OSError:
            continue
        finally:
            folder.rmdir()
    pytest.skip("no control group can be made here")


def test_the_usual_limit_is_an_eighth_of_the_control_groups(group_of_300_mib):
    program = f"""
        import os, sys
        try:
            with open({str(group_of_300_mib / "cgroup.procs")!r}, "w") as file:
                file.write(str(os.getpid()))
        except OSError as error:
            sys.exit(f"may not enter: {{error}}")
        import bnext
        print(bnext.show_config(mode="dicts")["pool"]["limit_bytes"])
    """
    done = run_python(program, BNEXT_POOL_LIMIT=None)
    if done.stderr.startswith("may not enter"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (300 << 20) // 8
