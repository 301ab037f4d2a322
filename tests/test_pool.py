"""The pool that results come from: recycling, views, threads. (test_pool_processes.py has more.)"""

import gc
import itertools
import pickle
import random
import resource
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .operations import everything

pytestmark = pytest.mark.usefixtures("collected")

MIB = 1 << 20


def pool():
    return bnext.show_config(mode="dicts")["pool"]


def address(array):
    return array.__array_interface__["data"][0]


def data(nbytes, seed=0):
    """An input of that many bytes."""
    return np.random.default_rng(seed).standard_normal((nbytes // 64, 16), np.float32)


def result(x):
    return bnext.batch_norm_forward(x)[0]


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """What is there before, pytest's own reports above all, is not looked through in each test."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _empty(_frozen):
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


def test_wide_layers_map_no_memory_for_their_statistics(rng):
    """Nor for the coefficients: vectors of 160 KB here, which malloc maps anew for each call."""
    x, dy = rng.standard_normal((2, 7, 20000)).astype(np.float32)
    weight, bias = rng.standard_normal((2, 20000)).astype(np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)

    def step():
        _, saved = bnext.batch_norm_forward(x, weight, bias, out=y)
        bnext.batch_norm_backward(dy, x, saved, weight, out=dx)
        bnext.normalize(x, saved.mean, saved.var, weight, bias, out=y)

    for _ in range(5):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 20 * 40  # one vector of float64


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


@pytest.mark.parametrize("nbytes", [512, 1024, 5120, 60000])
def test_small_results_are_arrays_like_any_other(nbytes, rng):
    x = rng.standard_normal((nbytes // 64, 16)).astype(np.float32)
    y = result(x)
    assert (type(y), y.base, y.strides) == (np.ndarray, None, x.strides)
    assert y.flags.owndata
    assert y.flags.writeable
    assert y.flags.c_contiguous
    if nbytes >= 1024:
        assert address(y) % 64 == 0
    for elements in (3, 2000, 0, 40000, 700):
        expected = np.zeros(elements, np.float32)
        kept = min(elements, y.size)
        expected[:kept] = y.reshape(-1)[:kept]
        y.resize(elements, refcheck=False)
        assert_same_bits(y, expected)


def test_memory_of_small_results_is_used_again():
    x = data(5120)
    y = result(x)
    where = address(y)
    view = y[1:]
    del y
    assert address(result(x)) != where  # the view still has it
    del view
    assert address(result(x)) == where
    bnext.empty_cache()
    alive = [result(x) for _ in range(300)]  # more than what is kept
    assert len({address(y) for y in alive}) == 300


def test_threads_share_the_memory_of_small_results():
    def work(value):
        alive = []
        for step in range(300):
            x = np.full((40, 16), value, np.float32)
            x[::2] += 1
            alive.append(result(x))
            assert_same_bits(alive[-1], alive[0])
            if step % 7 == 0:
                del alive[1:]

    with ThreadPoolExecutor(4) as pool_of_threads:
        list(pool_of_threads.map(work, range(8)))


@pytest.mark.parametrize("nbytes", [5120, 8 * MIB])
def test_profiles_of_memory_have_them(nbytes):
    x = data(nbytes)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        y = result(x)
        during, _ = tracemalloc.get_traced_memory()
        del y
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert during - before >= nbytes
    assert after - before < nbytes / 2


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


# --- emptying, and threads ------------------------------------------------------------------------


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
