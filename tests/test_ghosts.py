"""Ghost batches: a batch in ghosts is the same as one call for each."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import bnext
from bnext.ghosts import cuts_of

from .groups.support import new_group

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def array_of(shape, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 1).astype(dtype)


@pytest.mark.parametrize(
    ("examples", "size", "values", "sizes"),
    [(8, 4, 1, [4, 4]), (9, 4, 2, [4, 4, 1]), (9, 4, 1, [4, 5]), (3, 4, 1, [3]), (4, 4, 9, [4]),
     (0, 4, 1, [0]), (3, 1, 7, [1, 1, 1]), (11, 4, 1, [4, 4, 3]), (2, 1, 2, [1, 1])],
)  # fmt: skip
def test_cuts(examples, size, values, sizes):
    cuts = cuts_of(examples, size, values)
    assert [cut.stop - cut.start for cut in cuts] == sizes
    assert cuts[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(cuts))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("shape", "axis"), [((11, 3), 1), ((11, 3, 4, 2), 1), ((9, 4, 3), -1)])
@pytest.mark.parametrize(
    ("activation", "added"), [(None, False), ("relu", True), ("gelu", True), (None, True)]
)
def test_a_batch_is_a_call_for_each_ghost(dtype, shape, axis, activation, added):
    options = {"channel_axis": axis, "activation": activation, "estimator": bnext.Cumulative()}
    options["dtype"] = np.float64 if dtype is np.float64 else np.float32
    x, dy = array_of(shape, dtype), array_of(shape, dtype, 1)
    r = array_of(shape, dtype, 2) if added else None
    layer = bnext.BatchNorm(3, ghost_batch_size=4, **options)
    each = bnext.BatchNorm(3, **options)
    y = layer(x, residual=r)
    again = layer.recomputed(residual=r).value()
    gradients = layer.backward(dy)
    weight_grad, bias_grad = 0.0, 0.0
    for cut in cuts_of(len(x), 4, x[0].size // 3):
        part = each(x[cut], residual=None if r is None else r[cut])
        np.testing.assert_array_equal(y[cut], part)
        np.testing.assert_array_equal(again[cut], part)
        expected = each.backward(dy[cut])
        if added:
            np.testing.assert_array_equal(gradients[0][cut], expected[0])
            np.testing.assert_array_equal(gradients[1][cut], expected[1])
        else:
            np.testing.assert_array_equal(gradients[cut], expected)
        weight_grad = weight_grad + each.weight_grad.astype(np.float64)
        bias_grad = bias_grad + each.bias_grad.astype(np.float64)
    np.testing.assert_array_equal(layer.weight_grad, weight_grad.astype(layer.dtype))
    np.testing.assert_array_equal(layer.bias_grad, bias_grad.astype(layer.dtype))
    for name in RUNNING:
        np.testing.assert_array_equal(getattr(layer, name), getattr(each, name))


def test_in_place_and_out():
    x = array_of((9, 3, 2))
    expected = bnext.BatchNorm1d(3, ghost_batch_size=4)(x)
    mine = x.copy()
    layer = bnext.BatchNorm1d(3, ghost_batch_size=4, in_place=True)
    assert layer(mine) is mine
    np.testing.assert_array_equal(mine, expected)
    dy = array_of(x.shape, seed=1)
    other = bnext.BatchNorm1d(3, ghost_batch_size=4)
    out = np.empty_like(x)
    assert other(x, out=out) is out
    assert other.backward(dy, out=dy) is dy
    np.testing.assert_allclose(layer.backward(array_of(x.shape, seed=1)), dy, rtol=1e-4, atol=1e-5)


def test_where_there_is_one_batch():
    x = array_of((9, 3))
    layer, plain = bnext.BatchNorm1d(3, ghost_batch_size=9), bnext.BatchNorm1d(3)
    np.testing.assert_array_equal(layer(x), plain(x))
    layer.ghost_batch_size = 2
    np.testing.assert_array_equal(layer.eval()(x), plain.eval()(x))
    bnext.update_statistics(layer, [x], [layer], "exact")
    bnext.update_statistics(plain, [x], [plain], "exact")
    np.testing.assert_array_equal(layer.running_var, plain.running_var)


def test_the_setting_is_kept():
    layer = bnext.BatchNorm1d(3, ghost_batch_size=np.int64(4))
    assert "ghost_batch_size=4" in repr(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.ghost_batch_size == 4
    assert list(layer.state_dict()) == list(bnext.BatchNorm1d(3).state_dict())


def test_a_bad_ghost_is_skipped_by_itself():
    x = array_of((8, 3))
    x[5, 0] = np.nan
    layer, good = (
        bnext.BatchNorm1d(3, ghost_batch_size=4, skip_nonfinite=True),
        bnext.BatchNorm1d(3),
    )
    layer(x)
    good(x[:4])
    np.testing.assert_array_equal(layer.running_mean, good.running_mean)
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)


def test_tensors_of_torch(torch):
    x = torch.from_numpy(array_of((9, 3, 2)))
    layer, same = bnext.BatchNorm1d(3, ghost_batch_size=4), bnext.BatchNorm1d(3, ghost_batch_size=4)
    y = layer(x)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), same(x.numpy()))
    out = torch.empty_like(y)
    assert layer.backward(y, out=out) is out
    np.testing.assert_array_equal(out.numpy(), same.backward(y.numpy()))


BAD = {
    "a size of 0": (lambda: bnext.BatchNorm1d(3, ghost_batch_size=0), ValueError),
    "no size": (lambda: bnext.BatchNorm1d(3, ghost_batch_size=2.5), TypeError),
    "a group": (lambda: bnext.BatchNorm1d(3, ghost_batch_size=2, group=new_group(1)), ValueError),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_size(case):
    make, kind = BAD[case]
    with pytest.raises(kind, match=r"^ghost_batch_size: expected"):
        make()


def fails(layer, message, x, **named):
    before = {name: np.array(getattr(layer, name)) for name in RUNNING}
    given = x.copy()
    with pytest.raises((ValueError, TypeError), match=message):
        layer(x, **named)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(layer, name), value)
    np.testing.assert_array_equal(x, given)


def test_errors_come_before_anything_is_touched():
    layer, x = bnext.BatchNorm1d(3, ghost_batch_size=4), array_of((9, 3, 2))
    fails(layer, "^residual: expected shape", x, residual=array_of((10, 3, 2)))
    fails(layer, "^out: expected shape", x, out=array_of((10, 3, 2)))
    fails(layer, "^out: expected dtype float32", x, out=array_of((9, 3, 2), np.float64))
    memory = array_of((12, 3, 2))
    fails(layer, "^out: expected memory of its own", memory[:9], out=memory[3:])
    fails(layer, "^x: expected dtype", x.astype(np.float64))
    fails(
        bnext.BatchNorm1d(3, ghost_batch_size=1), "^ghost_batch_size: expected ghosts of", x[..., 0]
    )
    first = bnext.BatchNorm(9, channel_axis=0, ghost_batch_size=4)
    fails(first, "^ghost_batch_size: expected None for channels at axis 0", x)
    group = new_group(1)
    layer.group = group
    with pytest.raises(ValueError, match=r"^ghost_batch_size: expected None in a group"):
        group.run(lambda rank, shard: layer(shard), [x])
    layer.group = None
    with pytest.raises(
        ValueError, match=r"^layers\[0\]: expected a layer .* got one with ghost_batch_size=4"
    ):
        bnext.micro_batches([layer])
    layer(x)
    with pytest.raises(ValueError, match=r"^dy: expected shape"):
        layer.backward(x[:8])
    with pytest.raises(TypeError, match=r"^dy: expected dtype"):
        layer.backward(x.astype(np.float64))
    layer.backward(x)
