"""float64 results are as exact at mean/std = 1e8 as at 0, computed in parts or whole, on any road.

Against long double; the mean is carried with a low part wherever it goes (bnext/rows.py).
"""

import pickle

import numpy as np
import pytest

import bnext
from bnext._core import Saved
from bnext.rows import ROW

from .cases import CASES, FEW, named
from .compare import assert_same_bits
from .exact import LONG, assert_is_exact, drawn, require_long_double
from .fake_cuda import Array
from .groups.support import batch_axis, layer_step, new_group, shards_of, whole
from .groups.test_sums import on_all_ranks
from .optional import import_emulated

FAR = [0.0, 1e4, 1e6, 1e8]
# Planes, rows, small planes, arrays that are copied first, and few values.
SOME = FEW + named("NC-two-values", "NCL-5-two-channels", "inner-every-third", "NHWC-257")


@pytest.fixture(autouse=True)
def long_double():
    require_long_double()


def layer_of(case, weight, bias, group=None, total=False):
    layer = bnext.BatchNorm(
        case.channels, channel_axis=case.channel_axis, dtype=np.float64, group=group,
        parameter_gradients="total" if total else "local",
    )  # fmt: skip
    layer.weight[...], layer.bias[...] = weight, bias
    return layer


def by_function(case, x, dy, weight, bias, axis):
    y, saved = bnext.batch_norm_forward(x, weight, bias, **axis)
    return y, *bnext.batch_norm_backward(dy, x, saved, weight)[:2]


def by_layer(case, x, dy, weight, bias, axis):
    layer = layer_of(case, weight, bias)
    return *layer_step(layer, x, dy), layer.weight_grad


def a_member(shards, rank, weight, bias, axis, group):
    x, dy = (shards_of_one[rank] for shards_of_one in shards)
    y, saved = bnext.batch_norm_forward(x, weight, bias, group=group, **axis)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight, parameter_gradients="total")
    return y, *gradients[:2]


def together(results, case):
    y, dx, dweight = zip(*results, strict=True)
    return whole(y, batch_axis(case)), whole(dx, batch_axis(case)), dweight[0]


def cut(case, *arrays):
    return [shards_of(array, "unequal", batch_axis(case)) for array in arrays]


def by_threads(case, x, dy, weight, bias, axis):
    group, shards = new_group(3), cut(case, x, dy)
    results = group.run(lambda rank, _: a_member(shards, rank, weight, bias, axis, group), range(3))
    return together(results, case)


def by_processes(case, x, dy, weight, bias, axis):
    """Groups of processes, by way of memory: their sums are about a shift."""
    shards = cut(case, x, dy)

    def body(group):
        return a_member(shards, group.rank, weight, bias, axis, group)

    return together(on_all_ranks(body, 3)[0], case)


def by_micro_batches(case, x, dy, weight, bias, axis):
    layer = layer_of(case, weight, bias)

    def step(piece):
        return *(each.copy() for each in layer_step(layer, *piece)), layer.weight_grad.copy()

    with bnext.micro_batches([layer]) as union:
        results = list(union.run(step, list(zip(*cut(case, x, dy), strict=True))))
    y, dx, dweight = zip(*results, strict=True)
    return whole(y, batch_axis(case)), whole(dx, batch_axis(case)), sum(dweight)


def by_micro_batches_in_a_group(case, x, dy, weight, bias, axis):
    """Each member has its shard in two pieces."""
    group, shards = new_group(3), cut(case, x, dy)

    def member(rank, _):
        layer = layer_of(case, weight, bias, group)
        pieces = [np.array_split(each[rank], 2, batch_axis(case)) for each in shards]

        def step(piece):
            return *(each.copy() for each in layer_step(layer, *piece)), layer.weight_grad.copy()

        with bnext.micro_batches([layer]) as union:
            results = list(union.run(step, list(zip(*pieces, strict=True))))
        y, dx, dweight = zip(*results, strict=True)
        return whole(y, batch_axis(case)), whole(dx, batch_axis(case)), sum(dweight)

    y, dx, dweight = zip(*group.run(member, range(3)), strict=True)
    return whole(y, batch_axis(case)), whole(dx, batch_axis(case)), sum(dweight)


SUBJECTS = [
    by_layer, by_threads, by_processes, by_micro_batches, by_micro_batches_in_a_group,
]  # fmt: skip


def check(subject, case, rng, far):
    x, dy = drawn(case, rng, far)
    weight, bias = case.weight(rng, np.float64), case.bias(rng, np.float64)
    axis = {"channel_axis": case.channel_axis}
    assert_is_exact(subject(case, x, dy, weight, bias, axis), x, dy, weight, bias, **axis)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(rng, isa, case, far):
    check(by_function, case, rng, far)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_every_schedule(rng, schedule, case, far):
    check(by_function, case, rng, far)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.__name__)
def test_every_road(rng, subject, case, far):
    check(subject, case, rng, far)


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a group"])
def test_on_a_gpu(rng, case, far, grouped, monkeypatch):
    """The CUDA kernels, on the CPU; in a group the phases are launches of their own."""
    module = import_emulated()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)

    def there(case, x, dy, weight, bias, axis):
        x_, dy_, weight_, bias_ = map(Array, (x, dy, weight, bias))
        if grouped:
            group = new_group(3)
            shards = [[Array(each) for each in part] for part in cut(case, x, dy)]
            results = group.run(
                lambda rank, _: a_member(shards, rank, weight_, bias_, axis, group), range(3)
            )
            return together([[each.values for each in result] for result in results], case)
        results = by_function(case, x_, dy_, weight_, bias_, axis)
        return [each.values for each in results]

    check(there, case, rng, far)


def test_the_low_part_is_what_the_mean_lacks(rng, dtype):
    x = rng.normal(1e6, 1, (33, 5)).astype(dtype)
    _, saved = bnext.batch_norm_forward(x)
    assert saved.rows[ROW.mean_low].tolist() == saved.mean_low.tolist()
    if dtype == np.float32:  # whose mean a double has bits to spare for
        assert not saved.mean_low.any()
        return
    expected = (np.asarray(x, LONG) - 1e6).mean(0)
    assert np.abs((saved.mean - 1e6) - expected).max() > 1e-12
    assert np.abs((saved.mean - 1e6) + saved.mean_low - expected).max() < 1e-15


def test_places_of_rows_stay():
    """Graphs that PyTorch has exported pick rows by their places; a new row comes last."""
    assert ROW._asdict() == {"mean": 0, "m2": 1, "var": 2, "rstd": 3, "mean_low": 4}


def test_rows_go_with_pickles(rng):
    """Also rows of a version that had no low part."""
    _, saved = bnext.batch_norm_forward(rng.normal(1e6, 1, (33, 5)))
    assert_same_bits(pickle.loads(pickle.dumps(saved)).rows, saved.rows)
    *others, rows, _, _, _ = saved.__getstate__()
    older = Saved.__new__(Saved)
    older.__setstate__((*others, rows[: ROW.mean_low * 5]))
    assert_same_bits(older.rows[: ROW.mean_low], saved.rows[: ROW.mean_low])
    assert not older.mean_low.any()
    for wrong in (rows[:5], np.zeros(6 * 5)):
        with pytest.raises(ValueError, match=r"^state: expected the state of a pickled Saved$"):
            Saved.__new__(Saved).__setstate__((*others, wrong))
