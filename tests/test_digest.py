"""Digests of arrays: every change of a value or of its place gives another number."""

import numpy as np
import pytest

import bnext
from bnext import _core

SIZES = [0, 1, 7, 15, 16, 17, 1000, 65536, 65537, 700001]  # words of 4 bytes; a piece is 65536


@pytest.mark.parametrize("size", SIZES)
def test_digest_is_a_function_of_the_values(rng, size):
    x = rng.standard_normal(size).astype("float32")
    digest = _core.digest((x,))
    assert _core.digest((x.copy(),)) == digest
    unaligned = np.empty(x.nbytes + 1, "uint8")[1:]
    unaligned[:] = x.view("uint8")
    assert _core.digest((unaligned,)) == digest


@pytest.mark.parametrize("size", SIZES[1:])
def test_digest_tells_changes(rng, size):
    x = rng.standard_normal(size).astype("float32")
    digest = _core.digest((x,))
    for place in {0, size // 2, size - 1, *rng.integers(size, size=5).tolist()}:
        changed = x.copy()
        changed[place] = np.nextafter(x[place], np.float32(np.inf))
        assert _core.digest((changed,)) != digest
    others = [-x, x[: size - 1], np.append(x, np.float32(0.0))]
    if size > 1:
        others += [np.roll(x, 1), x[::-1].copy(), np.roll(x, 16), np.roll(x, 65536 + 1)]
    for other in others:
        assert np.array_equal(other, x) or _core.digest((other,)) != digest


def test_digest_of_several_arrays_tells_their_order(rng):
    x, y = rng.standard_normal((2, 40))
    digests = [_core.digest(each) for each in ((x, y), (y, x), (x,), (y,), (x, y, x[:0]), ())]
    assert len({*digests}) == len(digests)


def test_digest_is_the_same_for_any_number_of_threads(rng):
    x = rng.standard_normal(1 << 19)
    expected = _core.digest((x,))
    before = bnext.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            bnext.set_num_threads(threads)
            assert _core.digest((x,)) == expected
    finally:
        bnext.set_num_threads(before)


def test_digest_refuses_what_has_no_dense_memory(rng):
    with pytest.raises((ValueError, BufferError)):
        _core.digest((rng.standard_normal((4, 4))[:, ::2],))
    with pytest.raises(TypeError):
        _core.digest((1.0,))
