"""Copies and pickles of layers and of what calls leave, also out of memory that is not theirs."""

import copy
import multiprocessing
import pickle
import weakref

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .optional import import_extra
from .sixteen import TYPES

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle-{protocol}": lambda v, protocol=protocol: pickle.loads(pickle.dumps(v, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


def out_of_band(value):
    """Pickle as joblib and shared memory do: arrays lie in buffers that cannot be written."""
    buffers = []
    stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(stream, buffers=[bytes(buffer) for buffer in buffers])


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_saved(rng, dtype, copied, channel_axis):
    x, dy = rng.normal(1, 2, (2, 5, 3, 4)).astype(dtype)
    _, saved = bnext.batch_norm_forward(x, channel_axis=channel_axis, eps=1e-3)
    other = copied(saved)
    assert type(other) is bnext.Saved
    for name in ("mean", "m2", "var", "rstd"):
        assert_same_bits(getattr(other, name), getattr(saved, name), name)
    for name in ("count", "eps", "shape", "dtype", "channel_axis", "batch_statistics"):
        assert getattr(other, name) == getattr(saved, name), name
    for one, expected in zip(
        bnext.batch_norm_backward(dy, x, other),
        bnext.batch_norm_backward(dy, x, saved),
        strict=True,
    ):
        assert_same_bits(one, expected)
    changed = x + 1
    with pytest.raises(ValueError, match="saved: made from another x"):
        bnext.batch_norm_backward(dy, changed, other)


def test_saved_of_16_bits(rng):
    for kind in TYPES:
        x = rng.normal(size=(6, 3)).astype(kind)
        _, saved = bnext.batch_norm_forward(x)
        other = pickle.loads(pickle.dumps(saved))
        assert other.dtype == saved.dtype
        assert_same_bits(other.mean, saved.mean)


def test_saved_of_nothing_and_of_given_statistics():
    _, saved = bnext.batch_norm_forward(np.empty((0, 3), np.float32))
    assert pickle.loads(pickle.dumps(saved)).count == 0
    bn = bnext.BatchNorm1d(3).eval()
    bn(np.ones((2, 3), np.float32))
    given = bn._latest[None][1]
    assert pickle.loads(pickle.dumps(given)).batch_statistics is False


@pytest.mark.parametrize(
    "state",
    [
        (), ("float32",), ("int8", True, 0, 1e-5, 1, 1, [3], np.zeros(12)),
        ("float32", True, 1, 1e-5, 1, 1, [3], np.zeros(12)),
        ("float32", True, 0, 1e-5, 1, 1, [3], np.zeros(11)),
    ],
)  # fmt: skip
def test_a_state_that_is_none_of_saved(state):
    saved = bnext.Saved.__new__(bnext.Saved)
    with pytest.raises(ValueError, match="state: expected the state of a pickled Saved"):
        saved.__setstate__(state)


def test_saved_is_made_by_calls_alone(rng):
    x = rng.normal(size=(6, 3))
    _, saved = bnext.batch_norm_forward(x)
    with pytest.raises(TypeError, match=r"^bnext\._core\.Saved: No constructor defined!$"):
        bnext.Saved()
    blank = bnext.Saved.__new__(bnext.Saved)
    assert (blank.shape, blank.mean.shape, blank.rows.shape) == ((), (0,), (5, 0))
    with pytest.raises(TypeError, match=r"^saved: expected what batch_norm_forward returned, got"):
        bnext.batch_norm_backward(x, x, blank)
    with pytest.raises(ValueError, match=r"^state: expected the state of a pickled Saved$"):
        blank.__setstate__(blank.__getstate__())
    mean = saved.mean
    with pytest.raises(TypeError, match=r"^__setstate__: expected a Saved that __new__ has made$"):
        saved.__setstate__(saved.__getstate__())
    with pytest.raises(AttributeError):
        saved.count = 3
    reference, expected = weakref.ref(saved), mean.copy()
    del saved
    assert reference() is not None, "its views keep it"
    assert_same_bits(mean, expected)
    del mean
    assert reference() is None


def test_saved_of_a_group(rng):
    x = rng.normal(size=(8, 3))
    group = bnext.sync.ThreadGroup(2, timeout=30)

    def member(rank, shard):
        _, saved = bnext.batch_norm_forward(shard, group=group)
        for copied in (copy.copy, copy.deepcopy):
            assert_same_bits(copied(saved).mean, saved.mean)
            assert copied(saved).group is group
        with pytest.raises(TypeError, match="a ThreadGroup cannot be pickled"):
            pickle.dumps(saved)
        return bnext.batch_norm_backward(shard, shard, copy.deepcopy(saved))

    group.run(member, [x[:3], x[3:]])


def test_layers_in_a_group_say_how_to_pickle_them(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    bn = bnext.BatchNorm1d(3, group=bnext.sync.ThreadGroup(2))
    for copied in (copy.copy, copy.deepcopy):
        assert copied(bn).group is bn.group
    for value in (bn, bn.group):
        with pytest.raises(TypeError, match="group: a ThreadGroup cannot be pickled") as caught:
            pickle.dumps(value)
        assert "layer.group = None" in str(caught.value)
        assert "state_dict()" in str(caught.value)
    bn.group = None
    assert_same_bits(pickle.loads(pickle.dumps(bn))(x), bn(x))


def test_layers_of_older_pickles(rng):
    """Their attributes were all the layer's own, and of the latest call there were three."""
    x = rng.normal(size=(8, 3)).astype(np.float32)
    bn = bnext.BatchNorm1d(3, estimator=bnext.DebiasedExponential(0.2))
    bn(x)
    state = bn.__getstate__()
    assert set(state) >= {"weight", "running_mean", "num_batches_tracked", "estimator", "dtype"}
    assert not {"running", "_latest"} & set(state)
    other = bnext.BatchNorm1d.__new__(bnext.BatchNorm1d)
    other.__setstate__(state | {"_latest": None, "_latest_of": {}, "_moved_at": None})
    assert_same_bits(other(x), bn(x))
    assert_same_bits(other.backward(x), bn.backward(x))
    assert_same_bits(other.running_var, bn.running_var)
    assert other.estimator == bn.estimator


def test_groups_of_others_may_know_better():
    class Known(bnext.sync.ThreadGroup):
        def __reduce__(self):
            return Known, (self.size,)

    globals()["Known"] = Known
    Known.__qualname__ = "Known"
    assert pickle.loads(pickle.dumps(Known(3))).size == 3


def test_layers_out_of_read_only_buffers_train(rng, dtype):
    x = rng.normal(size=(8, 3)).astype(dtype)
    bn = bnext.BatchNorm1d(3, dtype=dtype)
    bn(x)
    bn.backward(x)
    other = out_of_band(bn)
    for name, value in bn.state_dict().items():
        assert_same_bits(getattr(other, name), value, name)
        assert getattr(other, name).flags.writeable, name
    assert_same_bits(other(x), bn(x))
    assert_same_bits(other.running_var, bn.running_var)
    other.load_state_dict(bn.state_dict())
    other.weight -= 0.1 * other.weight_grad


def test_a_shallow_copy_shares_arrays_also_those_that_are_read_only():
    bn = bnext.BatchNorm1d(3)
    bn.running_var.flags.writeable = False
    other = copy.copy(bn)
    for name in bn.state_dict():
        assert getattr(other, name) is getattr(bn, name)


def test_layers_out_of_memory_maps_train(rng, tmp_path):
    """What joblib does with arguments of more than a megabyte."""
    joblib = import_extra("joblib")
    bn = bnext.BatchNorm1d(3)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    joblib.dump(bn, tmp_path / "layer")
    other = joblib.load(tmp_path / "layer", mmap_mode="r")
    assert_same_bits(other(x), bn(x))
    assert_same_bits(other.running_var, bn.running_var)


@pytest.mark.skipif(
    "spawn" not in multiprocessing.get_all_start_methods(), reason="processes cannot be spawned"
)
def test_saved_goes_to_another_process(rng):
    x = rng.normal(size=(8, 3))
    y, saved = bnext.batch_norm_forward(x)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(bnext.batch_norm_backward, (y, x, saved))
    for one, expected in zip(there, bnext.batch_norm_backward(y, x, saved), strict=True):
        assert_same_bits(one, expected)
